"""Pools of echo workers in the tests, and calls on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway import local_worker, pooled_worker
from gateway.pool import WorkerPool
from gateway.settings import Settings, load_settings
from gateway.worker_client import RemoteSession
from model.echo import EchoEngine
from model.server import WorkerServer
from model.wire import AgentFrame, SessionRequest
from model.worker_engine import WorkerEngine

ROOT = Path(__file__).parents[2]
SOUND = bytes(3840)
REQUEST = SessionRequest("c1")


def make_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between starts and probes; children find the tests."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(local_worker, "BACKOFF_FIRST", 0.01)
    monkeypatch.setattr(pooled_worker, "PROBE_SECONDS", 0.05)


@asynccontextmanager
async def started(settings: Settings, **options: Any) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(settings, **options)
    try:
        async with asyncio.timeout(30):
            await pool.start()
            yield pool
    finally:
        await pool.stop()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  what other processes do has no event to wait for
            await asyncio.sleep(0.01)


async def echoes(session: RemoteSession) -> bool:
    await session.send(SOUND)
    return await anext(session.outputs()) == AgentFrame(0, SOUND)


async def ending(session: RemoteSession) -> None:
    async for _ in session.outputs():
        pass


@asynccontextmanager
async def worker(
    engine: WorkerEngine | None = None, listen: str = "127.0.0.1:0", **options: Any
) -> AsyncIterator[WorkerServer]:
    server = WorkerServer(engine or EchoEngine(), listen, **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def among(*servers: WorkerServer, token: str = "") -> Settings:
    return load_settings(workers=", ".join(server.url for server in servers), worker_token=SecretStr(token))
