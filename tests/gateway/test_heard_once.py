"""What a caller says while another worker opens the session is told once, by the worker that has it then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from gateway.worker_client import RESUME_READY_TIMEOUT
from model.wire import CallerFrame, CallerText, History, Output, SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import FreezingWorker, Told, call, freezing
from tests.gateway.token_workers import Caller
from tests.gateway.worker_pools import until
from tests.token_model import TokenModel
from tests.token_worker import TokenEngine, TokenSession

HANGS, TELLS = 30, 37
"""Frames: from the first on the engine answers none for a while, with the second its transcriber tells a text."""


class HangingSession(TokenSession):
    """Its engine hangs until frame `back`, its transcriber does not."""

    def __init__(self, back: int) -> None:
        super().__init__(TokenModel())
        self._back = back
        self._waiting: list[CallerFrame] = []

    def push(self, frame: CallerFrame) -> None:
        if HANGS <= frame.index < self._back:
            self._waiting.append(frame)
        else:
            for one in [*self._waiting, frame]:
                super().push(one)
            self._waiting.clear()
        if frame.index == TELLS:
            self._model.heard = 25
            self._pending.append(CallerText(0, 25, "c0"))
            self._wake.set()


class HangingEngine(TokenEngine):
    def __init__(self, back: int) -> None:
        super().__init__()
        self._back = back

    async def open(self, request: SessionRequest) -> TokenSession:
        return HangingSession(self._back)


class OtherWindows(TokenSession):
    """Tells of each text that it ends a frame later."""

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            yield replace(output, end=output.end + 1) if isinstance(output, CallerText) else output


class OtherEngine(TokenEngine):
    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        session = await super().resume(request, history)
        return OtherWindows(session._model)


def calling(back: int, frames: int) -> Caller:
    async def scenario() -> Caller:
        engines = [HangingEngine(back), OtherEngine(open_seconds=0.7)]
        async with freezing(8, 4, engines=engines) as (_, _, calls):
            return await Caller().call(calls, frames)

    caller = virtual_time.run(scenario())
    assert not caller.lost
    return caller


def test_what_the_worker_before_told_is_not_forgotten_when_the_call_ends_while_another_opens() -> None:
    async def scenario() -> Told:
        engines = [HangingEngine(1_000), OtherEngine(open_seconds=0.7)]
        async with freezing(8, 4, engines=engines) as (_, _, calls):
            return await call(calls, 0.08 * (TELLS + 2), {})

    told = virtual_time.run(scenario())
    assert not told.call.worker_changes
    said = [one.text for one in told.call.transcript.utterances() if one.speaker == "caller"]
    assert " ".join(said).split() == ["c0", "c25"], "and last words"


@pytest.mark.parametrize(("loses", "end"), [(FreezingWorker.kill, 4.3), (FreezingWorker.freeze, 4.7)])
@pytest.mark.parametrize(("opens", "words"), [(0.7, ["c0", "c25", "c50"]), (30.0, ["c0"])])
def test_a_worker_that_was_opening_the_session_as_the_call_ended_says_what_its_caller_said(
    loses: Callable[[FreezingWorker], None],
    end: float,
    opens: float,
    words: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> tuple[Told, float]:
        async with freezing(8, 4, engines=[TokenEngine(), TokenEngine(open_seconds=opens)]) as (
            (first, second),
            _,
            calls,
        ):
            told = await call(calls, end, {4: lambda: loses(first)})
            ended = asyncio.get_running_loop().time()
            await until(lambda: not second.server.slots.active)
            return told, ended

    told, ended = virtual_time.run(scenario())
    assert told.reason == "caller_hangup"
    said = [one.text for one in told.call.transcript.utterances() if one.speaker == "caller"]
    assert " ".join(said).split() == words
    assert ("it ended between two workers; what its caller said after 2.0 s" in caplog.text) == (opens > 1)
    assert ended < end + RESUME_READY_TIMEOUT + 1


@pytest.mark.parametrize(
    ("back", "frames", "changes"),
    [
        pytest.param(1_000, 80, 1, id="handed-over"),
        pytest.param(39, 80, 0, id="kept"),
    ],
)
def test_what_the_worker_before_tells_while_another_opens_is_not_told_twice(
    back: int, frames: int, changes: int
) -> None:
    caller = calling(back, frames)
    assert len(caller.changes) == changes
    texts = [output.text for output in caller.heard if isinstance(output, CallerText)]
    assert texts[:2] == ["c0", "c25"][: len(texts)]
    assert len(set(texts)) == len(texts) > 0
