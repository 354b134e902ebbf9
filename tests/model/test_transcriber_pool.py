"""The pool of transcribers: how many there are, and that one of them is only its own callers' loss."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from model import transcriber as transcriber_module
from model.bench.transcriber import frames_of
from model.transcriber import WhisperPool
from model.wire import FRAME_BYTES, CallerText

pytestmark = pytest.mark.anyio

WAV = Path(__file__).parents[2] / "gateway" / "phone" / "callers" / "bank-hours.wav"
SILENCE = bytes(FRAME_BYTES)
FRAMES = 100


@pytest.mark.parametrize(("cores", "processes"), [(None, 1), (1, 1), (5, 1), (6, 2), (16, 5), (24, 8), (64, 8)])
def test_there_is_a_process_for_every_three_cores_up_to_eight(
    cores: int | None, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert len(WhisperPool()._listeners) == processes


async def test_a_process_that_dies_takes_its_own_calls_words_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 3_600.0)
    pool, came = WhisperPool(processes=2), dict[int, asyncio.Event]()
    told: dict[int, list[CallerText]] = {session: [] for session in range(4)}

    def tell(session: int, text: CallerText) -> None:
        told[session].append(text)
        came[session].set()

    await pool.start()
    try:
        for session in told:
            came[session] = asyncio.Event()
            pool.open(session, 0, lambda text, session=session: tell(session, text))  # type: ignore[misc]
        doomed, other = pool._listeners
        of = {each: [one for one in told if pool._sessions[one].listener is each] for each in (doomed, other)}
        assert [len(calls) for calls in of.values()] == [2, 2]
        process = doomed._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        frames = frames_of(WAV)[:FRAMES]
        for session in told:
            for index, pcm in enumerate(frames):
                pool.hear(session, index, pcm, SILENCE)
        os.kill(process.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            for session in of[other]:
                for index in range(FRAMES, FRAMES + 25):
                    pool.hear(session, index, SILENCE, SILENCE)
                await came[session].wait()
            while not pool.dropped:  # noqa: ASYNC110  what another process does has no event to wait for
                await asyncio.sleep(0.02)
        assert pool.dropped == 2 * FRAMES
        assert [bool(told[session]) for session in of[doomed]] == [False, False]
        assert all("saturday" in told[session][0].text.lower() for session in of[other])
    finally:
        await pool.stop()
