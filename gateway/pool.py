"""Which worker gets a call: our own child process, or the best of those given as URLs.

Owns which workers there are and in which order they are asked. What is known of each is
`gateway.pooled_worker`'s, sessions are `gateway.worker_client`'s. Knows nothing of calls or of the wire's messages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import httpx

from gateway.engine import EngineError, EngineFull, EngineLost
from gateway.local_worker import START_TIMEOUT, LocalWorker
from gateway.pooled_worker import PooledWorker
from gateway.settings import PREFIX, Settings, SettingsInvalid
from gateway.worker_client import RemoteEngine, RemoteSession
from model.wire import History, SessionRequest

log = logging.getLogger(__name__)

WORKER_COMMAND = (sys.executable, "-m", "gateway.cli", "worker", "--listen", "127.0.0.1:0", "--exit-with-parent")


class Continuation(Protocol):
    """A session that is to go on elsewhere, as the pool sees it."""

    def fits(self, worker: PooledWorker) -> bool:
        """Whether it would go on with this worker, which is healthy."""

    def describe(self) -> tuple[SessionRequest, History]:
        """How it stands now. What comes from here on is for the worker that has just accepted the connection."""

    def refused(self) -> None:
        """That worker does not take it."""


class WorkerPool:
    """Implements `gateway.engine.Engine` over every worker there is.

    `command` replaces the local worker's command line (tests). Raises SettingsInvalid if the settings
    name a worker that cannot be used.
    """

    def __init__(
        self, settings: Settings, *, command: Sequence[str] = WORKER_COMMAND, start_timeout: float = START_TIMEOUT
    ) -> None:
        self.workers: list[PooledWorker] = []
        self.local: LocalWorker | None = None
        self._tls = _tls_context(settings)
        self._http = httpx.AsyncClient(verify=self._tls or False, trust_env=False)
        self._tasks: list[asyncio.Task[None]] = []
        if settings.workers.strip() == "local":
            environment = _local_environment(settings)
            self.local = LocalWorker(command, environment, self._local_up, self._local_down, start_timeout)
            return
        urls = [url for part in settings.workers.split(",") if (url := part.strip())]
        if not urls:
            raise SettingsInvalid("CALLPLEX_WORKERS: must be `local` or a comma list of ws:// or wss:// URLs")
        try:
            self.workers = [self._worker(url, settings.worker_token.get_secret_value()) for url in urls]
        except ValueError as error:
            raise SettingsInvalid(f"CALLPLEX_WORKERS: {error}") from None

    @property
    def ready(self) -> bool:
        """At least one worker answers and has a free slot, as far as is known."""
        return any(worker.free > 0 for worker in self.workers)

    @property
    def reachable(self) -> bool:
        """At least one worker answers, with or without a free slot."""
        return any(worker.healthy for worker in self.workers)

    @property
    def restarts(self) -> bool:
        """A worker that is lost is soon started again, by us."""
        return self.local is not None

    async def start(self) -> None:
        """Start the local worker, or ask the others once how they are.

        Raises EngineLost, saying what to do, if the local worker does not start. Workers given as
        URLs may come later.
        """
        if self.local is not None:
            await self.local.start()
            return
        await asyncio.gather(*(worker.probe() for worker in self.workers))
        for worker in self.workers:
            if not worker.healthy:
                log.warning("%s; it is asked again", worker.reason)
            self._tasks.append(asyncio.create_task(worker.watch()))

    async def stop(self) -> None:
        """End the local worker and leave the others. Safe to call twice."""
        if self.local is not None:
            await self.local.stop()
        self._forget_tasks()
        await self._http.aclose()

    async def open(self, request: SessionRequest) -> RemoteSession:
        """A session of the worker with the most free slots; if it refuses, of the next one.

        Raises EngineFull if none accepted and one of them only for being full, else EngineLost.
        """
        return await self._first(lambda _: True, lambda worker: worker.open(request))

    async def resume(self, session: Continuation) -> RemoteSession:
        """A session that goes on, of the best worker that it finds fit; raises as `open`."""

        async def ask(worker: PooledWorker) -> RemoteSession:
            try:
                return await worker.resume(session.describe)
            except EngineError:
                session.refused()
                raise

        return await self._first(session.fits, ask)

    def has_room(self, session: Continuation) -> bool:
        """Whether some worker seems fit to go on with it."""
        return self._best(session.fits) is not None

    async def _first(
        self, fits: Callable[[PooledWorker], bool], ask: Callable[[PooledWorker], Awaitable[RemoteSession]]
    ) -> RemoteSession:
        """Ask one after the other, the best that is left each time, until one accepts."""
        full = lost = ""
        asked: list[PooledWorker] = []
        while worker := self._best(lambda one: one not in asked and fits(one)):
            asked.append(worker)
            try:
                return await ask(worker)
            except EngineFull as error:
                full = str(error)
            except EngineLost as error:
                lost = str(error)
        if full:
            raise EngineFull(full if len(self.workers) == 1 else "no worker has a free slot")
        raise EngineLost(lost or self._nobody())

    def _best(self, fits: Callable[[PooledWorker], bool]) -> PooledWorker | None:
        able = (worker for worker in self.workers if worker.healthy and fits(worker))
        return min(able, key=lambda one: (not one.free, one.hung, one.suspect, -one.free), default=None)

    def _nobody(self) -> str:
        """Why there was nobody to ask."""
        if self.local is not None and not self.workers:
            return "the local worker is being started again; its messages say why it ended"
        silent = "no worker that answers in time is left; their messages say why"
        return next((worker.reason for worker in self.workers if not worker.healthy), silent)

    def lost_session(self, url: str) -> None:
        """A session of the worker at `url` was lost."""
        for worker in self._at(url):
            worker.doubt()

    def silent(self, url: str) -> None:
        """The worker at `url` holds a session and does not answer in time."""
        for worker in self._at(url):
            worker.silent()

    def answers(self, url: str) -> None:
        """It does again."""
        for worker in self._at(url):
            worker.answers()

    def _at(self, url: str) -> list[PooledWorker]:
        return [worker for worker in self.workers if worker.engine.url == url]

    def _worker(self, url: str, token: str) -> PooledWorker:
        return PooledWorker(RemoteEngine(url, token, self._tls), self._http)

    async def _local_up(self, url: str) -> None:
        assert self.local is not None
        try:
            worker = self._worker(url, self.local.token)
        except ValueError as error:
            raise EngineLost(f"the local worker listens where it cannot be reached: {error}") from None
        await worker.probe()
        self.workers.append(worker)
        self._tasks.append(asyncio.create_task(worker.watch(self.local.kill)))

    def _local_down(self) -> None:
        self.workers.clear()
        self._forget_tasks()

    def _forget_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()


def _local_environment(settings: Settings) -> dict[str, str]:
    """Our environment, with those of our settings that the local worker reads, and no others.

    Each is set, also where it is empty, so that no `.env` or `callplex.toml` in its folder can say
    otherwise. It serves loopback, so that certificates, which are for workers elsewhere, are not for it.
    """
    values = {
        "ENGINE": settings.engine,
        "WORKER_CAPACITY": str(settings.worker_capacity),
        "SLOTS": str(settings.slots),
        "DEVICE": settings.device,
        "CONTEXT": settings.context,
        "KV_DTYPE": settings.kv_dtype,
        "WEIGHTS_DTYPE": settings.weights_dtype,
        "TRANSCRIBER": settings.transcriber,
        "PERSONAS": str(settings.personas),
        "WORKER_TLS_CERT": "",
        "WORKER_TLS_KEY": "",
        "WEIGHTS_DIR": str(settings.weights_dir or ""),
        "MOSHI_ORIGINS": "",
        "CHAT_URL": settings.chat_url,
        "CHAT_MODEL": settings.chat_model,
        "CHAT_KEY": settings.chat_key.get_secret_value(),
        "LOG_LEVEL": settings.log_level,
        "TWILIO_AUTH_TOKEN": "",
        "WEBHOOK_SECRET": "",
    }
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return inherited | {PREFIX + name: value for name, value in values.items()}


def _tls_context(settings: Settings) -> ssl.SSLContext | None:
    """How wss:// workers are trusted: the system's authorities, and the certificate we are given."""
    if "wss://" not in settings.workers:
        return None
    context = ssl.create_default_context()
    if settings.worker_tls_cert is not None:
        try:
            context.load_verify_locations(settings.worker_tls_cert)
        except OSError as error:
            raise SettingsInvalid(f"CALLPLEX_WORKER_TLS_CERT: cannot be read: {error}") from None
    return context
