"""Transcribers that cannot keep up, beside the calls they listen to: a real worker with tiny weights."""

from __future__ import annotations

import os
import signal

import pytest
from websockets.typing import Subprotocol

from model import transcriber as transcriber_module
from model import wire
from model.engine_options import EngineOptions
from model.folder import ModelFolder
from model.personaplex import PersonaplexEngine
from model.transcriber import WhisperPool
from model.wire import AgentFrame, CallerFrame, Ready
from tests.model.device import DEVICE
from tests.model.rig import caller_pcm, request
from tests.model.worker_connections import closed, connected, serving, told

pytestmark = pytest.mark.anyio

FRAMES = 80
HANG = 120.0


async def call(pool: WhisperPool | None, tiny: ModelFolder, stopped: bool = False) -> list[AgentFrame]:
    """A call of so many frames, each sent once the one before was answered."""
    engine = PersonaplexEngine(EngineOptions(str(tiny.path), device=DEVICE, slots=1), pool)
    offered = [Subprotocol(one) for one in wire.SUBPROTOCOLS]
    answers: list[AgentFrame] = []
    await engine.start()
    try:
        if pool is not None and stopped:
            process = pool._listeners[0]._process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)
        async with serving(engine) as server, connected(server, hang=HANG, subprotocols=offered) as connection:
            await connection.send(wire.encode_open(request()))
            assert isinstance(await told(connection), Ready)
            for index in range(FRAMES):
                await connection.send(wire.encode(CallerFrame(index, caller_pcm(0, index))))
                while len(answers) <= index:
                    if isinstance(message := await told(connection), AgentFrame):
                        answers.append(message)
            await connection.send(wire.encode(wire.Close()))
            assert await closed(connection) == 1000
    finally:
        await engine.stop()
    return answers


async def test_transcribers_that_stand_still_change_nothing_in_a_call(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcriber_module, "BEHIND", 1 << 16)
    monkeypatch.setattr(transcriber_module, "FINISH_SECONDS", 0.1)
    pool = WhisperPool(processes=1)
    beside = await call(pool, tiny, stopped=True)
    assert pool.dropped == FRAMES, "some were not taken, the others not answered when the call was over"
    assert [answer.index for answer in beside] == list(range(FRAMES))
    alone = await call(None, tiny)
    assert beside == alone
