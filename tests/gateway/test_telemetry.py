"""What the gateway counts of its calls."""

from __future__ import annotations

from gateway.call_document import CallMetrics
from gateway.engine import WorkerChanged
from gateway.telemetry import Telemetry


def test_missed_deadlines_are_told_call_by_call_without_naming_calls() -> None:
    telemetry = Telemetry()
    for misses in (0, 0, 3, 700):
        telemetry.call_ended("caller_hangup", "personaplex", CallMetrics(deadline_misses=misses))
    text = telemetry.render().decode()
    assert "callplex_deadline_misses_total 703.0" in text
    assert 'callplex_call_deadline_misses_bucket{le="0.0"} 2.0' in text
    assert 'callplex_call_deadline_misses_bucket{le="5.0"} 3.0' in text
    assert 'callplex_call_deadline_misses_bucket{le="+Inf"} 4.0' in text
    assert "callplex_call_deadline_misses_sum 703.0" in text


def test_sound_that_came_too_late_is_told_by_the_side_it_came_from() -> None:
    telemetry = Telemetry()
    telemetry.call_ended("caller_hangup", "personaplex", CallMetrics(frames_lost=2, agent_frames_lost=7))
    text = telemetry.render().decode()
    assert "callplex_carrier_frames_lost_total 2.0" in text
    assert "callplex_agent_frames_lost_total 7.0" in text


def test_calls_that_went_on_with_another_worker_are_counted_and_what_they_missed() -> None:
    telemetry = Telemetry()
    changes = [WorkerChanged(17, 4, "b", "the worker broke the connection"), WorkerChanged(90, 2, "c", "it hung")]
    telemetry.call_ended("caller_hangup", "personaplex", CallMetrics(), changes)
    telemetry.call_ended("caller_hangup", "personaplex", CallMetrics())
    text = telemetry.render().decode()
    assert "callplex_worker_changes_total 2.0" in text
    assert "callplex_agent_frames_missed_total 6.0" in text
