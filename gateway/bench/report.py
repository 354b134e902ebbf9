"""What a measurement found, as numbers with names, as JSON and as text.

Owns the names that scripts and `deploy/benchmarks.md` rely on. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from gateway.bench.measure import DESIGNED_SECONDS, FRAME_SECONDS, Measured
from gateway.bench.tracks import TRACK_FRAMES, VOICED_FRAMES

LIMIT_MS = 20.0
"""Added latency at the 99th percentile that a gateway must stay under."""
_BENCH_LATE_MS = 5.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Milliseconds."""

    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Load:
    """One measurement of N calls over a window."""

    calls: int
    failed_calls: int
    first_failure: str
    seconds: float
    round_trip_ms: Spread
    added_ms: Spread
    """Round trip less what is designed: 80 ms a frame, 40 ms de-jittering, 6 ms of filters."""
    over_best_ms: Spread
    """Round trip less the same call's shortest: what varies, without the phase of the call's clock."""
    lost_per_call_minute: float
    """20 ms frames."""
    underruns_per_call_minute: float
    cpu_percent: float
    """Of one core, the gateway's process alone."""
    cpu_percent_per_call: float
    worker_cpu_percent: float
    rss_mb: float
    rss_mb_per_call: float
    worker_rss_mb: float
    bench_late_ms: Spread
    """How late the bench itself sent: what it adds to the figures above."""

    @property
    def bench_is_slow(self) -> bool:
        """Whether the bench, not the gateway, may be what these figures show."""
        return self.bench_late_ms.p99 > _BENCH_LATE_MS

    @property
    def holds(self) -> bool:
        """Whether the gateway carries these calls as it must."""
        return self.failed_calls == 0 and self.added_ms.p99 < LIMIT_MS and self.lost_per_call_minute < 1


@dataclass(frozen=True, slots=True)
class Resources:
    """The gateway's use of the machine in the window."""

    cpu_seconds: float
    worker_cpu_seconds: float
    rss_bytes: int
    worker_rss_bytes: int
    rss_idle_bytes: int
    """Before the first of these calls."""


def load_report(measured: Measured, wanted: int, failures: Sequence[str], seconds: float, used: Resources) -> Load:
    """Percentiles and rates. Minutes of call count those that were up."""
    minutes = measured.sent * FRAME_SECONDS / 60 * TRACK_FRAMES / VOICED_FRAMES
    up = max(1, measured.calls)
    cpu = 100 * used.cpu_seconds / seconds
    return Load(
        calls=wanted,
        failed_calls=wanted - measured.calls + measured.silent,
        first_failure=failures[0] if failures else "",
        seconds=seconds,
        round_trip_ms=_spread(measured.round_trips),
        added_ms=_spread(measured.round_trips - DESIGNED_SECONDS),
        over_best_ms=_spread(measured.over_best),
        lost_per_call_minute=_rate(measured.lost, minutes),
        underruns_per_call_minute=_rate(measured.underruns, minutes),
        cpu_percent=round(cpu, 1),
        cpu_percent_per_call=round(cpu / up, 3),
        worker_cpu_percent=round(100 * used.worker_cpu_seconds / seconds, 1),
        rss_mb=_megabytes(used.rss_bytes),
        rss_mb_per_call=round((used.rss_bytes - used.rss_idle_bytes) / up / 1e6, 3),
        worker_rss_mb=_megabytes(used.worker_rss_bytes),
        bench_late_ms=_spread(measured.lateness),
    )


def as_json(loads: Sequence[Load], most: int | None) -> dict[str, object]:
    """`{"designed_ms", "loads": [...]}`, and `max_calls` when the most was looked for."""
    report: dict[str, object] = {
        "designed_ms": round(1000 * DESIGNED_SECONDS, 1),
        "limit_ms": LIMIT_MS,
        "loads": [asdict(load) | {"holds": load.holds, "bench_is_slow": load.bench_is_slow} for load in loads],
    }
    if most is not None:
        report["max_calls"] = most
    return report


def as_text(load: Load) -> str:
    """One measurement in a few lines."""
    added, trip, late = load.added_ms, load.round_trip_ms, load.bench_late_ms
    lines = [
        f"{load.calls} calls for {load.seconds:g} s" + (f", {load.failed_calls} failed" if load.failed_calls else ""),
        f"  added latency    {added.p50:.1f} ms median, {added.p99:.1f} p99, {added.max:.1f} max",
        f"  round trip       {trip.p50:.1f} ms median, {trip.p99:.1f} p99, {trip.max:.1f} max",
        f"  per call-minute  {load.lost_per_call_minute:.2f} frames lost, "
        f"{load.underruns_per_call_minute:.2f} underruns",
        f"  gateway          {load.cpu_percent:.0f} % of a core ({load.cpu_percent_per_call:.2f} % a call), "
        f"{load.rss_mb:.0f} MB ({load.rss_mb_per_call:.2f} MB a call)",
    ]
    if load.worker_rss_mb:
        lines.append(f"  children         {load.worker_cpu_percent:.0f} % of a core, {load.worker_rss_mb:.0f} MB")
    if load.first_failure:
        lines.append(f"  first failure    {load.first_failure}")
    if load.bench_is_slow:
        lines.append(f"  the bench itself was late: {late.p99:.1f} ms p99; the latencies contain that")
    return "\n".join(lines)


def _spread(seconds: NDArray[np.float64]) -> Spread:
    if not len(seconds):
        return Spread(0.0, 0.0, 0.0)
    p50, p99, most = (1000 * np.percentile(seconds, [50, 99, 100])).tolist()
    return Spread(round(p50, 2), round(p99, 2), round(most, 2))


def _rate(count: int, minutes: float) -> float:
    return round(count / minutes, 3) if minutes else 0.0


def _megabytes(size: int) -> float:
    return round(size / 1e6, 1)
