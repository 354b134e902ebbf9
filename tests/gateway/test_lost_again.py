"""Workers that go one after the other: a call follows as long as it is not what breaks them, on a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from websockets.frames import CloseCode

from model.session import SessionEnded
from model.wire import AgentFrame, Error, History, Output, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import drain, freezing, revive
from tests.gateway.token_workers import Caller
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession


def test_a_call_follows_from_worker_to_worker_while_one_after_the_other_is_stopped() -> None:
    async def scenario() -> Caller:
        async with freezing(16, 8, 4, 2) as (workers, _, calls):
            stops = {20 * (1 + place): partial(drain, worker) for place, worker in enumerate(workers[:3])}
            return await Caller(actions={**stops}).call(calls, 80)

    caller = virtual_time.run(scenario())
    caller.check()
    assert [change.worker for change in caller.changes] == ["worker-of-8", "worker-of-4", "worker-of-2"]


@pytest.mark.parametrize("seconds", [0.2, 1, 2, 3, 4])
def test_a_call_goes_back_to_a_worker_that_has_only_just_come_back(seconds: float) -> None:
    async def scenario() -> Caller:
        async with freezing(8, 4) as ((first, second), _, calls):
            stopped = 250 + round(seconds / 0.08)
            actions: dict[int, Callable[[], object]] = {10: first.kill}
            actions |= {250: partial(revive, first), stopped: partial(drain, second)}
            return await Caller(actions=actions).call(calls, 350)

    caller = virtual_time.run(scenario())
    assert not caller.lost
    assert [frame.index for frame in caller.frames] == list(range(350))
    assert [change.worker for change in caller.changes] == ["worker-of-4", "worker-of-8"]
    assert caller.changes[-1].missed * 0.08 < 1.5


def test_a_worker_that_says_again_and_again_that_it_is_stopped_is_not_followed_for_ever() -> None:
    async def scenario() -> Caller:
        async with freezing(4, engines=[EndingEngine("the worker is being stopped")], within=8) as (_, _, calls):
            return await Caller().call(calls, 400)

    caller = virtual_time.run(scenario())
    assert "lost 3 times within 10 s" in caller.lost


def test_a_session_that_ends_every_engine_is_let_go() -> None:
    async def scenario() -> Caller:
        engines = [EndingEngine("the worker's engine has ended; it is started anew") for _ in range(4)]
        async with freezing(16, 8, 4, 2, engines=engines) as (_, _, calls):
            return await Caller().call(calls, 400)

    caller = virtual_time.run(scenario())
    assert "lost 3 times within 10 s" in caller.lost
    assert len(caller.changes) == 2


class EndingEngine(TokenEngine):
    """Ends each session at its tenth answer, with a `draining` that says so."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    async def open(self, request: SessionRequest) -> TokenSession:
        return _Ending(TokenModel(), self._message)

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        return _Ending(TokenModel(request.resume, history), self._message)


class _Ending(TokenSession):
    def __init__(self, model: TokenModel, message: str) -> None:
        super().__init__(model)
        self._left = 10
        self._message = message

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            yield output
            self._left -= isinstance(output, AgentFrame)
            if not self._left:
                raise SessionEnded(Error("draining", self._message), CloseCode.GOING_AWAY)
