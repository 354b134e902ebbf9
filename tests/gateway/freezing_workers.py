"""Workers in this process whose port can be frozen, as if their process was stopped, and let go again; and calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from gateway.call import Call
from gateway.call_plan import CallPlan
from gateway.pool import WorkerPool
from gateway.resuming_pool import ResumingPool
from gateway.settings import load_settings
from model import wire
from model.server import WorkerServer
from model.wire import SessionRequest
from model.worker_engine import WorkerEngine
from tests.gateway.memory_line import MemoryLeg
from tests.token_worker import TokenEngine


class FreezingWorker:
    """A worker behind a port that passes everything on, but for the time that it is frozen."""

    def __init__(self, engine: WorkerEngine, capacity: int) -> None:
        self.server = WorkerServer(engine, "127.0.0.1:0", capacity=capacity, name=f"worker-of-{capacity}")
        self.connections = 0
        """Accepted so far."""
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._port: asyncio.Server | None = None
        self._number = 0
        self._ends: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._number}{wire.PATH}"

    @property
    def name(self) -> str:
        return self.server.name

    async def start(self) -> None:
        await self.server.start()
        await self.revive()
        assert self._port is not None
        self._number = self._port.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self.thaw()
        self.kill()
        await self.server.stop()

    def freeze(self, seconds: float | None = None) -> None:
        """Nothing passes any more, for so long or for ever; what comes meanwhile waits."""
        self._thawed.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.thaw)

    def thaw(self) -> None:
        self._thawed.set()

    def kill(self) -> None:
        """Every connection breaks, and nobody listens."""
        assert self._port is not None
        self._port.close()
        for end in self._ends:
            end.transport.abort()

    async def revive(self) -> None:
        """Listen again where it did."""
        self._port = await asyncio.start_server(self._connected, "127.0.0.1", self._number)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self.server.port)
        self._ends |= {writer, back}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pass_on(reader, back))
            tasks.create_task(self._pass_on(there, writer))
        self._ends -= {writer, back}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self._thawed.wait()
                writer.write(data)
        except ConnectionError:
            writer.transport.abort()
        writer.close()


@asynccontextmanager
async def freezing(
    *capacities: int, engines: Sequence[WorkerEngine] = (), within: float | None = None
) -> AsyncIterator[tuple[list[FreezingWorker], WorkerPool, ResumingPool]]:
    """A pool over workers of so many slots: the one with the most gets the first session. `engines`: of the first."""
    unlike = [*engines, *(TokenEngine() for _ in capacities[len(engines) :])]
    workers = [FreezingWorker(engine, capacity) for engine, capacity in zip(unlike, capacities, strict=True)]
    async with AsyncExitStack() as stack:
        for worker in workers:
            await worker.start()
            stack.push_async_callback(worker.stop)
        pool = WorkerPool(load_settings(workers=",".join(worker.url for worker in workers)))
        stack.push_async_callback(pool.stop)
        await pool.start()
        yield workers, pool, ResumingPool(pool, within)


beside: set[asyncio.Future[None]] = set()
"""What callers have begun; it ends by itself."""


def revive(worker: FreezingWorker) -> None:
    """Have the worker listen again."""
    beside.add(asyncio.ensure_future(worker.revive()))


def drain(worker: FreezingWorker) -> None:
    """Stop the worker as SIGTERM would, but for its process."""
    beside.add(asyncio.ensure_future(worker.server.drain(2)))


@dataclass
class Told:
    reason: str
    call: Call
    silent: list[int]
    """Frames in which the line was given nothing but silence."""


async def call(pool: ResumingPool, seconds: float, actions: dict[float, Callable[[], object]]) -> Told:
    """A whole call, which ends itself when it is owed too much; what happens in it, by its seconds."""
    for at, action in actions.items():
        asyncio.get_running_loop().call_later(at, action)
    leg = MemoryLeg(seconds)
    bridged = Call(leg, pool, CallPlan("p", "v", SessionRequest("c1")))
    reason = await bridged.run()
    leg.on_digit = None  # as a carrier's leg does
    return Told(reason, bridged, [index for index, (_, pcm) in enumerate(leg.played) if not any(pcm)])
