"""`callplex worker` with PersonaPlex itself on tiny weights: calls that outlive it, and Moshi's clients on it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from gateway.history import NO_COLUMN
from gateway.resume import ResumingPool, ResumingSession
from model import wire
from model.moshi import protocol
from model.wire import AgentText, Sampling, SessionRequest
from tests.gateway.personaplex_workers import personaplex
from tests.gateway.token_workers import Caller, pool_of
from tests.model.moshi.client import MoshiClient, tone
from tests.model.tiny_folder import VOICE, make_folder

pytestmark = pytest.mark.anyio

REQUEST = SessionRequest("c1", prompt="you are a kind teacher", voice=VOICE, sampling=Sampling(0.0, 0.0))


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
    """A second of a client of Moshi's; returns the samples it heard."""
    query = f"?text_prompt=you%20are%20a%20kind%20teacher&voice_prompt={VOICE}.pt&seed=1"
    async with connect(url.removesuffix(wire.PATH) + protocol.PATH + query, compression=None) as connection:
        client = MoshiClient(connection)
        assert await client.receive() == 0
        await client.send(tone(1, hertz))
        return len(await client.hear(11 * 1_920))


async def test_a_call_outlives_its_worker_and_moshis_clients_share_the_next(tmp_path: Path) -> None:
    make_folder(tmp_path)
    async with AsyncExitStack() as stack:
        first, second = await asyncio.gather(
            *(stack.enter_async_context(personaplex(tmp_path, slots)) for slots in (6, 5))
        )
        pool = await stack.enter_async_context(pool_of(first, second))
        unbroken = Caller(seed=3)
        lost = Caller(seed=3, actions={20: partial(first.signal, signal.SIGKILL)})
        whole, columns = await asyncio.gather(talk(pool, unbroken, 18), talk(pool, lost, 36))
        assert columns.startswith(whole)

        (change,) = lost.changes
        assert change.worker.endswith(second.name_ends)
        assert [frame.index for frame in lost.frames] == list(range(36))
        assert len(lost.missed) == change.missed <= 5
        assert len(columns) == 36 * wire.TOKENS_BYTES
        assert NO_COLUMN not in columns
        said = [output.index for output in lost.heard if isinstance(output, AgentText)]
        assert said == sorted(said)
        assert said[-1] > change.index

        heard = await asyncio.gather(*(chat(second.url, 300 + 100 * number) for number in range(4)))
        assert all(samples >= 11 * 1_920 for samples in heard)
