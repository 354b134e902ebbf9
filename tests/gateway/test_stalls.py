"""Workers that stand still for a while, are slow, or are away: what their calls do, on a clock that jumps."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from functools import partial

import pytest

from gateway import pooled_worker
from gateway.history import SessionHistory
from gateway.worker_client import RemoteEngine
from model.wire import AgentFrame, History, Output, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import Told, call, freezing, revive
from tests.gateway.token_workers import Caller
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession


class StuckEngine(TokenEngine):
    """Goes on with no session."""

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        await asyncio.Event().wait()
        raise AssertionError


class SlowSession(TokenSession):
    """Answers at 70 % of real time, those before frame `until`."""

    def __init__(self, model: TokenModel, until: float = math.inf) -> None:
        super().__init__(model)
        self._until = until

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            if isinstance(output, AgentFrame) and output.index < self._until:
                await asyncio.sleep(0.08 / 0.7)
            yield output


class SlowEngine(TokenEngine):
    def __init__(self, until: float = math.inf) -> None:
        super().__init__()
        self._until = until

    async def open(self, request: SessionRequest) -> TokenSession:
        model = TokenModel()
        model.say(request.greeting)
        return SlowSession(model, self._until)

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        return SlowSession(TokenModel(request.resume, history))


# The worker comes back.


@pytest.mark.parametrize("seconds", [0.2, 0.32, 0.45, 1.5])
def test_a_stall_of_the_only_worker_is_a_gap_and_no_more(seconds: float) -> None:
    async def scenario() -> Caller:
        async with freezing(8) as ((worker,), pool, calls):
            caller = await Caller(actions={10: partial(worker.freeze, seconds)}).call(calls, 60)
            assert not pool.workers[0].hung
            return caller

    caller = virtual_time.run(scenario())
    caller.check()
    assert not caller.missed
    assert not caller.changes
    assert seconds <= caller.gap() < seconds + 0.2


def test_the_call_ends_when_the_only_worker_does_not_come_back() -> None:
    async def scenario() -> Told:
        async with freezing(8) as ((worker,), _, calls):
            return await call(calls, 30, {2: worker.freeze})

    told = virtual_time.run(scenario())
    assert told.reason == "worker_lost"
    assert 3.9 < told.call.seconds < 4.4


def test_of_calls_that_stall_together_those_for_whom_there_is_no_room_wait_on() -> None:
    async def scenario() -> list[Caller]:
        async with freezing(40, 5) as ((first, _), _, calls):
            callers = [Caller(seed) for seed in range(30)]
            callers[0].actions[10] = partial(first.freeze, 0.6)
            await asyncio.gather(*(caller.call(calls, 40) for caller in callers))
            return callers

    callers = virtual_time.run(scenario())
    for caller in callers:
        caller.check()
    assert sum(bool(caller.changes) for caller in callers) == 5


def test_a_worker_that_is_back_before_another_had_the_session_keeps_it() -> None:
    async def scenario() -> Caller:
        async with freezing(8, 4, engines=[TokenEngine(), TokenEngine(open_seconds=0.8)]) as (
            (first, second),
            pool,
            calls,
        ):
            caller = Caller(said={14: "I am still here."}, actions={10: partial(first.freeze, 0.7)})
            await caller.call(calls, 60)
            assert second.connections > 1, "it was asked"
            assert (second.server.slots.counts.sessions, second.server.slots.active) == (0, 0)
            assert not pool.workers[0].hung
            return caller

    caller = virtual_time.run(scenario())
    caller.check()
    assert not caller.missed
    assert not caller.changes


def test_a_slot_that_another_gateway_took_meanwhile_costs_a_stalled_call_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pooled_worker, "PROBE_SECONDS", 60.0)

    async def scenario() -> Caller:
        async with freezing(8, 1) as ((first, second), _, calls):
            theirs = await RemoteEngine(second.url).open(SessionRequest("theirs"))
            caller = await Caller(actions={10: partial(first.freeze, 0.7)}).call(calls, 60)
            assert second.server.slots.counts.refused == 1
            await theirs.close()
            return caller

    caller = virtual_time.run(scenario())
    caller.check()
    assert not caller.changes


def test_a_call_that_may_wait_is_silent_until_its_frozen_worker_is_back() -> None:
    async def scenario() -> Told:
        async with freezing(8, within=20) as ((worker,), _, calls):
            return await call(calls, 20, {2: partial(worker.freeze, 9)})

    told = virtual_time.run(scenario())
    assert told.reason == "caller_hangup"
    (change,) = told.call.worker_changes
    assert 8 < change.missed * 0.08 < 11
    assert "was silent for 0.24 s" in change.reason


# Another worker goes on.


def test_of_two_workers_that_hang_together_neither_is_waited_for_long() -> None:
    async def scenario() -> tuple[Caller, Told]:
        async with freezing(30, 20, 10) as (workers, pool, calls):
            freezes = [worker.freeze for worker in workers[:2]]
            caller = Caller(actions={10: lambda: [freeze() for freeze in freezes]})
            told = await asyncio.gather(caller.call(calls, 60), call(calls, 8, {}))
            assert pool.workers[1].hung
            return told

    caller, told = virtual_time.run(scenario())
    caller.check()
    (change,) = caller.changes
    assert change.worker == "worker-of-10"
    assert caller.gap() < 1.2
    assert told.reason == "caller_hangup"
    assert [one.worker for one in told.call.worker_changes] == ["worker-of-10"]


def test_a_worker_that_takes_the_connection_and_opens_nothing_is_not_waited_for_long() -> None:
    async def scenario() -> Told:
        async with freezing(30, 20, 10, engines=[TokenEngine(), StuckEngine()]) as (workers, pool, calls):
            told = await call(calls, 8, {2: workers[0].freeze})
            assert pool.workers[1].suspect
            return told

    told = virtual_time.run(scenario())
    assert told.reason == "caller_hangup"
    (change,) = told.call.worker_changes
    assert change.worker == "worker-of-10"
    assert change.missed * 0.08 < 2.4


def test_a_slow_worker_is_left_before_its_call_would_end() -> None:
    async def scenario() -> Told:
        async with freezing(8, 4, engines=[SlowEngine()]) as (_, pool, calls):
            told = await call(calls, 12, {})
            assert pool.workers[0].suspect
            return told

    told = virtual_time.run(scenario())
    assert told.reason == "caller_hangup"
    (change,) = told.call.worker_changes
    assert "was 1.3 s behind" in change.reason
    assert change.worker == "worker-of-4"
    assert 0 < change.missed <= 20


def test_a_slow_worker_answers_each_frame_once_until_another_does() -> None:
    async def scenario() -> Caller:
        async with freezing(8, 4, engines=[SlowEngine(), TokenEngine(open_seconds=0.5)]) as (_, _, calls):
            return await Caller().call(calls, 120)

    caller = virtual_time.run(scenario())
    assert not caller.lost
    assert [frame.index for frame in caller.frames] == list(range(120))
    (change,) = caller.changes
    assert caller.missed[-1] == change.index - 1
    assert len(caller.missed) == change.missed


@pytest.mark.parametrize("opens", [0.0, 0.3, 0.5, 0.9])
def test_nothing_is_said_twice_that_a_slow_worker_still_answers_while_another_opens(opens: float) -> None:
    """All words of the greeting, and each frame's sound, are those of one worker that missed what the slow one did."""
    greeting = " ".join(f"w{number}" for number in range(40))

    async def scenario() -> Caller:
        async with freezing(8, 4, engines=[SlowEngine(), TokenEngine(open_seconds=opens)]) as (_, _, calls):
            return await Caller(greeting=greeting).call(calls, 120)

    caller = virtual_time.run(scenario())
    caller.check()
    assert len(caller.changes) == 1


