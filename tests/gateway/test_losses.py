"""How often a session may be lost: often, if its workers are being stopped, else not."""

from __future__ import annotations

from gateway.losses import Losses


def test_a_session_lost_three_times_within_ten_seconds_breaks_its_workers() -> None:
    losses = Losses()
    for now in (0.0, 5.0, 10.0):
        losses.lost(now, f"worker-{now}", stopping=False)
        assert not losses.too_many(now)
    losses.lost(14.9, "worker", stopping=False)
    assert losses.too_many(14.9)


def test_a_worker_that_is_being_stopped_counts_only_if_it_was_before() -> None:
    losses = Losses()
    for number in range(9):
        losses.lost(0.0, f"worker-{number}", stopping=True)
    assert not losses.too_many(0.0)
    for _ in range(3):
        losses.lost(1.0, "worker-0", stopping=True)
    assert losses.too_many(1.0)
