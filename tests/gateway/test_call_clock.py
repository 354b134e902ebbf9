"""The call's clock alone: when its ticks come, by which frames it is set, and what it misses."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.audio import CARRIER_FRAME_BYTES, JitterBuffer
from gateway.call_clock import BEHIND_CARRIER, CallClock
from tests import virtual_time


def ticks(frames_at: Sequence[float], count: int = 5, stop_at: float = 0.0, stop: float = 0.0) -> list[float]:
    """When the first ticks came, of a line whose frames come at these times and a process that stands still once."""
    return [at for at, _ in ticked(frames_at, count, stop_at, stop)]


def ticked(frames_at: Sequence[float], count: int, stop_at: float, stop: float) -> list[tuple[float, float]]:
    async def run() -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualTimeLoop)
        line = JitterBuffer()
        clock = CallClock(line)

        def hear() -> None:
            line.push(bytes(CARRIER_FRAME_BYTES))
            clock.heard()

        for at in frames_at:
            loop.call_at(at, hear)
        if stop:
            loop.call_at(stop_at, loop.stand_still, stop)
        await clock.start()
        seen = []
        for _ in range(count):
            missed = await clock.tick()
            seen.append((loop.time(), missed))
            line.pop()
        return seen

    return virtual_time.run(run())


def line(seconds: float = 2.0, begin: float = 0.0) -> list[float]:
    return [begin + 0.02 * n for n in range(round(seconds / 0.02))]


def test_the_first_tick_waits_for_six_frames_and_the_others_follow_every_80_ms() -> None:
    assert ticks(line(begin=0.01)) == pytest.approx([0.115 + 0.08 * n for n in range(5)])


def test_a_silent_line_is_waited_for_a_fifth_of_a_second() -> None:
    assert ticks([], 2) == pytest.approx([0.325, 0.405])


def test_what_waited_comes_at_once_and_does_not_set_the_clock() -> None:
    burst = [0.013] * 3
    first = ticks(burst + line(begin=0.02))[0]
    assert round((first - 0.02) % 0.02, 6) == BEHIND_CARRIER


def test_a_clock_set_by_a_late_frame_is_moved_to_one_on_time() -> None:
    late = [0.012, 0.032, *line()[2:]]
    assert round(ticks(late)[0] % 0.02, 6) == BEHIND_CARRIER


def test_a_missed_tick_is_followed_by_early_ones_until_the_clock_is_right_again() -> None:
    seen = ticked(line(), 8, 0.3, 0.2)
    assert [at for at, _ in seen[:3]] == pytest.approx([0.105, 0.185, 0.265])
    assert [missed for _, missed in seen] == pytest.approx([0, 0, 0, 0.155, 0.075, 0, 0, 0])
    assert seen[-1][0] == pytest.approx(0.105 + 7 * 0.08)


def test_a_process_that_stood_still_sets_its_clock_anew() -> None:
    seen = ticked(line(), 8, 0.3, 30.0)
    assert [at for at, missed in seen if missed] == pytest.approx([30.3])
    assert seen[-1][0] == pytest.approx(30.3 + 4 * 0.08)


def test_frames_are_overdue_a_tick_after_theirs_and_those_of_a_burst_a_tick_apart() -> None:
    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualTimeLoop)
        clock, overdue = CallClock(JitterBuffer()), list[int]()
        await clock.start()
        for _ in range(5):
            await clock.tick()
        overdue.append(clock.overdue(5))
        loop.stand_still(0.4)
        for _ in range(5):
            await clock.tick()
        overdue.append(clock.overdue(5))
        for wait in (0.079, 0.002, 0.08, 0.08):
            await asyncio.sleep(wait)
            overdue.append(clock.overdue(5))
        return overdue

    assert virtual_time.run(run()) == [3, 0, 0, 1, 2, 3]
