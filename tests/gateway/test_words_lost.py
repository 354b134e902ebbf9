"""What a caller said and nobody wrote down, for the only worker was lost: the call's record tells from when on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from gateway.call import Call
from gateway.call_plan import CallPlan
from model.echo import EchoEngine
from model.wire import FRAME_SECONDS, SessionRequest
from model.worker_engine import WorkerEngine
from tests import virtual_time
from tests.gateway.freezing_workers import FreezingWorker, drain, freezing, revive
from tests.gateway.memory_line import MemoryLeg
from tests.gateway.told import Told
from tests.token_model import HEARD_EVERY
from tests.token_worker import TokenEngine

LOST = 4.0
"""Seconds at which the worker is lost: of its caller's 50 frames it has told the first 25."""


def called(
    loses: Callable[[FreezingWorker], object], back: float | None = None, engine: WorkerEngine | None = None
) -> tuple[str, list[str], list[object]]:
    """The end reason, the caller's words, and after which second the record says that they are missing."""

    async def scenario() -> tuple[str, list[str], list[object]]:
        told = Told()
        async with freezing(4, engines=[engine or TokenEngine()], within=8) as ((worker,), _, calls):
            loop = asyncio.get_running_loop()
            loop.call_later(LOST, lambda: loses(worker))
            if back is not None:
                loop.call_later(LOST + back, revive, worker)
            leg = MemoryLeg(14.0)
            call = Call(leg, calls, CallPlan("p", "v", SessionRequest("c1")), None, told)
            reason = await call.run()
            leg.on_digit = None
        said = {one.number: one.text for one in told.utterances if one.speaker == "caller"}
        missing = [data["after"] for _, kind, data in told.events if kind == "unheard"]
        assert [call.counters.caller_unheard_after] == (missing or [None])
        return reason, " ".join(said.values()).split(), missing

    return virtual_time.run(scenario())


@pytest.mark.parametrize("loses", [FreezingWorker.kill, FreezingWorker.freeze, drain])
def test_the_record_tells_from_when_on_the_caller_was_not_heard(loses: Callable[[FreezingWorker], object]) -> None:
    reason, words, missing = called(loses)
    assert (reason, words) == ("worker_lost", ["c0"])
    assert missing == [HEARD_EVERY * FRAME_SECONDS]


@pytest.mark.parametrize("loses", [FreezingWorker.kill, FreezingWorker.freeze, drain])
def test_so_it_does_of_an_engine_that_cannot_go_on_elsewhere(loses: Callable[[FreezingWorker], object]) -> None:
    assert called(loses, engine=EchoEngine()) == ("worker_lost", [], [0.0])


def test_of_a_call_that_its_worker_heard_to_the_end_it_says_nothing() -> None:
    assert called(lambda worker: None)[2] == called(lambda worker: None, engine=EchoEngine())[2] == []


def test_a_worker_that_is_started_again_in_time_hears_it_all() -> None:
    reason, words, missing = called(FreezingWorker.kill, back=3.0)
    assert (reason, missing) == ("caller_hangup", [])
    assert words == [f"c{start}" for start in range(0, 175, HEARD_EVERY)]
