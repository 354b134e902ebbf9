"""A whole worker whose engine is killed in mid-call, as its gateway sees it: until it is ready for calls again.

Owns the supervision, which starts a worker that has ended again as a gateway does its local one, the calls and the
clock. With `callplex worker` it is the real one, where the gateway's packages are installed; else a worker of the
model's packages alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from http.client import HTTPConnection
from itertools import count
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from model import wire
from model.bench import worker
from model.bench.drive import SOUND
from model.engine_options import EngineOptions
from model.pace import FRAME
from model.wire import AgentFrame, CallerFrame, Ready, SessionRequest

Kind = Literal["model", "callplex"]
PAUSE = 0.5
"""Seconds before a gateway starts its local worker again, the first time (`gateway.local_worker`)."""
START_SECONDS = 300.0
"""A worker has so long to listen, as a gateway's; and its calls to be ended."""
STOP_SECONDS = 5.0
_LOOK_AGAIN = 0.01


class CannotRestart(Exception):
    """The worker does not do what is to be measured; the message says what."""


@dataclass(frozen=True, slots=True)
class WorkerRestart:
    """Seconds; but for the first, from the kill of the engine's process on."""

    kind: Kind
    transcriber: str
    sessions: int
    """In mid-call when it came."""
    first_start: float
    """From the start of a worker's process to its first `/readyz` of 200."""
    told: float
    """Until the last session was ended by the worker."""
    ended: float
    """Until the worker's process was no more."""
    listening: float
    """Until the next one's said where it listens, the pause before its start included."""
    ready: float
    """Until its `/readyz` answered 200."""


async def measure_worker(
    kind: Kind, options: EngineOptions, request: SessionRequest, seconds: float, transcriber: str = "none"
) -> WorkerRestart:
    """Start, let all slots talk for so long, kill the engine, start again. Raises CannotRestart."""
    command, environment = _command(kind, options, transcriber)
    begun = time.perf_counter()
    async with _Worker(command, environment) as first:
        await first.ready()
        first_start = time.perf_counter() - begun
        requests = [replace(request, call_id=f"call-{number}") for number in range(options.slots)]
        sessions, killed = await _kill_in_mid_call(first, requests, seconds)
        told = time.perf_counter() - killed
        await first.end()
        ended = time.perf_counter() - killed
    await asyncio.sleep(PAUSE)
    async with _Worker(command, environment) as second:
        listening = time.perf_counter() - killed
        await second.ready()
        ready = time.perf_counter() - killed
    return WorkerRestart(kind, transcriber, sessions, first_start, told, ended, listening, ready)


def _command(kind: Kind, options: EngineOptions, transcriber: str) -> tuple[list[str], dict[str, str]]:
    """How such a worker is started, and in which environment."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("CALLPLEX_")}
    if kind == "model":
        return [sys.executable, "-m", "model.bench.worker", worker.order(options, transcriber)], plain
    flags = {
        "listen": "127.0.0.1:0",
        "engine": "personaplex",
        "device": options.device,
        "slots": str(options.slots),
        "kv-dtype": options.kv_dtype,
        "transcriber": transcriber,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", value)]
    command = [sys.executable, "-m", "gateway.cli", "worker", "--exit-with-parent", *words]
    return command, {**plain, "CALLPLEX_WEIGHTS_DIR": options.weights}


class _Worker:
    """A worker's process, from its start until it listens to its end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command, self._environment = command, environment
        self._process: Process | None = None
        self.url = ""

    async def __aenter__(self) -> _Worker:
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command, env=self._environment, stdin=PIPE, stdout=PIPE
        )
        assert process.stdout is not None
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                line = await process.stdout.readline()
        if not line:
            await self._stop()
            raise CannotRestart("the worker ended before it listened; its messages are above")
        self.url = str(json.loads(line)["listening"])
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def ready(self) -> None:
        """Until it takes calls. Raises CannotRestart."""
        if not await asyncio.to_thread(_is_ready, self.url, time.monotonic() + START_SECONDS):
            raise CannotRestart(f"the worker listens, and was not ready within {START_SECONDS:.0f} s")

    async def end(self) -> None:
        """Until its process has ended by itself. Raises CannotRestart."""
        assert self._process is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._process.wait()
        except TimeoutError:
            raise CannotRestart(f"the worker did not end within {START_SECONDS:.0f} s of its engine") from None

    async def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
        if process.returncode is None:
            process.kill()
        await process.communicate()


def _is_ready(url: str, until: float) -> bool:
    """Whether the worker at `url` says that it takes calls, by a moment of `time.monotonic`."""
    address = urlsplit(url)
    assert address.hostname is not None
    while time.monotonic() < until:
        connection = HTTPConnection(address.hostname, address.port, timeout=5)
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request("GET", "/readyz")
            if connection.getresponse().status == HTTPStatus.OK:
                return True
        time.sleep(_LOOK_AGAIN)
    return False


async def _kill_in_mid_call(running: _Worker, requests: Sequence[SessionRequest], seconds: float) -> tuple[int, float]:
    """Calls that had been answered and talked when their engine was killed, and when; all are over afterwards.

    Raises CannotRestart.
    """
    calls, pid = [_Call() for _ in requests], engine_of(running.pid)
    try:
        async with asyncio.timeout(seconds + START_SECONDS), asyncio.TaskGroup() as tasks:
            for call, request in zip(calls, requests, strict=True):
                tasks.create_task(call.talk(running.url, request))
            for call in calls:
                await call.begun.wait()
            await asyncio.sleep(seconds)
            talking = sum(call.talks for call in calls)
            killed = time.perf_counter()
            os.kill(pid, signal.SIGKILL)
    except TimeoutError:
        raise CannotRestart(f"the worker's calls were not over within {START_SECONDS:.0f} s") from None
    return talking, killed


class _Call:
    """A session as a gateway holds it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        """It has been answered, or is over."""
        self.talks = False

    async def talk(self, url: str, request: SessionRequest) -> None:
        """Until the worker ends it."""
        protocols = [Subprotocol(wire.SUBPROTOCOL)]
        try:
            async with connect(url, subprotocols=protocols, compression=None, max_size=wire.MAX_MESSAGE) as connection:
                await connection.send(wire.encode_open(request))
                if not isinstance(wire.decode_from_worker(await connection.recv()), Ready):
                    return
                speaking = asyncio.create_task(_speak(connection))
                try:
                    async for data in connection:
                        if isinstance(wire.decode_from_worker(data), AgentFrame):
                            self.talks = True
                            self.begun.set()
                finally:
                    speaking.cancel()
                    await asyncio.gather(speaking, return_exceptions=True)
        except ConnectionClosed:
            pass
        finally:
            self.talks = False
            self.begun.set()


async def _speak(connection: ClientConnection) -> None:
    for index in count():
        await connection.send(wire.encode(CallerFrame(index, SOUND)))
        await asyncio.sleep(FRAME)


def engine_of(pid: int) -> int:
    """The engine's process of the worker with this id. Raises CannotRestart if it has none."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"model.gpu_process" in (entry / "cmdline").read_bytes():
                return int(entry.name)
    raise CannotRestart(f"the worker with the process id {pid} has no engine's process to be killed")
