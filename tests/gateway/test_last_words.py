"""What a caller is still saying as the line goes down: a whole call in this process, its engine and recogniser real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from gateway import worker_client
from gateway.audio import CARRIER_FRAME_BYTES
from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.phone.script import CALLERS
from gateway.phone.sound import read_wav
from gateway.pool import WorkerPool
from gateway.settings import load_settings
from model import transcriber
from model.engine_options import EngineOptions
from model.personaplex import PersonaplexEngine
from model.server import WorkerServer
from model.transcriber import WhisperPool
from model.wire import SessionRequest
from tests.gateway.memory_line import MemoryLeg
from tests.gateway.personaplex_workers import softly_speaking
from tests.model.tiny_folder import VOICE, make_folder

pytestmark = pytest.mark.anyio

HANG = 60.0
"""Seconds that nothing takes, on a machine that is busy with other things."""
GOODBYE = slice(11 * 8_000, 14 * 8_000)
"""Of `bank-hours.wav`: "Great, thanks, bye.", and silence around it."""
REQUEST = SessionRequest("c1", prompt="you are a kind teacher", voice=VOICE)
PLAN = CallPlan("teacher", "1", REQUEST, engine_silence_seconds=HANG)


def until_the_last_word() -> list[bytes]:
    """20 ms frames of a caller who hangs up without a moment of silence."""
    pcm = np.frombuffer(read_wav(CALLERS / "bank-hours.wav"), "<i2")[GOODBYE]
    pcm = pcm[: int(np.flatnonzero(np.abs(pcm) > 300)[-1])]
    sound = pcm.tobytes()
    return [
        sound[at : at + CARRIER_FRAME_BYTES] for at in range(0, len(sound) - CARRIER_FRAME_BYTES, CARRIER_FRAME_BYTES)
    ]


class SpeakingLeg(MemoryLeg):
    async def listen(self, heard: Callable[[bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number, frame in enumerate(until_the_last_word()):
            await asyncio.sleep(max(0.0, start + 0.02 * number - loop.time()))
            heard(frame)


@asynccontextmanager
async def worker(weights: Path, pool: WhisperPool) -> AsyncIterator[WorkerServer]:
    engine = PersonaplexEngine(EngineOptions(str(weights), device="cpu", slots=1), pool)
    server = WorkerServer(engine, "127.0.0.1:0", capacity=1)
    async with asyncio.timeout(120):
        await engine.start()
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
            await engine.stop()


async def test_what_a_caller_says_as_they_hang_up_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcriber, "FINISH_SECONDS", HANG)
    monkeypatch.setattr(worker_client, "LAST_WORDS_TIMEOUT", HANG)
    weights = softly_speaking(make_folder(tmp_path / "weights", context=3000))
    async with worker(weights, WhisperPool(processes=1)) as server:
        pool = WorkerPool(load_settings(workers=server.url))
        await pool.start()
        try:
            call = Call(SpeakingLeg(0), pool, PLAN)
            assert await call.run() == "caller_hangup"
        finally:
            await pool.stop()
    said = [one.text for one in call.transcript.utterances() if one.speaker == "caller"]
    assert len(said) == 1
    assert said[0].lower().endswith("bye.")
