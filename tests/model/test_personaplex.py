"""PersonaPlex behind a real worker, as processes: calls over the wire, and the end of either process."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from model import wire
from model.engine_options import EngineOptions, EngineRefused
from model.engine_wire import Heard, Told
from model.folder import ModelFolder
from model.personaplex import QUIET, PersonaplexEngine
from model.personaplex_session import PersonaplexSession
from model.transcriber import Finished, NoTranscriber
from model.wire import AgentFrame, CallerFrame, CallerText, Error, FromWorker, History, Ready, Resume, SessionRequest
from tests.model.device import DEVICE
from tests.model.rig import caller_pcm, request

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def worker(tiny: ModelFolder, *arguments: str) -> AsyncIterator[tuple[str, Process]]:
    """`callplex worker` with the tiny model, once it listens."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CALLPLEX_")}
    environment = {**plain, "CALLPLEX_ENGINE": "personaplex", "CALLPLEX_WEIGHTS_DIR": str(tiny.path)}
    options = ("--listen", "127.0.0.1:0", "--device", DEVICE, "--transcriber", "none", *arguments)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gateway.cli", "worker", *options, env=environment, cwd=ROOT, stdout=PIPE, stderr=PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield (json.loads(line)["listening"] if line else ""), process
    finally:
        if process.returncode is None:
            for engine in psutil.Process(process.pid).children():
                engine.kill()  # one that a test made stand still would not see that its worker is gone
            process.kill()
        await process.communicate()


@asynccontextmanager
async def session(url: str, asked: SessionRequest, history: History | None = None) -> AsyncIterator[ClientConnection]:
    """A session that is held, or whatever it was told first."""
    async with connect(url, subprotocols=[Subprotocol(wire.SUBPROTOCOL)], compression=None) as connection:
        await connection.send(wire.encode_open(asked))
        if asked.resume is not None:
            await connection.send(wire.encode_history(asked.resume, history or History()))
        yield connection


async def told(connection: ClientConnection) -> FromWorker:
    async with asyncio.timeout(20):
        return wire.decode_from_worker(await connection.recv())


async def answers(connection: ClientConnection, start: int, end: int) -> tuple[list[AgentFrame], str]:
    """Speak frames `start` up to `end`: what came back, frames and text."""
    frames: list[AgentFrame] = []
    text = ""
    for index in range(start, end):
        await connection.send(wire.encode(CallerFrame(index, caller_pcm(0, index))))
        frame, words = await answer(connection)
        frames.append(frame)
        text += words
    return frames, text


async def answer(connection: ClientConnection) -> tuple[AgentFrame, str]:
    """The agent's next frame, and the text before it."""
    text = ""
    while not isinstance(message := await told(connection), AgentFrame):
        text += message.text if isinstance(message, wire.AgentText) else ""
    return message, text


async def test_calls_talk_move_and_are_refused_and_all_end_when_the_engines_process_is_killed(
    tiny: ModelFolder,
) -> None:
    async with worker(tiny, "--slots", "2") as (url, process):
        asked = request("first", greeting="hello")
        async with session(url, asked) as first:
            assert isinstance(await told(first), Ready)
            begun, text = await answers(first, 0, 12)
            assert [frame.index for frame in begun] == list(range(12))
            assert text.strip().startswith("hello")
            resume = Resume(0, 12, 12, 0)
            history = History(
                b"".join(frame.tokens for frame in begun), b"".join(caller_pcm(0, index) for index in range(12))
            )
            async with session(url, replace(asked, resume=resume), history) as second:
                assert isinstance(await told(second), Ready)
                (here, _), (there, _) = await answers(first, 12, 16), await answers(second, 12, 16)
                assert [frame.tokens for frame in here] == [frame.tokens for frame in there]
                async with session(url, request("third")) as third:
                    assert await told(third) == Error("full", "all 2 slots of this worker are taken")
                await asyncio.to_thread(_figures, url)
                (engine,) = psutil.Process(process.pid).children()
                for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal and a service manager send to all
                    engine.send_signal(number)
                assert len((await answers(first, 16, 18))[0]) == 2
                engine.send_signal(signal.SIGKILL)
                for connection in (first, second):
                    ended = await told(connection)
                    assert isinstance(ended, Error)
                    assert ended.code == "draining", "the gateway takes it elsewhere"
                    with pytest.raises(ConnectionClosed):
                        await told(connection)
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 1
        assert "callplex: the engine's process has ended" in said
        assert "Traceback" not in said


