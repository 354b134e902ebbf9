"""Callers' words: the real recogniser in its own process, and what happens when it is late or dies."""

from __future__ import annotations

import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soxr

from model import transcriber as transcriber_module
from model.transcriber import HUNG_SECONDS, MUCH_WAITS, TranscriberRefused, Waiting, WhisperPool
from model.utterances import LONGEST
from model.wav import read_wav
from model.wire import FRAME_BYTES, CallerText
from tests.model.transcribing import SILENCE, WAV, caller_frames, until

pytestmark = pytest.mark.anyio


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
        before, dropped = len(first), pool.dropped
        assert 0 < dropped < 2 * len(frames), "what lay in the process that died"
        start = 100 + len(frames)
        for index, pcm in enumerate(frames):
            pool.hear(1, start + index, pcm, SILENCE)
        await until(lambda: len(first) > before)
        assert first[-1].start >= start
        pool.close(1)
        pool.hear(1, 9999, SILENCE, SILENCE)
        assert pool.dropped == dropped
    finally:
        await pool.stop()
        await pool.stop()


async def test_a_process_that_cannot_be_started_again_is_tried_until_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a machine whose memory is used up: neither a program that ends at once nor none at all is for ever."""
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.01)
    pool = WhisperPool(processes=1)
    await pool.start()
    try:
        listener = pool._listeners[0]
        process, command = listener._process, listener._command
        failing = [["/nowhere/at/all"], [sys.executable, "-c", ""]]
        assert process is not None
        spawn = listener._spawn

        async def spawned() -> None:
            listener._command = failing.pop() if failing else command
            await spawn()

        monkeypatch.setattr(listener, "_spawn", spawned)
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not listener.up)
        await until(lambda: listener.up)
        tried = [record.getMessage() for record in caplog.records if "tried again" in record.getMessage()]
        assert len(tried) == 2
        assert "nowhere" in tried[1]
        said: list[CallerText] = []
        pool.open(1, 0, said.append)
        for index, pcm in enumerate(caller_frames()):
            pool.hear(1, index, pcm, SILENCE)
        await until(lambda: said)
    finally:
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


def test_a_process_hangs_only_if_much_waits_for_it_all_the_while() -> None:
    waiting, much = Waiting(), MUCH_WAITS + 1
    assert not waiting.hangs(much, 0.0), "all calls of a worker that was lost may come at once"
    assert not waiting.hangs(much, HUNG_SECONDS - 1)
    assert waiting.hangs(much, HUNG_SECONDS + 1)
    waiting.heard()
    assert not waiting.hangs(much, HUNG_SECONDS + 2)
    assert not waiting.hangs(MUCH_WAITS, 2 * HUNG_SECONDS)
    assert not waiting.hangs(much, 3 * HUNG_SECONDS)
    assert waiting.hangs(much, 4 * HUNG_SECONDS + 1)


async def test_each_time_that_a_process_cannot_keep_up_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transcriber_module, "BEHIND", 1 << 16)
    pool = WhisperPool(processes=1)
    await pool.start()
    try:
        listener = pool._listeners[0]
        pool.open(1, 0, lambda text: None)
        for times in (1, 2):
            process = listener._process
            assert process is not None
            os.kill(process.pid, signal.SIGSTOP)
            for index in range(200):
                pool.hear(1, index, SILENCE, SILENCE)
            assert caplog.text.count("transcription cannot keep up") == times
            os.kill(process.pid, signal.SIGCONT)
            await until(lambda: listener.waiting == 0)
            pool.hear(1, 200, SILENCE, SILENCE)
    finally:
        await pool.stop()


def until_the_last_word(frames: list[bytes]) -> list[bytes]:
    """A caller who hangs up without a moment of silence."""
    loud = [index for index, pcm in enumerate(frames) if np.abs(np.frombuffer(pcm, "<i2")).max() > 300]
    return frames[: loud[-1] + 1]


@pytest.fixture
async def pool(monkeypatch: pytest.MonkeyPatch, anyio_backend: str) -> AsyncIterator[WhisperPool]:
    """One process, which is started again at once, and is waited for at the end of a call however slow it is."""
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.0)
    monkeypatch.setattr(transcriber_module, "FINISH_SECONDS", 60.0)
    pool = WhisperPool(processes=1)
    await pool.start()
    yield pool
    await pool.stop()


def process_of(pool: WhisperPool) -> Process:
    process = pool._listeners[0]._process
    assert process is not None
    return process


async def test_what_a_caller_is_saying_when_the_call_ends_is_told_before_its_end_is(pool: WhisperPool) -> None:
    told: list[CallerText | int] = []
    pool.open(1, 0, told.append)
    pool.open(2, 0, lambda text: pytest.fail(f"whoever is not finished said {text}"))
    for index, pcm in enumerate(until_the_last_word(caller_frames())):
        pool.hear(1, index, pcm, SILENCE)
        pool.hear(2, index, pcm, SILENCE)
    pool.close(2)
    pool.finish(1, told.append)
    await until(lambda: told and isinstance(told[-1], int))
    *texts, missing = told
    assert missing == pool.dropped == 0
    assert [text.text.lower().endswith("bye.") for text in texts if isinstance(text, CallerText)][-1]
    assert not pool._sessions
    pool.finish(1, told.append)
    assert told[-1] == 0, "there is no such call any more"


def breathless() -> list[bytes]:
    """Twelve seconds of a caller who hardly draws a breath."""
    wav = read_wav(WAV.with_name("bank-declined.wav"))
    pcm = np.asarray(soxr.resample(wav.pcm[0], wav.rate, 24_000) * 32_000).clip(-32_000, 32_000).astype("<i2")
    pieces = pcm[: len(pcm) // 240 * 240].reshape(-1, 240)
    loud = np.sqrt((pieces.astype(np.float64) ** 2).mean(1)) > 260
    near = np.convolve(loud, np.ones(14), "full")[: len(loud)] > 0  # at most 140 ms of silence
    sound = pieces[near].tobytes()
    return [sound[at : at + FRAME_BYTES] for at in range(0, len(sound) - FRAME_BYTES, FRAME_BYTES)]


async def test_whoever_talks_without_a_pause_is_written_down_before_another_worker_would_miss_it(
    pool: WhisperPool,
) -> None:
    told: list[CallerText] = []
    over: list[int] = []
    pool.open(1, 0, told.append)
    frames = breathless()
    for index, pcm in enumerate(frames):
        pool.hear(1, index, pcm, SILENCE)
    pool.finish(1, over.append)
    await until(lambda: over)
    first, second = told
    assert first.end - first.start <= LONGEST * 0.4
    assert first.end - 1 <= second.start <= first.end
    words = f"{first.text} {second.text}".lower()
    assert all(word in words for word in ("declined", "going on", "cohen", "yes", "approve", "goodbye")), words


async def test_what_a_call_that_ended_is_not_waited_for_any_longer_is_counted(
    pool: WhisperPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcriber_module, "FINISH_SECONDS", 0.1)
    os.kill(process_of(pool).pid, signal.SIGSTOP)
    missing: list[int] = []
    pool.open(1, 0, lambda text: pytest.fail(f"a process that stands still said {text}"))
    for index in range(30):
        pool.hear(1, index, SILENCE, SILENCE)
    pool.finish(1, missing.append)
    await until(lambda: missing)
    assert missing == [30]
    assert pool.dropped == 30
    assert not pool._sessions


async def test_what_lay_in_a_process_that_dies_is_counted(pool: WhisperPool, caplog: pytest.LogCaptureFixture) -> None:
    process, missing = process_of(pool), list[int]()
    os.kill(process.pid, signal.SIGSTOP)
    pool.open(1, 0, lambda text: None)
    pool.open(2, 0, lambda text: None)
    for index in range(100):
        pool.hear(1, index, SILENCE, SILENCE)
        pool.hear(2, index, SILENCE, SILENCE)
    pool.finish(2, missing.append)
    assert pool.dropped == 0
    os.kill(process.pid, signal.SIGKILL)
    await until(lambda: pool.dropped)
    assert pool.dropped == 200
    assert missing == [100], "a call that waits for its last words does not wait for the next process"
    assert "200 frames of 2 callers" in caplog.text
    await until(lambda: pool._listeners[0].up)
    process = process_of(pool)
    for index in range(100, 120):
        pool.hear(1, index, SILENCE, SILENCE)
    pool.finish(1, missing.append)
    await until(lambda: len(missing) == 2)
    assert (missing[1], pool.dropped) == (0, 200)


async def test_what_a_process_has_heard_through_is_not_counted_when_it_dies(pool: WhisperPool) -> None:
    frames = until_the_last_word(caller_frames())
    pool.open(1, 0, lambda text: None)
    for index in range(240):
        pool.hear(1, index, SILENCE, SILENCE)
    for index, pcm in enumerate(frames[-20:]):
        pool.hear(1, 240 + index, pcm, SILENCE)
    listened = pool._sessions[1]
    await until(lambda: listened.sent == 260 and listened.settled > 200)
    os.kill(process_of(pool).pid, signal.SIGKILL)
    await until(lambda: pool.dropped)
    assert pool.dropped < 60


async def test_where_nothing_can_be_transcribed_the_start_says_what_to_do(tmp_path: Path) -> None:
    pool = WhisperPool(tmp_path / "absent", processes=1)
    with pytest.raises(TranscriberRefused, match=r"absent is not a folder.*or say --transcriber none"):
        await pool.start()
    await pool.stop()