@pytest.mark.parametrize("after", [0.0, 0.2])
def test_a_slow_worker_whose_call_nobody_opened_after_all_goes_on_with_each_frame(after: float) -> None:
    asked: list[int] = []

    class RefusingEngine(TokenEngine):
        async def resume(self, request: SessionRequest, history: History) -> TokenSession:
            assert request.resume is not None
            asked.append(request.resume.missed)
            await asyncio.sleep(after)
            raise ZeroDivisionError("a fault of the engine")

    async def scenario() -> Caller:
        async with freezing(8, 4, engines=[SlowEngine(until=42), RefusingEngine()]) as (_, _, calls):
            return await Caller(greeting=" ".join(f"w{number}" for number in range(40))).call(calls, 90)

    caller = virtual_time.run(scenario())
    caller.check()
    assert asked == [16]
    assert not caller.changes
    assert not caller.missed


def test_a_call_does_not_go_round_among_workers_that_are_all_too_slow() -> None:
    async def scenario() -> Told:
        async with freezing(8, 4, engines=[SlowEngine(), SlowEngine()]) as (_, _, calls):
            return await call(calls, 30, {})

    told = virtual_time.run(scenario())
    assert told.reason == "worker_lost"
    assert len(told.call.worker_changes) == 1
    assert 9 < told.call.seconds < 13


