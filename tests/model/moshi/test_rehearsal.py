"""Four clients of Moshi's protocol talk to the rehearsal engine at once: each is heard, and answered with speech."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import soxr

from model.moshi.door import MoshiDoor
from model.rehearsal.engine import RehearsalEngine
from model.server import WorkerServer
from model.wav import read_wav
from tests.model.moshi.client import RATE, MoshiClient, Samples, talking

pytestmark = pytest.mark.anyio

QUESTION = Path(__file__).parents[3] / "gateway" / "phone" / "callers" / "bank-hours.wav"
FASTER = 2
"""Than time: the sound of a second is sent in half of one."""


async def ask(client: MoshiClient, question: Samples) -> None:
    """Say it, and be silent until the answer has begun."""
    assert await client.receive() == 0
    listening = asyncio.create_task(listen(client))
    silence = np.zeros(960, np.float32)
    place = 0
    while not listening.done():
        await client.send(question[place : place + 960] if place + 960 <= len(question) else silence)
        place += 960
        await asyncio.sleep(0.04 / FASTER)
    await listening


async def listen(client: MoshiClient) -> None:
    while not "".join(client.said).endswith("?"):
        await client.receive()


async def test_four_clients_at_once_are_answered() -> None:
    wav = read_wav(QUESTION)
    question = soxr.resample(wav.pcm[0, : 3 * wav.rate], wav.rate, RATE).astype(np.float32)
    engine = RehearsalEngine()
    await engine.start()
    server = WorkerServer(engine, "127.0.0.1:0", doors=[MoshiDoor()])
    await server.start()

    async def one() -> MoshiClient:
        async with talking(server) as client:
            await ask(client, question)
        return client

    try:
        clients = await asyncio.gather(*(one() for _ in range(4)))
    finally:
        await server.stop()
        await engine.stop()
    for client in clients:
        assert not client.errors
        assert len("".join(client.said).split()) >= 3
        assert np.abs(np.concatenate(client.heard)).max() > 0.05