def _base(url: str) -> str:
    """Where the worker answers plain HTTP."""
    return url.replace("ws://", "http://").removesuffix(wire.PATH)


def _figures(url: str) -> None:
    base = _base(url)
    ready = httpx.get(base + "/readyz", timeout=5)
    said = ready.json()
    assert (ready.status_code, said["engine"], said["capacity"], said["free"]) == (503, "personaplex", 2, 0)
    metrics = httpx.get(base + "/metrics", timeout=5).text
    assert "callplex_worker_engine_faults_total 0" in metrics
    assert "callplex_worker_engine_untranscribed_frames_total 0" in metrics
    assert "callplex_worker_engine_transcribers_ended_total 0" in metrics
    assert "callplex_worker_engine_prompt_evictions_total 0" in metrics
    assert 'callplex_worker_engine_late_frames_per_call_bucket{le="+Inf"}' in metrics


async def readiness(url: str, status: int) -> None:
    """Wait until the worker's readiness is that."""
    async with asyncio.timeout(60), httpx.AsyncClient(timeout=20) as http:
        while (await http.get(_base(url) + "/readyz")).status_code != status:  # noqa: ASYNC110  another process
            await asyncio.sleep(0.05)


async def test_an_engine_that_stands_still_takes_no_call_and_has_lost_nothing_when_it_goes_on(
    tiny: ModelFolder,
) -> None:
    async with worker(tiny, "--slots", "3") as (url, process), session(url, request("held")) as held:
        assert isinstance(await told(held), Ready)
        await answers(held, 0, 2)
        (engine,) = psutil.Process(process.pid).children()
        engine.suspend()
        for index in range(2, 7):
            await held.send(wire.encode(CallerFrame(index, caller_pcm(0, index))))
        async with session(url, request("while nobody knows")) as early:
            assert await told(early) == Error("full", QUIET)
        await readiness(url, 503)
        assert httpx.get(_base(url) + "/readyz", timeout=20).json()["refusal"] == QUIET  # noqa: ASYNC210  nobody waits
        figures = await asyncio.to_thread(httpx.get, _base(url) + "/metrics", timeout=20)
        assert "callplex_worker_free 0\n" in figures.text, "though two slots are"
        async with session(url, request("while it is known")) as late:
            assert await told(late) == Error("full", QUIET)
        engine.resume()
        assert [(await answer(held))[0].index for _ in range(5)] == list(range(2, 7)), "late, but none lost"
        async with session(url, request("too soon")) as soon:
            refusal = await told(soon)
            assert isinstance(refusal, Error)
            assert refusal.code == "full"
            assert refusal.message.startswith("frames run late")
        await readiness(url, 200)
        assert [frame.index for frame in (await answers(held, 7, 9))[0]] == [7, 8]
        metrics = await asyncio.to_thread(httpx.get, _base(url) + "/metrics", timeout=20)
        assert "callplex_worker_refused_total 3\n" in metrics.text
        assert engine.is_running()


async def test_an_engine_that_hangs_is_killed_and_its_worker_ends(tiny: ModelFolder) -> None:
    async with worker(tiny, "--slots", "1") as (url, process), session(url, request("held")) as held:
        assert isinstance(await told(held), Ready)
        (engine,) = psutil.Process(process.pid).children()
        engine.suspend()
        async with asyncio.timeout(120):
            ended = wire.decode_from_worker(await held.recv())
        assert isinstance(ended, Error)
        assert ended.code == "draining", "the gateway takes it elsewhere"
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 1
        assert re.search(r"callplex: the engine's process has said nothing for \d+ s and was killed", said)
        assert "Traceback" not in said
        assert not engine.is_running()


