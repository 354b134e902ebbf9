"""The flood guard on a made-up clock."""

from __future__ import annotations

import pytest

from gateway.twilio.flood import FloodGuard
from gateway.twilio.protocol import PeerError


def test_real_time_never_exceeds_the_budget() -> None:
    guard = FloodGuard(0.0)
    assert all(guard.admit(i * 0.02) for i in range(90_000))
    assert guard.dropped == 0


def test_two_seconds_at_once_after_a_stall_are_fine() -> None:
    guard = FloodGuard(0.0)
    for i in range(500):
        assert guard.admit(i * 0.02)
    assert all(guard.admit(12.0) for _ in range(100))
    assert all(guard.admit(12.0 + i * 0.02) for i in range(500))


def test_ten_times_real_time_is_dropped_then_given_up() -> None:
    guard = FloodGuard(0.0)
    now = 0.0
    admitted = 0
    while guard.dropped < guard.patience:
        admitted += guard.admit(now)
        now += 0.002
    assert now < 2.0
    assert admitted <= 120 + 60 * now + 1
    with pytest.raises(PeerError, match="faster than real time"):
        [guard.admit(now) for _ in range(10)]


def test_what_is_admitted_never_runs_more_than_the_burst_ahead_of_the_clock() -> None:
    guard = FloodGuard(0.0, patience=1 << 30)
    admitted = 0
    for i in range(20_000):
        now = i * 0.001
        admitted += guard.admit(now)
        assert admitted <= 120 + 60 * now + 1


def test_bursts_far_apart_are_forgiven() -> None:
    guard = FloodGuard(0.0)
    for minute in range(20):
        for _ in range(300):
            guard.admit(minute * 60.0)
    assert guard.dropped == 20 * 180
