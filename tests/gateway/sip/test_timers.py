"""Timers under explicit time, and names drawn by lot."""

from __future__ import annotations

import random

from gateway.sip.chance import Chance
from gateway.sip.timers import Timer, TimerQueue


def test_timers_run_in_order_and_once() -> None:
    queue, ran = TimerQueue(), list[str]()
    queue.at(2.0, lambda now: ran.append(f"b{now}"))
    queue.at(1.0, lambda now: ran.append(f"a{now}"))
    queue.at(2.0, lambda now: ran.append(f"c{now}"))
    assert queue.next_time() == 1.0
    queue.run(0.5)
    assert ran == []
    queue.run(2.5)
    assert ran == ["a2.5", "b2.5", "c2.5"]
    assert queue.next_time() is None
    assert len(queue) == 0


def test_a_cancelled_timer_never_runs_and_does_not_count() -> None:
    queue, ran = TimerQueue(), list[float]()
    timers = [queue.at(float(number), ran.append) for number in range(1000)]
    for timer in timers[1:]:
        timer.cancel()
        timer.cancel()
    assert len(queue) == 1
    queue.run(2000.0)
    timers[0].cancel()
    assert ran == [2000.0]
    assert len(queue) == 0


def test_a_timer_may_set_and_cancel_others_while_it_runs() -> None:
    queue, ran = TimerQueue(), list[str]()
    later: list[Timer] = []

    def first(now: float) -> None:
        later[0].cancel()
        queue.at(now, lambda then: ran.append("second"))

    queue.at(1.0, first)
    later.append(queue.at(1.0, lambda now: ran.append("cancelled")))
    queue.run(1.0)
    assert ran == ["second"]


def test_names_are_never_the_same_and_numbers_within_bounds() -> None:
    chance = Chance(random.Random(1).randbytes)
    names = {chance.branch() for _ in range(1000)} | {chance.token() for _ in range(1000)}
    assert len(names) == 2000
    assert {chance.number(3) for _ in range(100)} == {0, 1, 2}
    drawn = [chance.between(2.1, 4.0) for _ in range(1000)]
    assert min(drawn) >= 2.1
    assert max(drawn) <= 4.0
    assert max(drawn) - min(drawn) > 1.5