async def test_a_worker_that_is_killed_takes_its_engine_with_it(tiny: ModelFolder) -> None:
    async with worker(tiny, "--slots", "1") as (_, process):
        (engine,) = psutil.Process(process.pid).children()
        process.kill()
        await asyncio.to_thread(psutil.wait_procs, [engine], 20)
        assert not engine.is_running()


class Recording(PersonaplexEngine):
    """Runs no process; what its sessions tell it is kept."""

    def __init__(self) -> None:
        super().__init__(EngineOptions("absent"))
        self.heard: list[Told] = []

    def send(self, number: int, message: Told) -> None:
        self.heard.append(message)


async def test_a_caller_frame_carries_when_it_came() -> None:
    engine, frame = Recording(), CallerFrame(0, caller_pcm(0, 0))
    before = time.monotonic()
    PersonaplexSession(engine, 1, NoTranscriber()).push(frame)
    (heard,) = engine.heard
    assert isinstance(heard, Heard)
    assert heard.frame == frame
    assert before <= heard.came <= time.monotonic()


class Listening(NoTranscriber):
    """Keeps what it is told, and at the end of a call has not come to two frames of it."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def hear(self, session: int, index: int, caller: bytes, agent: bytes) -> None:
        self.told.append((index, agent))

    def finish(self, session: int, finished: Finished) -> None:
        self.told.append("finish")
        finished(2)

    def close(self, session: int) -> None:
        self.told.append("close")


async def test_frames_that_the_engine_has_not_answered_are_heard_out_and_what_is_missing_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    transcriber, spoken = Listening(), bytes(range(256)) * 15
    session = PersonaplexSession(Recording(), 1, transcriber, "c7")
    for index in range(3):
        session.push(CallerFrame(index, caller_pcm(0, index)))
    session.told(AgentFrame(0, spoken))
    session.write(CallerText(0, 1, "Bye."))
    words = session.finish()
    await session.close()
    assert words is not None
    assert [text.text async for text in words] == ["Bye."]
    assert transcriber.told == [(0, spoken), (1, b""), (2, b""), "finish"]
    assert "call c7: the caller's last 0.2 s were not transcribed in time" in caplog.text


async def test_a_session_that_goes_elsewhere_is_not_heard_out() -> None:
    transcriber = Listening()
    session = PersonaplexSession(Recording(), 1, transcriber)
    session.push(CallerFrame(0, caller_pcm(0, 0)))
    await session.close()
    assert transcriber.told == ["close"]


async def test_without_a_transcriber_there_are_no_last_words() -> None:
    session = PersonaplexSession(Recording(), 1, NoTranscriber())
    session.push(CallerFrame(0, caller_pcm(0, 0)))
    assert session.finish() is None
    await session.close()


async def test_the_engine_is_told_of_more_prompts_than_an_argument_can_hold(tmp_path: Path) -> None:
    options = EngineOptions(str(tmp_path / "absent"), device="cpu", warm=(("NATF2", "secret " * 40_000),))
    with pytest.raises(EngineRefused, match="absent is not a folder"):
        await PersonaplexEngine(options).start()


async def test_too_many_slots_are_refused_before_anything_is_started() -> None:
    engine = PersonaplexEngine(EngineOptions("absent", device="cpu", slots=4096))
    with pytest.raises(EngineRefused, match="4096 slots are more than the 256 of one device"):
        await engine.start()
    assert engine.pid is None


async def test_a_worker_without_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    async with worker(ModelFolder(tmp_path / "absent"), "--slots", "1") as (url, process):
        assert not url
        assert process.stderr is not None
        said = (await process.stderr.read()).decode()
        assert await process.wait() == 1
        assert "callplex: " in said
        assert "absent is not a folder; get the weights with: callplex weights download" in said
        assert len(said.strip().splitlines()) == 1
