"""Calls whose engine refuses, dies or hangs, whose peer breaks its protocol, or that are cancelled: what is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.call import Call
from gateway.engine import EchoEngine, EchoSession, EngineFull, EngineLost
from gateway.recording.recorder import Recorder, RecordingPlan
from model.wire import (
    AgentFrame,
    Output,
    SessionRequest,
)
from tests import virtual_time
from tests.gateway.memory_line import PLAN, MemoryLeg, ScriptedEngine, place
from tests.gateway.told import Told


class RefusingEngine:
    def __init__(self, error: Exception) -> None:
        self.error = error

    async def open(self, request: SessionRequest) -> EchoSession:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EngineFull("full"), "busy"), (EngineLost("gone"), "worker_lost"), (RuntimeError("bug"), "failed")],
)
def test_an_engine_that_does_not_open_leads_to_the_fallback(error: Exception, reason: str) -> None:
    leg = MemoryLeg(seconds=30)
    outcome = place(leg, RefusingEngine(error)).outcome.result()
    assert (outcome.reason, outcome.fallback) == (reason, "+15550999")
    assert leg.hung_up == [reason]


class DyingSession(EchoSession):
    def __init__(self, dies_at: int, silently: bool) -> None:
        super().__init__()
        self.dies_at = dies_at
        self.silently = silently

    async def outputs(self) -> AsyncIterator[Output]:
        async for output in super().outputs():
            if isinstance(output, AgentFrame) and output.index >= self.dies_at:
                if self.silently:
                    await asyncio.Event().wait()
                raise EngineLost("the worker closed the connection")
            yield output


class DyingEngine:
    def __init__(self, silently: bool) -> None:
        self.silently = silently

    async def open(self, request: SessionRequest) -> DyingSession:
        return DyingSession(50, self.silently)


@pytest.mark.parametrize(("silently", "ends_at"), [(False, 4.2), (True, 6.2)])
def test_a_worker_that_dies_or_hangs_ends_the_call_with_its_reason(silently: bool, ends_at: float) -> None:
    leg = MemoryLeg(seconds=30)

    async def run() -> tuple[Call, float]:
        call = Call(leg, DyingEngine(silently), PLAN)
        await call.run()
        return call, asyncio.get_running_loop().time()

    call, ended = virtual_time.run(run())
    assert call.outcome.result().reason == "worker_lost"
    assert call.outcome.result().fallback == "+15550999"
    assert ended == pytest.approx(ends_at, abs=0.2)


def test_a_peer_that_breaks_its_protocol_ends_only_its_call() -> None:
    leg = MemoryLeg(seconds=1, broken=True)
    assert place(leg, EchoEngine()).outcome.result().reason == "protocol_error"


def test_a_cancelled_call_is_cleaned_up() -> None:
    engine, leg = ScriptedEngine(), MemoryLeg(seconds=100)

    async def run() -> Call:
        call = Call(leg, engine, PLAN)
        task = asyncio.create_task(call.run())
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return call

    assert virtual_time.run(run()).outcome.result().reason == "shutdown"
    assert leg.hung_up == ["shutdown"]
    assert engine.session.closed == 1


@pytest.mark.parametrize("step", ["session", "log book"])
def test_a_step_of_the_clean_up_that_fails_keeps_no_other_from_being_taken(tmp_path: Path, step: str) -> None:
    engine, leg = ScriptedEngine(), MemoryLeg(seconds=1)

    async def run() -> Call:
        async def fail() -> None:
            raise RuntimeError("a bug")

        class Failing(Told):
            def over(self) -> None:
                raise RuntimeError("a bug")

        if step == "session":
            engine.session.close = fail  # type: ignore[method-assign]
        recorder = Recorder(RecordingPlan(tmp_path))
        call = Call(leg, engine, PLAN, recorder, Failing() if step == "log book" else None)
        with pytest.raises(RuntimeError, match="a bug"):
            await call.run()
        assert recorder.close().done()
        return call

    assert virtual_time.run(run()).outcome.result().reason == "caller_hangup"
    assert leg.hung_up == ["caller_hangup"]
