"""Callers' words: the real recogniser in its own process, and what happens when it is late or dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soxr

from model import transcriber as transcriber_module
from model.transcriber import TranscriberRefused, WhisperPool
from model.wav import read_wav
from model.wire import FRAME_BYTES, CallerText

pytestmark = pytest.mark.anyio

WAV = Path(__file__).parents[2] / "gateway" / "phone" / "callers" / "bank-hours.wav"
SILENCE = bytes(FRAME_BYTES)


def caller_frames() -> list[bytes]:
    """A caller who asks a bank for its hours, and two seconds of silence."""
    wav = read_wav(WAV)
    pcm = np.asarray(soxr.resample(wav.pcm[0], wav.rate, 24_000) * 32_000).clip(-32_000, 32_000).astype("<i2").tobytes()
    pcm += bytes(-len(pcm) % FRAME_BYTES)
    return [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)] + [SILENCE] * 25


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  what another process does has no event to wait for
            await asyncio.sleep(0.02)


async def test_what_a_caller_says_is_written_down_with_its_frames_and_goes_on_after_the_process_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.0)
    pool = WhisperPool(processes=1)
    await pool.start()
    try:
        frames = caller_frames()
        first: list[CallerText] = []
        pool.open(1, 100, first.append)
        pool.open(2, 0, lambda text: pytest.fail(f"the silent caller said {text}"))
        for index, pcm in enumerate(frames):
            pool.hear(1, 100 + index, pcm, SILENCE)
            pool.hear(2, index, SILENCE, SILENCE)
        await until(lambda: first)
        words = " ".join(text.text for text in first).lower()
        assert "open" in words or "hours" in words or "saturday" in words
        assert all(100 <= text.start < text.end <= 100 + len(frames) for text in first)
        assert all(text.confidence is not None and 0.3 < text.confidence <= 1.0 for text in first)
        assert all(text.start <= onset < text.end for text in first for onset in text.onsets)
        listener = pool._listeners[0]
        process = listener._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: listener.up and listener._process is not process)
        before = len(first)
        start = 100 + len(frames)
        for index, pcm in enumerate(frames):
            pool.hear(1, start + index, pcm, SILENCE)
        await until(lambda: len(first) > before)
        assert first[-1].start >= start
        pool.close(1)
        pool.hear(1, 9999, SILENCE, SILENCE)
        assert pool.dropped == 0
    finally:
        await pool.stop()
        await pool.stop()


async def test_a_process_that_is_far_behind_is_given_no_more_and_the_frames_are_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transcriber_module, "BEHIND", 1 << 16)
    pool = WhisperPool(processes=1)
    await pool.start()
    try:
        process = pool._listeners[0]._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        pool.open(1, 0, lambda text: None)
        for index in range(200):
            pool.hear(1, index, SILENCE, SILENCE)
        assert 0 < pool.dropped < 200
        assert caplog.text.count("transcription cannot keep up") == 1
    finally:
        await pool.stop()


async def test_where_nothing_can_be_transcribed_the_start_says_what_to_do(tmp_path: Path) -> None:
    pool = WhisperPool(tmp_path / "absent", processes=1)
    with pytest.raises(TranscriberRefused, match=r"absent is not a folder.*or say --transcriber none"):
        await pool.start()
    await pool.stop()
