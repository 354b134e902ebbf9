"""The pool of transcribers: how many there are, and that one of them is only its own callers' loss."""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator

import pytest

from model import transcriber as transcriber_module
from model.bench.transcriber import frames_of
from model.transcriber import WhisperPool, _Listener
from model.wire import CallerText
from tests.model.transcribing import SILENCE, WAV, caller_frames, until

pytestmark = pytest.mark.anyio

FRAMES = 100


@pytest.fixture
async def pool(anyio_backend: str) -> AsyncIterator[WhisperPool]:
    """Two processes."""
    pool = WhisperPool(processes=2)
    await pool.start()
    yield pool
    await pool.stop()


def kill(listener: _Listener) -> Process:
    """The process that it had."""
    process = listener._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    return process


async def all_are_heard(pool: WhisperPool, said: dict[int, list[CallerText]], first: int = 0) -> None:
    """Every session's caller speaks, from frame `first` on, and is written down."""
    for session in said:
        for index, pcm in enumerate(caller_frames(), start=first):
            pool.hear(session, index, pcm, SILENCE)
    await until(lambda: all(said.values()))


@pytest.mark.parametrize(("cores", "processes"), [(None, 1), (1, 1), (5, 1), (6, 2), (16, 5), (24, 8), (64, 8)])
def test_there_is_a_process_for_every_three_cores_up_to_eight(
    cores: int | None, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert len(WhisperPool()._listeners) == processes


async def test_a_process_that_dies_takes_its_own_calls_words_and_no_others(
    pool: WhisperPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 3_600.0)
    came: dict[int, asyncio.Event] = {}
    told: dict[int, list[CallerText]] = {session: [] for session in range(4)}

    def tell(session: int, text: CallerText) -> None:
        told[session].append(text)
        came[session].set()

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


async def test_calls_go_to_a_process_that_lives_while_another_cannot_be_started_again(
    pool: WhisperPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.01)
    dead, living = pool._listeners
    said: dict[int, list[CallerText]] = {1: [], 2: [], 3: []}
    for session in (1, 2):
        pool.open(session, 0, said[session].append)
        pool.hear(session, 0, SILENCE, SILENCE)
    assert [pool._sessions[session].listener for session in (1, 2)] == [dead, living]
    command, dead._command = dead._command, ["/nowhere/at/all"]
    kill(dead)
    await until(lambda: not dead.up)
    pool.open(3, 0, said[3].append)
    assert pool._sessions[3].listener is living
    await until(lambda: pool._sessions[1].listener is living)
    await all_are_heard(pool, {session: said[session] for session in (1, 3)}, first=1)
    assert pool.dropped == 1, "what lay in the process that died"
    dead._command = command
    await until(lambda: dead.up)
    pool.open(4, 0, lambda text: None)
    assert pool._sessions[4].listener is dead, "it has the fewest"


async def test_a_process_that_is_started_again_at_once_hears_its_calls_and_no_others(
    pool: WhisperPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that no crash gives one process the calls of two for the rest of their time."""
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.0)
    said: dict[int, list[CallerText]] = {session: [] for session in range(4)}
    for session, texts in said.items():
        pool.open(session, 0, texts.append)
    before = {session: pool._sessions[session].listener for session in said}
    processes = [kill(listener) for listener in pool._listeners]
    await until(lambda: all(one.up and one._process not in processes for one in pool._listeners))
    assert {session: pool._sessions[session].listener for session in said} == before
    assert [listener.sessions for listener in pool._listeners] == [2, 2]
    assert pool.ended == 2
    await all_are_heard(pool, said)


async def test_calls_that_no_process_hears_are_heard_by_the_first_that_starts_again(
    pool: WhisperPool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.01)
    commands = [listener._command for listener in pool._listeners]
    for listener in pool._listeners:
        listener._command = ["/nowhere/at/all"]
        kill(listener)
    await until(lambda: not any(listener.up for listener in pool._listeners))
    said: dict[int, list[CallerText]] = {1: [], 2: []}
    for session, texts in said.items():
        pool.open(session, 0, texts.append)
    pool._listeners[1]._command = commands[1]
    await until(lambda: all(pool._sessions[session].listener.up for session in said))
    await all_are_heard(pool, said)


async def test_a_process_that_hangs_is_killed_and_its_calls_are_heard_again(
    pool: WhisperPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(transcriber_module, "RESTART_SECONDS", 0.0)
    said: dict[int, list[CallerText]] = {1: []}
    pool.open(1, 0, said[1].append)
    hung = pool._sessions[1].listener
    process = hung._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(transcriber_module, "HUNG_SECONDS", 0.1)
    index = 0

    def killed() -> bool:
        nonlocal index
        pool.hear(1, index, SILENCE, SILENCE)
        index += 1
        return hung._process is not process

    await until(killed)
    monkeypatch.setattr(transcriber_module, "HUNG_SECONDS", 60.0)
    assert "has said nothing for" in caplog.text
    assert pool.dropped > 0
    await until(lambda: hung.up)
    await all_are_heard(pool, said, first=index)
