"""`callplex worker` with PersonaPlex itself on tiny weights: calls that outlive it, and Moshi's clients on it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from gateway.history import NO_COLUMN
from gateway.resume import ResumingSession
from gateway.resuming_pool import ResumingPool
from model import wire
from model.moshi import protocol
from model.wire import AgentText, Sampling, SessionRequest
from tests.gateway.personaplex_workers import personaplex
from tests.gateway.token_workers import Caller, pool_of
from tests.model.moshi.client import MoshiClient, Samples, tone
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


async def chat(url: str, hertz: float, seed: int, held: asyncio.Barrier) -> tuple[str, Samples]:
    """A second of a client of Moshi's: what the agent said in 11 frames, and their sound.

    It speaks once all who wait at `held` have a session, and whoever looks at them there goes on.
    """
    query = f"?text_prompt=you%20are%20a%20kind%20teacher&voice_prompt={VOICE}.pt&seed={seed}"
    while True:
        async with connect(url.removesuffix(wire.PATH) + protocol.PATH + query, compression=None) as connection:
            client = MoshiClient(connection)
            if await client.receive() == 0:
                await held.wait()
                await held.wait()
                await client.send(tone(1, hertz))
                sound = await client.hear(11 * 1_920)
                return "".join(client.said), sound[: 11 * 1_920]
        (error,) = client.errors
        assert "frames run late" in error, "as they may on a busy machine; then it is full for a while"
        await asyncio.sleep(0.2)


async def free_while(url: str, held: asyncio.Barrier) -> int:
    """Slots that are free when all who wait at `held` have their session."""
    await held.wait()
    async with httpx.AsyncClient() as http:
        ready = await http.get(f"http{url.removeprefix('ws').removesuffix(wire.PATH)}/readyz")
    await held.wait()
    return int(ready.json()["free"])


def alike(one: Samples, other: Samples) -> bool:
    """But for what Opus makes of rounding: a last bit of such loud sound is a tenth of what it encodes."""
    return bool(np.corrcoef(one, other)[0, 1] > 0.7)


async def test_a_call_outlives_its_worker(tmp_path: Path) -> None:
    make_folder(tmp_path)
    async with AsyncExitStack() as stack:
        first, second = await asyncio.gather(
            *(stack.enter_async_context(personaplex(tmp_path, slots)) for slots in (6, 5))
        )
        pool = await stack.enter_async_context(pool_of(first, second))
        unbroken = Caller(seed=3)
        lost = Caller(seed=3)

        def kill() -> None:
            first.signal(signal.SIGKILL)
            lost.held = None

        lost.actions[20] = kill
        for caller in (unbroken, lost):
            caller.held = caller.answered
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


async def test_four_moshi_clients_hold_a_worker_at_once_each_with_its_own_seed_and_caller(tmp_path: Path) -> None:
    make_folder(tmp_path)
    clients = ((300, 1), (300, 1), (300, 2), (700, 1))
    async with personaplex(tmp_path, len(clients)) as worker, asyncio.timeout(120):
        held = asyncio.Barrier(len(clients) + 1)
        talks = asyncio.gather(*(chat(worker.url, hertz, seed, held) for hertz, seed in clients))
        assert await free_while(worker.url, held) == 0
        heard = await talks
        alone = await chat(worker.url, *clients[0], asyncio.Barrier(1))
    (text, sound), *others = [*heard, alone]
    assert text
    assert np.abs(sound).max() > 0.01
    assert [said == text for said, _ in others] == [True, False, False, True]
    assert [alike(sound, other) for _, other in others] == [True, False, False, True]