def test_a_call_does_not_come_back_again_and_again_to_the_only_worker_that_is_too_slow() -> None:
    async def scenario() -> Told:
        async with freezing(8, engines=[SlowEngine()], within=8) as (_, _, calls):
            return await call(calls, 30, {})

    told = virtual_time.run(scenario())
    assert (told.reason, told.call.worker_changes) == ("worker_lost", [])
    assert 5 < told.call.seconds < 8


def test_of_many_calls_of_a_worker_that_hangs_none_ends_while_it_waits_for_its_turn() -> None:
    async def scenario() -> list[Told]:
        engines = [TokenEngine(), TokenEngine(open_seconds=0.7)]
        async with freezing(300, 150, engines=engines) as ((first, _), _, calls):
            asyncio.get_running_loop().call_later(2, first.freeze)
            return await asyncio.gather(*(call(calls, 8, {}) for _ in range(100)))

    told = virtual_time.run(scenario())
    assert {one.reason for one in told} == {"caller_hangup"}


# Nobody is there yet.


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> list[SessionHistory]:
    """The histories whose content was made, once for each time."""
    made, make = [], SessionHistory.content

    def counted(history: SessionHistory) -> History:
        made.append(history)
        return make(history)

    monkeypatch.setattr(SessionHistory, "content", counted)
    return made


def test_calls_that_wait_make_their_histories_once_there_is_a_worker(contents: list[SessionHistory]) -> None:
    async def scenario() -> list[Caller]:
        async with freezing(40, within=8) as ((worker,), _, calls):
            callers = [Caller(seed) for seed in range(30)]
            callers[0].actions[10] = worker.kill
            callers[0].actions[45] = lambda: made_before.append(len(contents))
            callers[0].actions[46] = partial(revive, worker)
            await asyncio.gather(*(caller.call(calls, 75) for caller in callers))
            return callers

    made_before: list[int] = []
    callers = virtual_time.run(scenario())
    assert made_before == [0]
    assert len(contents) == len(callers)
    for caller in callers:
        caller.check()
        assert len(caller.changes) == 1


@pytest.mark.parametrize("freed", [False, True])
def test_calls_that_wait_ask_a_full_worker_again_only_when_it_has_room(
    contents: list[SessionHistory], freed: bool
) -> None:
    async def scenario() -> list[Caller]:
        async with freezing(40, 1, within=8) as ((first, second), _, calls):
            theirs = await RemoteEngine(second.url).open(SessionRequest("theirs"))
            callers = [Caller(seed) for seed in range(30)]
            callers[0].actions[10] = first.kill
            if freed:
                callers[0].actions[50] = lambda: begun.append(asyncio.ensure_future(theirs.close()))
            await asyncio.gather(*(caller.call(calls, 150) for caller in callers))
            await theirs.close()
            return callers

    begun: list[asyncio.Future[None]] = []
    callers = virtual_time.run(scenario())
    assert sum(not caller.lost for caller in callers) == freed
    assert len(contents) <= 3 * len(callers)


def test_a_worker_that_was_away_for_long_is_noticed_within_a_second_by_a_call_that_waits() -> None:
    async def scenario() -> Caller:
        async with freezing(4, within=40) as ((worker,), _, calls):
            return await Caller(actions={10: worker.kill, 112: partial(revive, worker)}).call(calls, 150)

    caller = virtual_time.run(scenario())
    caller.check()
    assert 8 < caller.gap() < 8.16 + 1.3
