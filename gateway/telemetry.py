"""The gateway's Prometheus metrics, all of them, by name.

Counted once a call rather than once a frame: at 300 calls a core a frame has no time for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from gateway.call_document import CallMetrics
from gateway.engine import WorkerChanged

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Telemetry:
    """One registry for each gateway, so that two in one process do not share counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.active = Gauge("callplex_calls_active", "Calls on the line now", registry=self.registry)
        self.calls = Counter("callplex_calls", "Calls that ended", ["end_reason", "engine"], registry=self.registry)
        self.refused = Counter(
            "callplex_calls_refused", "Calls turned away before they were answered", ["why"], registry=self.registry
        )
        self.frames = Counter("callplex_frames", "80 ms frames", ["direction"], registry=self.registry)
        self.lost = Counter("callplex_carrier_frames_lost", "20 ms frames lost or dropped", registry=self.registry)
        self.agent_lost = Counter(
            "callplex_agent_frames_lost",
            "20 ms of the agent's sound that came too late for the line or were left out, shortened pauses not counted",
            registry=self.registry,
        )
        self.worker_changes = Counter(
            "callplex_worker_changes",
            "Times a call was lost with its worker and went on with another",
            registry=self.registry,
        )
        self.agent_missed = Counter(
            "callplex_agent_frames_missed",
            "80 ms frames that no worker answered because their call was lost with one and went on with another",
            registry=self.registry,
        )
        self.misses = Counter("callplex_deadline_misses", "Clock ticks over 20 ms late", registry=self.registry)
        self.call_misses = Histogram(
            "callplex_call_deadline_misses",
            "Clock ticks of a call that were over 20 ms late",
            buckets=(0, 1, 2, 5, 10, 25, 50, 100, 250),
            registry=self.registry,
        )
        self.records_waiting = Gauge(
            "callplex_records_waiting",
            "1 while records wait for a database that cannot be written",
            registry=self.registry,
        )
        self.database_failures = Counter(
            "callplex_database_failures", "Times the database ceased to be writable", registry=self.registry
        )
        self.deliveries = Gauge(
            "callplex_deliveries", "Webhook deliveries in the database", ["endpoint", "state"], registry=self.registry
        )
        self.delivery_faults = Counter(
            "callplex_delivery_faults",
            "Rows given up, and rounds tried again, for an error of a webhook's queue that never should be",
            ["endpoint"],
            registry=self.registry,
        )
        self.oldest_delivery = Gauge(
            "callplex_deliveries_oldest_waiting_seconds",
            "Age of the oldest delivery that waits",
            ["endpoint"],
            registry=self.registry,
        )
        self.stored_calls = Gauge("callplex_records_calls", "Calls in the database", ["state"], registry=self.registry)
        self.answer = Histogram(
            "callplex_answer_seconds",
            "From the line's opening to the agent's first sound, as the line is given it",
            buckets=(0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2, 4, 8),
            registry=self.registry,
        )
        self.response = Histogram(
            "callplex_response_seconds",
            "From the caller's last sound to the agent's next, as the line is given it",
            buckets=(0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2, 3, 5),
            registry=self.registry,
        )

    def call_ended(
        self, end_reason: str, engine: str, metrics: CallMetrics, changes: Sequence[WorkerChanged] = ()
    ) -> None:
        """Add one finished call; `changes`: of the worker that held it."""
        self.calls.labels(end_reason, engine or "none").inc()
        self.frames.labels("in").inc(metrics.frames_in)
        self.frames.labels("out").inc(metrics.frames_out)
        self.lost.inc(metrics.frames_lost)
        self.agent_lost.inc(metrics.agent_frames_lost or 0)
        self.worker_changes.inc(len(changes))
        self.agent_missed.inc(sum(change.missed for change in changes))
        self.misses.inc(metrics.deadline_misses)
        self.call_misses.observe(metrics.deadline_misses)
        if metrics.answer_ms:
            self.answer.observe(metrics.answer_ms / 1000)
        for response in metrics.response_ms:
            self.response.observe(response / 1000)

    def delivery_fault(self, endpoint: str) -> None:
        """Count one; `endpoint` is empty when it concerned all."""
        self.delivery_faults.labels(endpoint or "all").inc()

    def stored(
        self, calls: Mapping[str, int], deliveries: Mapping[tuple[str, str], int], oldest: Mapping[str, float]
    ) -> None:
        """What is in the database now: calls by state, deliveries by endpoint and state, and the ages of the oldest."""
        for gauge in (self.stored_calls, self.deliveries, self.oldest_delivery):
            gauge.clear()
        for state, number in calls.items():
            self.stored_calls.labels(state).set(number)
        for (endpoint, state), number in deliveries.items():
            self.deliveries.labels(endpoint, state).set(number)
        for endpoint, age in oldest.items():
            self.oldest_delivery.labels(endpoint).set(age)

    def render(self) -> bytes:
        """The exposition text for `/metrics`."""
        return generate_latest(self.registry)
