"""The clock of all calls: it keeps time, spreads calls over its phases, and outlives one that breaks."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from gateway.rtp.ticker import PHASES, TICK, Ticker
from tests.virtual_time import run as run_virtually


class Ticks:
    def __init__(self) -> None:
        self.times: list[float] = []
        self.sent: list[float] = []
        self.skipped = 0
        self.breaks = 0

    def send_due(self, now: float) -> None:
        self.sent.append(now)

    def tick(self, now: float) -> None:
        self.times.append(now)
        assert self.sent[-1] == now

    def skip(self, ticks: int) -> None:
        self.skipped += ticks

    def broke(self) -> None:
        self.breaks += 1


def test_an_hour_of_ticks_does_not_drift() -> None:
    async def an_hour() -> None:
        ticker, calls = Ticker(), [Ticks(), Ticks()]
        for call in calls:
            ticker.add(call)
        await asyncio.sleep(3_600)
        for call in calls:
            ticker.remove(call)
        for call in calls:
            assert abs(len(call.times) - 3_600 / TICK) <= 1
            assert call.times[-1] - call.times[0] == pytest.approx((len(call.times) - 1) * TICK, abs=1e-6)
            assert call.skipped == 0
        before = len(calls[0].times)
        await asyncio.sleep(1)
        assert len(calls[0].times) == before

    run_virtually(an_hour())


def test_late_ticks_are_made_up_for_and_a_long_stall_is_left_out() -> None:
    async def stalls() -> None:
        loop = asyncio.get_running_loop()
        ticker, call = Ticker(), Ticks()
        ticker.add(call)
        await asyncio.sleep(0.1)
        selector = loop._jumping  # type: ignore[attr-defined]
        selector.elapsed += 0.15
        await asyncio.sleep(0.05)
        assert call.skipped == 0
        assert np.diff(call.times) == pytest.approx(TICK)
        selector.elapsed += 5
        await asyncio.sleep(0.05)
        assert call.skipped == ticker.skipped > 200
        assert len(call.times) + call.skipped == pytest.approx(5.35 / TICK, abs=2)
        ticker.remove(call)

    run_virtually(stalls())


def test_calls_are_spread_over_the_phases() -> None:
    async def many() -> None:
        ticker, calls = Ticker(), [Ticks() for _ in range(2 * PHASES)]
        for call in calls:
            ticker.add(call)
        await asyncio.sleep(2 * TICK)
        for call in calls:
            ticker.remove(call)
        phases = Counter(round(call.times[0] / TICK % 1, 3) % 1 for call in calls)
        assert list(phases.values()) == [2] * PHASES

    run_virtually(many())


def test_all_calls_of_a_phase_send_before_any_of_them_does_more() -> None:
    async def one_phase() -> None:
        order: list[str] = []

        class Noted(Ticks):
            def send_due(self, now: float) -> None:
                super().send_due(now)
                order.append("send")

            def tick(self, now: float) -> None:
                super().tick(now)
                order.append("rest")

        ticker, calls = Ticker(), [Noted() for _ in range(3 * PHASES)]
        for call in calls:
            ticker.add(call)
        await asyncio.sleep(5 * TICK)
        for call in calls:
            ticker.remove(call)
        assert len(order) >= 6 * PHASES
        assert order == ["send", "send", "send", "rest", "rest", "rest"] * (len(order) // 6)

    run_virtually(one_phase())


def test_a_call_may_end_inside_a_tick() -> None:
    class Last(Ticks):
        def __init__(self, ticker: Ticker) -> None:
            super().__init__()
            self._ticker = ticker

        def tick(self, now: float) -> None:
            super().tick(now)
            self._ticker.remove(self)

    async def once() -> None:
        ticker = Ticker()
        last, other = Last(ticker), Ticks()
        for call in (last, other):
            ticker.add(call)
        await asyncio.sleep(0.1)
        ticker.remove(other)
        assert len(last.times) == 1
        assert len(other.times) >= 4

    run_virtually(once())


@pytest.mark.parametrize("part", ["send_due", "tick"])
def test_a_call_that_breaks_is_taken_off_the_clock_and_all_others_go_on(part: str) -> None:
    class Broken(Ticks):
        def send_due(self, now: float) -> None:
            super().send_due(now)
            self._break("send_due")

        def tick(self, now: float) -> None:
            super().tick(now)
            self._break("tick")

        def _break(self, here: str) -> None:
            if here == part:
                raise ZeroDivisionError

    async def half_a_second() -> None:
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))
        ticker, broken, others = Ticker(), Broken(), [Ticks() for _ in range(2 * PHASES)]
        begun = asyncio.get_running_loop().time()
        for call in (broken, *others):
            ticker.add(call)
        await asyncio.sleep(0.5)
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]
        assert len(broken.times) == (part == "tick")
        assert (len(broken.sent), broken.breaks) == (1, 1)
        assert min(len(call.times) for call in others) >= 23
        for call in others:
            assert np.diff(call.times) == pytest.approx(TICK), "they had the tick in which it broke"
            assert (call.sent, call.breaks) == (call.times, 0)
            assert call.times[0] < begun + 1.1 * TICK
        for call in others:
            ticker.remove(call)

    run_virtually(half_a_second())
