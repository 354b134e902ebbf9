"""The agent's own echo is not written down as the caller's words when a call goes on with another worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from gateway.audio import LINE_FRAME_BYTES
from gateway.history import SessionHistory
from model import transcriber
from model.engine_options import EngineOptions
from model.personaplex import PersonaplexEngine
from model.personaplex_session import PersonaplexSession
from model.transcriber import WhisperPool
from model.wav import read_wav
from model.wire import FRAME_BYTES, FRAME_SECONDS, MAX_HISTORY_CALLER_FRAMES, TOKENS_BYTES, SessionRequest

pytestmark = pytest.mark.anyio

WAV = Path(__file__).parents[2] / "gateway" / "phone" / "callers" / "bank-hours.wav"
HYBRID = 10 ** (-25 / 20)
DELAY = 3
"""Frames after which the echo comes back."""
FRAMES = MAX_HISTORY_CALLER_FRAMES + 15


def frames(rate: int, gain: float) -> list[bytes]:
    """Speech, 80 ms each."""
    wav = read_wav(WAV)
    sound: NDArray[np.float32] = np.asarray(soxr.resample(wav.pcm[0], wav.rate, rate), np.float32)
    pcm = (gain * 32_000 * sound).clip(-32_000, 32_000).astype("<i2").tobytes()
    size = 2 * round(rate * FRAME_SECONDS)
    return [pcm[at : at + size] for at in range(0, len(pcm) - size, size)][:FRAMES]


def talked(caller: Sequence[bytes], agent: Sequence[bytes]) -> SessionHistory:
    history = SessionHistory()
    for index, (line, pcm) in enumerate(zip(caller, agent, strict=True)):
        history.caller(line)
        history.agent(index, bytes(TOKENS_BYTES), pcm)
    return history


async def written(history: SessionHistory, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the next worker hears the caller say."""
    monkeypatch.setattr(transcriber, "FINISH_SECONDS", 60.0)
    pool = WhisperPool(processes=1)
    await pool.start()
    try:
        session = PersonaplexSession(PersonaplexEngine(EngineOptions("weights")), 1, pool)
        session.listen(SessionRequest("c1", resume=history.resume()), history.content())
        words = session.finish()
        return [] if words is None else [text.text async for text in words]
    finally:
        await pool.stop()


async def test_the_agents_echo_is_nobodys_words(monkeypatch: pytest.MonkeyPatch) -> None:
    agent, echo = frames(24_000, 1.0), frames(8_000, HYBRID)
    echo = [bytes(LINE_FRAME_BYTES)] * DELAY + echo[:-DELAY]
    assert await written(talked(echo, agent), monkeypatch) == []


async def test_a_caller_to_whom_the_agent_listened_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    caller = frames(8_000, 0.3)
    (text, *_) = await written(talked(caller, [bytes(FRAME_BYTES)] * len(caller)), monkeypatch)
    assert "saturday" in text.lower()
