"""Where the worker's process and the engine's meet: whom a message reaches, and who is refused and counted.

The engine's process is played by the test, or by the engine's own loop in a thread.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from model import gpu_process, wire
from model.conversation import Models
from model.engine_options import EngineOptions
from model.engine_start import Started
from model.engine_wire import Heard
from model.folder import ModelFolder
from model.pace import FRAME
from model.ring import PeerGone
from model.server import WorkerServer
from model.wire import AgentFrame, CallerFrame, Error, FromWorker, History, Ready, SessionRequest
from tests.model.played_engine import PlayedEngine, played
from tests.model.rig import Rig, caller_pcm, request
from tests.model.worker_connections import connected, serving, told

pytestmark = pytest.mark.anyio

SOUND = bytes(wire.FRAME_BYTES)


async def test_what_is_said_of_a_session_that_is_over_reaches_no_other() -> None:
    async with played() as engine:
        opening, first = await engine.opens(request("first"))
        engine.says(first, Ready("personaplex"))
        session = await opening
        # In the ring, and not yet read, when the caller hangs up: in mid-frame, as it were.
        engine.says(first, AgentFrame(0, b"\x01" * wire.FRAME_BYTES), wire.AgentText(1, "your balance is"))
        await session.close()
        opening, second = await engine.opens(request("second"))
        assert second != first
        engine.says(first, AgentFrame(1, b"\x01" * wire.FRAME_BYTES), Error("failed", "of the first"))
        engine.says(second, Ready("personaplex"), AgentFrame(0, SOUND))
        session = await opening
        engine.says(first, AgentFrame(2, b"\x01" * wire.FRAME_BYTES))
        engine.says(second, AgentFrame(1, SOUND))
        outputs = session.outputs()
        assert [await anext(outputs) for _ in range(2)] == [AgentFrame(0, SOUND), AgentFrame(1, SOUND)]


@asynccontextmanager
async def turning(models: Models, tiny: ModelFolder) -> AsyncIterator[PlayedEngine]:
    """An engine whose process is the engine's own loop, in a thread."""
    engine = PlayedEngine()
    await engine.start()
    rig = Rig(models, tiny, slots=2)
    started = Started(rig.stepper, 2, {1: 0.01, 2: 0.01}, rig.prompts, rig.assets)
    loop = gpu_process.Loop(engine.theirs, started, EngineOptions("weights"))

    def turn() -> None:
        with suppress(PeerGone):
            while True:
                loop.turn()

    turns = asyncio.create_task(asyncio.to_thread(turn))
    try:
        yield engine
    finally:
        await engine.stop()
        await turns
        engine.theirs.close()


async def ask(connection: ClientConnection, asked: SessionRequest) -> FromWorker:
    await connection.send(wire.encode_open(asked))
    return await told(connection)


async def figures(server: WorkerServer) -> tuple[int, int, str]:
    """Status and free slots of its readiness, and its metrics."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=20) as http:
        ready = await http.get("/readyz")
        return ready.status_code, json.loads(ready.text)["free"], (await http.get("/metrics")).text


@pytest.mark.usefixtures("one_thread")
async def test_while_frames_run_late_a_worker_is_not_ready_and_counts_whom_it_refuses(
    models: Models, tiny: ModelFolder
) -> None:
    async with turning(models, tiny) as engine, serving(engine, capacity=2) as server, connected(server) as held:
        assert isinstance(await ask(held, request("held")), Ready)
        assert (await figures(server))[:2] == (200, 1)
        began = time.monotonic() - 6 * FRAME
        for index in range(4):
            engine.send(1, Heard(CallerFrame(index, caller_pcm(0, index)), began + index * FRAME))
        for _ in range(4):
            while not isinstance(await told(held), AgentFrame):
                pass
        async with connected(server) as late:
            refusal = await ask(late, request("late"))
            assert isinstance(refusal, Error)
            assert refusal.code == "full"
            assert refusal.message.startswith("frames run late")
        async with asyncio.timeout(20):
            while engine.state.late_frames < 4:  # noqa: ASYNC110  another thread says it
                await asyncio.sleep(0)
        status, free, metrics = await figures(server)
        assert (status, free) == (503, 0)
        assert "callplex_worker_refused_total 1\n" in metrics
        assert "callplex_worker_engine_late_frames_total 4\n" in metrics
        history, resume = History(), wire.Resume()
        async with connected(server) as moved:
            await moved.send(wire.encode_open(request("moved", resume=resume)))
            await moved.send(wire.encode_history(resume, history))
            assert isinstance(await told(moved), Ready), "late is better than lost"
