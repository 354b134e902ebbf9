"""Turns: never too many at once, the most urgent first."""

from __future__ import annotations

import asyncio

from gateway.turns import Turns
from tests import virtual_time


def test_the_most_urgent_of_those_who_come_together_go_first_and_never_too_many_at_once() -> None:
    began: list[float] = []
    busy = most = 0

    async def work(turns: Turns, urgency: float) -> None:
        nonlocal busy, most
        async with turns.turn(urgency):
            began.append(urgency)
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(1)
            busy -= 1

    async def all_at_once() -> None:
        turns = Turns(2)
        await asyncio.gather(*(work(turns, urgency) for urgency in (5, 3, 1, 4, 2, 0)))

    virtual_time.run(all_at_once())
    assert began == [0, 1, 2, 3, 4, 5]
    assert most == 2


def test_who_is_cancelled_while_waiting_or_just_granted_takes_no_turn() -> None:
    async def scenario() -> list[str]:
        turns, done = Turns(1), []

        async def work(name: str) -> None:
            async with turns.turn(0):
                await asyncio.sleep(1)
                done.append(name)

        first, waiting, last = (asyncio.create_task(work(name)) for name in ("first", "waiting", "last"))
        await asyncio.sleep(0.5)
        waiting.cancel()
        await asyncio.gather(first, waiting, last, return_exceptions=True)
        granted = asyncio.create_task(work("granted"))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(granted.cancel)  # in the step in which it is granted
        await asyncio.gather(granted, return_exceptions=True)
        await work("next")
        return done

    assert virtual_time.run(scenario()) == ["first", "last", "next"]


def test_a_turn_that_fails_is_given_back() -> None:
    async def scenario() -> None:
        turns = Turns(1)
        for _ in range(3):
            try:
                async with turns.turn(0):
                    raise LookupError
            except LookupError:
                continue

    virtual_time.run(scenario())
