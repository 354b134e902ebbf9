"""A worker process of our own: started, watched, restarted, and gone when the gateway is.

Owns the child process and nothing else: it reports the child's URL when it listens and when it is no
more. The child ends when its standard input does, so it cannot outlive a gateway that is killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence

from gateway.engine import EngineLost

log = logging.getLogger(__name__)

START_TIMEOUT = 300.0
"""Seconds the child has to load its engine and listen: 17 GB from a slow disk, kernels compiled the first time."""
STOP_TIMEOUT = 5.0
"""Seconds the child has to end after SIGTERM before it is killed."""
BACKOFF_FIRST, BACKOFF_LAST = 0.5, 30.0
"""Seconds before a dead child is started again: doubled each time, up to the last."""
STABLE = 60.0
"""Seconds a child must have listened for the backoff to begin anew."""


class Backoff:
    """How long to wait before the next start. Pure: run times come in as arguments."""

    def __init__(self) -> None:
        self._next = BACKOFF_FIRST

    def after(self, ran: float) -> float:
        """Seconds to wait after a child that listened for `ran` seconds."""
        if ran >= STABLE:
            self._next = BACKOFF_FIRST
        pause, self._next = self._next, min(2 * self._next, BACKOFF_LAST)
        return pause


class LocalWorker:
    """Keeps one child process running between `start` and `stop`.

    The child prints one line of JSON when it listens, `{"listening": "ws://..."}`; `on_up` is then
    awaited with that URL (EngineLost from it is a failed start), and `on_down` called once the child
    has ended. Its token is `token`, given to it as CALLPLEX_WORKER_TOKEN beside `environment`; its
    standard error is ours.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        on_up: Callable[[str], Awaitable[None]],
        on_down: Callable[[], None],
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        self.token = secrets.token_urlsafe(32)
        self.starts = 0
        """Children started so far."""
        self.pid: int | None = None
        """The child's process id while it runs."""
        self._command = command
        self._environment = {**environment, "CALLPLEX_WORKER_TOKEN": self.token}
        self._on_up = on_up
        self._on_down = on_down
        self._start_timeout = start_timeout
        self._process: Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when the child listens. Raises EngineLost if it does not, and then gives up."""
        listens: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._supervise(listens))
        try:
            await asyncio.wait([listens, self._task], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.stop()
            raise
        if not listens.done():
            task, self._task = self._task, None
            await task

    async def stop(self) -> None:
        """End the child: SIGTERM, then SIGKILL after STOP_TIMEOUT. Safe to call twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def kill(self) -> None:
        """End a child that hangs; it is started again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _supervise(self, listens: asyncio.Future[None]) -> None:
        backoff = Backoff()
        clock = asyncio.get_running_loop().time
        while True:
            up_at: float | None = None
            try:
                url = await self._spawn()
                await self._on_up(url)
                up_at = clock()
                if not listens.done():
                    listens.set_result(None)
                reason = await self._run_out()
            except EngineLost as error:
                if not listens.done():
                    raise
                reason = str(error)
            finally:
                await self._end()
            pause = backoff.after(0.0 if up_at is None else clock() - up_at)  # loading is not listening
            log.warning("%s; starting it again in %.1f s", reason, pause)
            await asyncio.sleep(pause)

    async def _spawn(self) -> str:
        """Start a child and return its URL. Raises EngineLost if it ends or says nothing in time."""
        self.starts += 1
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C at our terminal is ours to handle, not the child's
            )
        except OSError as error:
            raise EngineLost(f"the local worker cannot be started: {error.strerror or error}") from error
        self.pid = self._process.pid
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._start_timeout):
                line = await self._process.stdout.readline()
                if not line:
                    status = await self._process.wait()
                    raise EngineLost(
                        f"the local worker ended with status {status} before it listened; its messages are above,"
                        " and `callplex doctor` says what is missing"
                    )
        except ValueError:
            raise EngineLost("the local worker printed an endless line instead of where it listens") from None
        except TimeoutError:
            raise EngineLost(
                f"the local worker did not listen within {self._start_timeout:.0f} s;"
                " run `callplex worker` by itself to see why"
            ) from None
        return _url(line)

    async def _run_out(self) -> str:
        """Wait for the child's end; what it prints meanwhile is not for us."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        while await process.stdout.read(4096):
            pass
        return f"the local worker ended with status {await process.wait()}"

    async def _end(self) -> None:
        process, self._process, self.pid = self._process, None, None
        if process is None:
            return
        self._on_down()
        ended = asyncio.ensure_future(process.wait())
        try:
            if process.returncode is None:
                process.terminate()
                # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes together with its result.
                await asyncio.wait([ended], timeout=STOP_TIMEOUT)
                if not ended.done():
                    log.warning("the local worker did not end within %.0f s and is killed", STOP_TIMEOUT)
        finally:
            if process.returncode is None:
                process.kill()
            if process.stdin is not None:
                process.stdin.close()
        await ended


def _url(line: bytes) -> str:
    try:
        return str(json.loads(line)["listening"])
    except (ValueError, KeyError, TypeError, RecursionError):
        shown = line[:80].decode(errors="replace").strip()
        raise EngineLost(f"the local worker printed {shown!r} instead of where it listens") from None
