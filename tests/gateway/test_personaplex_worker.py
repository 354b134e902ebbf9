"""`callplex worker` with PersonaPlex itself on tiny weights: calls that outlive it, and Moshi's clients on it."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from gateway.history import NO_COLUMN
from gateway.resume import ResumingPool, ResumingSession
from model import wire
from model.moshi import protocol
from model.wire import AgentText, Sampling, SessionRequest
from tests.gateway.gateway_process import environment
from tests.gateway.token_workers import ROOT, Caller, WorkerProcess, pool_of
from tests.model.moshi.client import MoshiClient, tone
from tests.model.tiny_folder import VOICE, make_folder

pytestmark = pytest.mark.anyio

REQUEST = SessionRequest("c1", prompt="you are a kind teacher", voice=VOICE, sampling=Sampling(0.0, 0.0))


@asynccontextmanager
async def personaplex(weights: Path, slots: int) -> AsyncIterator[WorkerProcess]:
    settings = environment(
        weights / "data",
        CALLPLEX_ENGINE="personaplex",
        CALLPLEX_WEIGHTS_DIR=str(weights),
        CALLPLEX_WORKER_LISTEN="127.0.0.1:0",
        CALLPLEX_SLOTS=str(slots),
        CALLPLEX_DEVICE="cpu",
    )
    command = (sys.executable, "-m", "gateway.cli", "worker")
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=settings, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            line = await process.stdout.readline()
        yield WorkerProcess(process, json.loads(line)["listening"])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def talk(pool: ResumingPool, caller: Caller, frames: int) -> bytes:
    """A call; returns the columns of all of it."""
    session = await pool.open(REQUEST)
    assert isinstance(session, ResumingSession)
    listening = asyncio.create_task(caller.listen(session, frames))
    await caller.speak(session, frames, listening)
    await listening
    columns = session.history.content().columns
    await session.close()
    return columns


async def chat(url: str, hertz: float) -> int:
    """Two seconds of a client of Moshi's; returns the samples it heard."""
    query = f"?text_prompt=you%20are%20a%20kind%20teacher&voice_prompt={VOICE}.pt&seed=1"
    async with connect(url.removesuffix(wire.PATH) + protocol.PATH + query, compression=None) as connection:
        client = MoshiClient(connection)
        assert await client.receive() == 0
        await client.send(tone(2, hertz))
        return len(await client.hear(24 * 1_920))


async def test_a_call_outlives_its_worker_and_moshis_clients_share_the_next(tmp_path: Path) -> None:
    make_folder(tmp_path)
    async with AsyncExitStack() as stack:
        first, second = await asyncio.gather(
            *(stack.enter_async_context(personaplex(tmp_path, slots)) for slots in (6, 5))
        )
        pool = await stack.enter_async_context(pool_of(first, second))
        unbroken = Caller(seed=3)
        lost = Caller(seed=3, actions={20: partial(first.signal, signal.SIGKILL)})
        whole, columns = await asyncio.gather(talk(pool, unbroken, 18), talk(pool, lost, 40))
        assert columns.startswith(whole)

        (change,) = lost.changes
        assert change.worker.endswith(second.name_ends)
        assert [frame.index for frame in lost.frames] == list(range(40))
        assert len(lost.missed) == change.missed <= 5
        assert len(columns) == 40 * wire.TOKENS_BYTES
        assert NO_COLUMN not in columns
        said = [output.index for output in lost.heard if isinstance(output, AgentText)]
        assert said == sorted(said)
        assert said[-1] > change.index

        heard = await asyncio.gather(*(chat(second.url, 300 + 100 * number) for number in range(4)))
        assert all(samples >= 24 * 1_920 for samples in heard)
