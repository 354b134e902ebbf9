"""A worker that is too slow while another opens its session: whatever becomes of either, the caller hears all, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.resume import PATIENCE
from model.wire import FRAME_SECONDS, AgentFrame, AgentText, CallerText, Done, History, Output, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import FreezingWorker, freezing
from tests.gateway.memory_line import MemoryLeg
from tests.gateway.token_workers import Caller
from tests.gateway.worker_pools import until
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

GREETING = " ".join(f"w{number}" for number in range(40))
TURNS = 35
"""The frame with which the slow worker does what it does: it is 1.28 s behind, and another asked, before frame 33."""
FRAMES = 110
PACES = {"recovers": 0.03, "recovers a little": 0.06}
"""Seconds that it takes for a frame from then on."""


class First(TokenSession):
    """Answers at 70 % of real time, up to a frame."""

    def __init__(self, fate: str, worker: FreezingWorker, turns: int) -> None:
        model = TokenModel()
        model.say(GREETING)
        super().__init__(model)
        self._fate, self._worker, self._turns = fate, worker, turns

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            if not isinstance(output, AgentFrame) or output.index < self._turns:
                await asyncio.sleep(0.08 / 0.7 if isinstance(output, AgentFrame) else 0.0)
                yield output
                continue
            match self._fate:
                case "hangs":
                    self._worker.freeze()
                case "dies":
                    self._worker.kill()
                case "breaks the protocol":
                    yield AgentFrame(output.index + 1, output.pcm, output.tokens)
                case "transfer":
                    yield output
                    yield Done(output.index, "transfer", "person")
                    return
            await asyncio.sleep(PACES.get(self._fate, 0.08 / 0.7))
            yield output


class FirstEngine(TokenEngine):
    worker: FreezingWorker

    def __init__(self, fate: str, turns: int) -> None:
        super().__init__()
        self._fate, self._turns = fate, turns

    async def open(self, request: SessionRequest) -> TokenSession:
        return First(self._fate, self.worker, self._turns)


class DyingEngine(TokenEngine):
    """Its worker dies while it opens a session."""

    worker: FreezingWorker

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        await asyncio.sleep(0.2)
        self.worker.kill()
        return await super().resume(request, history)


class RefusingEngine(TokenEngine):
    """Refuses after so long, each time."""

    def __init__(self, after: float) -> None:
        super().__init__()
        self._after = after

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        await asyncio.sleep(self._after)
        raise ZeroDivisionError("a fault of the engine")


SECONDS: dict[str, Callable[[], TokenEngine]] = {
    "opens at once": TokenEngine,
    "opens late": lambda: TokenEngine(open_seconds=0.9),
    "refuses": lambda: RefusingEngine(0.4),
    "dies while it opens": DyingEngine,
}


def called(fate: str, second: TokenEngine, turns: int = TURNS) -> Caller:
    """A whole call, with what its caller must hear whatever happens."""

    async def scenario() -> Caller:
        engine = FirstEngine(fate, turns)
        async with freezing(8, 4, engines=[engine, second]) as (workers, _, calls):
            engine.worker = workers[0]
            if isinstance(second, DyingEngine):
                second.worker = workers[1]
            caller = Caller(greeting=GREETING)
            try:
                async with asyncio.timeout(20):
                    await caller.call(calls, FRAMES)
            except TimeoutError:  # a call of `gateway.call` ends itself when it is owed 2 s
                caller.lost = "the worker hangs, and there is no other"
            workers[0].thaw()
            await until(lambda: not any(worker.server.slots.active for worker in workers))
            return caller

    caller = virtual_time.run(scenario())
    said = [output for output in caller.heard if isinstance(output, AgentFrame | AgentText)]
    expected = [output for output in caller.expected() if isinstance(output, AgentFrame | AgentText)]
    assert said == expected[: len(said)], "each frame once and in order, and each word with its own"
    texts = [output.text for output in caller.heard if isinstance(output, CallerText)]
    assert len(texts) == len(set(texts))
    return caller


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("fate", [*PACES, "stays slow", "hangs", "dies", "breaks the protocol", "transfer"])
def test_whatever_becomes_of_two_workers_the_caller_hears_all_that_is_said_once(fate: str, second: str) -> None:
    caller = called(fate, SECONDS[second]())
    done = [output for output in caller.heard if isinstance(output, Done)]
    if fate == "transfer" and second != "opens at once":
        assert done == [Done(TURNS, "transfer", "person")]
        assert caller.heard.index(done[0]) > caller.heard.index(caller.frames[TURNS])
        assert not caller.missed
        return
    assert not done
    if fate in ("hangs", "dies") and second in ("refuses", "dies while it opens"):
        assert caller.lost, "nobody is left"
        return
    caller.check()
    assert max(later - sooner for sooner, later in pairwise(caller.times)) < 2
    if fate in PACES and second != "opens at once":
        assert not caller.missed
        assert not caller.changes


@pytest.mark.parametrize("after", [0.0, 0.2, 0.4, 0.7, 1.2])
def test_a_worker_that_has_recovered_keeps_its_call_whenever_the_other_refuses(after: float) -> None:
    caller = called("recovers", RefusingEngine(after), turns=38)
    caller.check()
    assert not caller.missed
    assert not caller.changes


@pytest.mark.parametrize("opens", [0.0, 0.2, 0.4, 0.7, 1.2])
def test_a_worker_that_stays_slow_is_left_for_another_before_it_owes_too_much(opens: float) -> None:
    asked: list[int] = []

    class AskedEngine(TokenEngine):
        async def resume(self, request: SessionRequest, history: History) -> TokenSession:
            assert request.resume is not None
            asked.append(request.resume.missed)
            return await super().resume(request, history)

    caller = called("stays slow", AskedEngine(opens))
    caller.check()
    (change,) = caller.changes
    assert asked == ([16] if opens < 0.32 else [16, 20])
    assert change.missed == len(caller.missed) == asked[-1] <= PATIENCE / FRAME_SECONDS
    assert max(later - sooner for sooner, later in pairwise(caller.times)) < opens + 0.4


@pytest.mark.parametrize("turns", [33, 35, 39])
def test_a_transfer_is_not_lost_while_another_worker_opens_the_session(turns: int) -> None:
    async def scenario() -> tuple[str, Call]:
        engine = FirstEngine("transfer", turns)
        async with freezing(8, 4, engines=[engine, TokenEngine(open_seconds=0.9)]) as (workers, _, calls):
            engine.worker = workers[0]
            plan = CallPlan("p", "v", SessionRequest("c1"), transfers={"person": "+15550123"})
            call = Call(MemoryLeg(14.0), calls, plan)
            reason = await call.run()
            await until(lambda: not any(worker.server.slots.active for worker in workers))
            return reason, call

    reason, call = virtual_time.run(scenario())
    assert (reason, call.worker_changes) == ("transfer", [])
