"""The worker's process: from an engine that loads to a server that listens, and its end.

Owns signals, the parent's pipe and the line that says where the worker listens. Sessions are
`model.server`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from model.server import Door, WorkerServer
from model.worker_engine import SupervisedEngine, WorkerEngine

log = logging.getLogger(__name__)

DRAIN_TIMEOUT = 2.0
"""Seconds a worker that is told to stop takes to hand its sessions over."""
EXIT_GRACE = 5.0
"""Seconds between the loss of the parent process and a hard exit."""


class EngineEnded(Exception):
    """The engine has ended by itself; the message says why. Whoever supervises the worker starts it anew."""


async def serve(
    engine: WorkerEngine,
    listen: str,
    *,
    token: str = "",
    capacity: int = 4,
    tls: ssl.SSLContext | None = None,
    exit_with_parent: bool = False,
    doors: Sequence[Door] = (),
    announce: Callable[[str], None] | None = None,
) -> None:
    """Run a worker until SIGTERM, SIGINT or, with `exit_with_parent`, the end of standard input; then
    hand its sessions over.

    `announce` is told the URL once sessions can be opened; by default one JSON line on standard
    output says it: `{"listening": "ws://127.0.0.1:8090/api/session"}`. Raises ListenRefused, EngineEnded.
    """
    server = WorkerServer(engine, listen, token=token, capacity=capacity, tls=tls, doors=doors)
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # While it loads it has nothing to lose, and may not come to its event loop for long.
        signal.signal(number, signal.SIG_DFL)
    if exit_with_parent:
        watch = threading.Thread(target=_watch_parent, args=(loop, stopped), name="parent-watch", daemon=True)
        watch.start()
    async with AsyncExitStack() as stack:
        await engine.start()
        stack.push_async_callback(engine.stop)
        if isinstance(engine, SupervisedEngine):
            server.slots.capacity = engine.capacity
        await server.start()
        stack.push_async_callback(server.stop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        slots = f"{server.slots.capacity} slot{'s' * (server.slots.capacity > 1)}"
        log.info("worker %s: %s engine, %s, %s", server.name, engine.name, slots, server.url)
        for door in doors:
            log.info("worker %s: %s is served, too", server.name, door.path)
        (announce or _print_url)(server.url)
        ended = await _until_over(engine, stopped)
        await server.drain(DRAIN_TIMEOUT)
        if ended:
            raise EngineEnded(ended)


async def _until_over(engine: WorkerEngine, stopped: asyncio.Event) -> str:
    """Wait for the end: empty if it was asked for, else why the engine is no more."""
    if not isinstance(engine, SupervisedEngine):
        await stopped.wait()
        return ""
    asked, lost = asyncio.create_task(stopped.wait()), asyncio.create_task(engine.lost())
    try:
        await asyncio.wait([asked, lost], return_when=asyncio.FIRST_COMPLETED)
        return "" if asked.done() else lost.result()
    finally:
        for task in (asked, lost):
            task.cancel()


def _print_url(url: str) -> None:
    sys.stdout.write(json.dumps({"listening": url}) + "\n")
    sys.stdout.flush()


def _watch_parent(loop: asyncio.AbstractEventLoop, stopped: asyncio.Event) -> None:
    """Runs in a thread, so that even a worker whose event loop hangs does not outlive its parent.

    The parent holds the write end of our standard input; the kernel closes it however the parent ends.
    """
    while os.read(0, 4096):
        pass
    loop.call_soon_threadsafe(stopped.set)
    time.sleep(EXIT_GRACE)
    os._exit(1)
