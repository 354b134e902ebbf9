"""The rehearsal engine is fast enough to be talked to, also for four callers at once."""

from __future__ import annotations

import pytest

from gateway.bench.rehearsal import measure_rehearsal

pytestmark = pytest.mark.long


@pytest.mark.parametrize(("calls", "rounds"), [(1, 5), (4, 3)])
def test_it_answers_falls_silent_and_keeps_real_time(calls: int, rounds: int) -> None:
    found = measure_rehearsal(calls, rounds)
    assert found.failed == 0, found.first_failure
    assert found.unanswered == 0, found
    assert found.response_median_ms < 1200, found
    assert found.interruptions >= 2, found
    assert found.interruption_median_ms < 400, found
    assert found.frames_lost <= 0.005 * found.frames, found
    assert found.deadline_misses <= 5, found
    assert found.worker_rss_mb < 700, found
