"""An engine's process that says nothing: who is refused, when it is killed, and when it was we who did not listen.

The process is played by the test. A real one that stands still is in `test_personaplex`.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from model import personaplex
from model.capacity import MOST_SLOTS
from model.engine_watch import HUNG_SECONDS, LOOK_SECONDS
from model.engine_wire import CONTROL, RING_LEAST, RING_SLOT, ring_size
from model.personaplex import BEHIND, QUIET
from model.session import SessionEnded
from model.wire import FRAME_BYTES, AgentFrame, CallerFrame, Error, History, Ready, Resume
from tests.model.played_engine import READY, PlayedEngine, played
from tests.model.rig import request

pytestmark = pytest.mark.anyio

SOUND = bytes(FRAME_BYTES)


def listen_in_vain(engine: PlayedEngine, begin: float, seconds: float) -> float:
    """Look as often as is done for so long: when that was over."""
    for _ in range(round(seconds / LOOK_SECONDS)):
        begin += LOOK_SECONDS
        engine.look(begin)
    return begin


async def test_a_session_that_is_being_opened_when_the_engine_falls_silent_is_refused_and_so_is_every_new_one() -> None:
    async with played() as engine:
        opening, held = await engine.opens(request("held"))
        engine.says(held, Ready("personaplex"))
        session = await opening
        opening, _ = await engine.opens(request("waits"))
        now = listen_in_vain(engine, time.monotonic(), 0.4 * HUNG_SECONDS)
        for refused in (opening, engine.open(request("comes"))):
            with pytest.raises(SessionEnded) as ended:
                await refused
            assert ended.value.error == Error("full", QUIET)
        assert engine.refusal == QUIET
        engine.says(held, AgentFrame(0, SOUND))
        assert await anext(session.outputs()) == AgentFrame(0, SOUND)
        engine.look(now)
        assert engine.refusal == ""


async def test_an_engine_that_is_behind_takes_no_other_call_and_loses_none_of_those_it_has() -> None:
    """As when many are resumed at once, each with half a megabyte, while it does something that takes long."""
    async with played() as engine:
        opening, held = await engine.opens(request("held"))
        engine.says(held, Ready("personaplex"))
        session = await opening
        assert engine._channel is not None
        engine._channel.put(held + 1, bytes(7 * RING_LEAST // 10))
        history = History(b"", bytes(RING_LEAST // 10 // FRAME_BYTES * FRAME_BYTES))
        resume = Resume(caller_frames=len(history.caller_pcm) // FRAME_BYTES)
        with pytest.raises(SessionEnded) as ended:
            await engine.resume(request("comes", resume=resume), history)
        assert ended.value.error == Error("full", BEHIND)
        for index in range(100):
            session.push(CallerFrame(index, SOUND))
        while engine.theirs.get() is not None:
            pass
        opening = asyncio.create_task(engine.resume(request("comes again", resume=resume), history))
        await asyncio.sleep(0)
        asked = engine.theirs.get()
        assert asked is not None
        assert asked[0] > held, "and it heard nothing of the one before"
        engine.says(asked[0], Ready("personaplex"))
        await opening


def test_a_channel_is_large_enough_for_all_calls_that_an_engine_may_choose_to_hold() -> None:
    assert ring_size(0) == ring_size(MOST_SLOTS) == MOST_SLOTS * RING_SLOT
    assert ring_size(1) == RING_LEAST


async def test_our_own_standstill_is_not_held_against_the_engine() -> None:
    """As after a machine's suspension: by our clock a day has passed in which nothing was heard."""
    async with played() as engine:
        engine.look(time.monotonic() + 86_400)
        assert engine.refusal == ""
        opening, number = await engine.opens(request("after it"))
        engine.says(number, Ready("personaplex"))
        await opening


async def test_what_came_while_we_could_not_look_is_heard_before_we_judge() -> None:
    async with played() as engine:
        now = listen_in_vain(engine, time.monotonic(), 0.95 * HUNG_SECONDS)
        engine.theirs.put(CONTROL, READY.to_json().encode())
        engine.look(now + HUNG_SECONDS)
        assert engine.refusal == ""


class Unkillable(subprocess.Popen[bytes]):
    """As a process that waits in a driver is."""

    def kill(self) -> None:
        """Changes nothing."""


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[bytes]]:
    """One that does not end when the engine's channel does."""
    with request.param([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        yield child
        subprocess.Popen.kill(child)


@pytest.mark.parametrize("process", [subprocess.Popen], indirect=True)
async def test_an_engine_that_is_silent_when_its_worker_is_stopped_is_not_waited_for(
    process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personaplex, "STOP_SECONDS", 60.0)
    async with played() as engine:
        engine._process = process
        listen_in_vain(engine, time.monotonic(), 0.4 * HUNG_SECONDS)
        async with asyncio.timeout(30):
            await engine.stop()
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("process", [Unkillable], indirect=True)
async def test_a_process_that_cannot_be_killed_keeps_neither_calls_nor_the_worker(
    process: Unkillable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(personaplex, "STOP_SECONDS", 0.05)
    async with played() as engine:
        engine._process = process
        opening, number = await engine.opens(request("held"))
        engine.says(number, Ready("personaplex"))
        session = await opening
        listen_in_vain(engine, time.monotonic(), HUNG_SECONDS + 2 * LOOK_SECONDS)
        with pytest.raises(SessionEnded) as ended:
            await anext(session.outputs())
        assert ended.value.error.code == "draining", "the gateway takes it elsewhere"
        assert await engine.lost() == "the engine's process has said nothing for 10 s and was killed"
        await engine.stop()
        assert f"the engine's process {process.pid} has been killed and does not end" in caplog.text
        assert process.poll() is None
