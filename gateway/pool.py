"""Which worker gets a call: our own child process, or the best of those given as URLs.

Owns what is known of each worker: whether it answers and how many slots it has free. Knows nothing of
calls or of the wire's messages: sessions are `gateway.worker_client`'s.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import ssl
import sys
from collections.abc import Callable, Sequence

import httpx

from gateway.engine import EngineFull, EngineLost
from gateway.local_worker import START_TIMEOUT, LocalWorker
from gateway.settings import PREFIX, Settings, SettingsInvalid
from gateway.worker_client import RemoteEngine, RemoteSession, WorkerUnreachable
from model.wire import History, SessionRequest

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
"""Between two questions to a worker how many slots it has free."""
PROBE_LAST = 5.0
"""Longest pause between questions to a worker that does not answer: doubled each time, up to this."""
PROBE_TIMEOUT = 2.0
SILENT_SECONDS = 5.0
"""A worker that was silent in a call is asked after others for so long, whatever it says of itself: it finds out that
its engine hangs only after 3 s (`model.engine_watch`), and until then lets calls wait for it."""
HUNG_SECONDS = 20.0
"""A local worker that has answered nothing for this long is killed, and so started anew."""
WORKER_COMMAND = (sys.executable, "-m", "gateway.cli", "worker", "--listen", "127.0.0.1:0", "--exit-with-parent")


class PooledWorker:
    """One worker and what is known of it."""

    def __init__(self, engine: RemoteEngine, http: httpx.AsyncClient) -> None:
        self.engine = engine
        self.healthy = False
        self.reason = f"the worker at {engine.url} has not answered yet"
        """Why it is not healthy, in a sentence."""
        self.suspect = False
        """It lost a session since it last answered, or was silent just now: others are asked first."""
        self.hung = False
        """It was silent while it held one: nobody who cannot wait asks it."""
        self._http = http
        self._free = 0
        self._sessions = 0
        self._silent_until = -math.inf

    @property
    def free(self) -> int:
        """Free slots: what the worker said last, less what we have opened since. 0 if it is not healthy."""
        return max(0, self._free + self._sessions - self.engine.sessions) if self.healthy else 0

    async def open(self, request: SessionRequest, history: History | None = None) -> RemoteSession:
        """Raises EngineFull or EngineLost, and remembers either."""
        try:
            return await self.engine.open(request, history)
        except EngineFull:
            self._know(0)
            raise
        except WorkerUnreachable as error:
            self._lost(str(error))
            raise

    async def probe(self) -> None:
        """Ask the worker how many slots it has free."""
        asked = self.engine.sessions
        try:
            response = await self._http.get(self.engine.readiness_url, headers=self.engine.headers)
            if response.status_code == 401:
                self._lost(f"the worker at {self.engine.url} refuses our token; set the same CALLPLEX_WORKER_TOKEN")
                return
            free = int(response.json()["free"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            self._lost(f"the worker at {self.engine.url} does not answer ({error or type(error).__name__})")
            return
        if not self.healthy:
            log.info("the worker at %s answers, %d slots free", self.engine.url, free)
        self._know(free, asked)
        self.hung = False
        self.suspect = _now() < self._silent_until

    async def watch(self, on_hung: Callable[[], None] | None = None) -> None:
        """Probe for ever: often while it answers, with growing pauses while it does not.

        `on_hung` is called when nothing has been answered for HUNG_SECONDS.
        """
        pause, answered = PROBE_SECONDS, _now()
        while True:
            await asyncio.sleep(pause)
            await self.probe()
            if self.healthy:
                pause, answered = PROBE_SECONDS, _now()
                continue
            pause = min(2 * pause, PROBE_LAST)
            if on_hung is not None and _now() - answered > HUNG_SECONDS:
                on_hung()

    def lost_session(self, hung: bool) -> None:
        """A session of this worker broke, or was given up because the worker was silent."""
        self.suspect = True
        if hung:
            self.hung, self._silent_until = True, _now() + SILENT_SECONDS

    def _know(self, free: int, sessions: int | None = None) -> None:
        self.healthy = True
        self._free = free
        self._sessions = self.engine.sessions if sessions is None else sessions

    def _lost(self, reason: str) -> None:
        if self.healthy:
            log.warning("%s; its calls go elsewhere until it does", reason)
        self.healthy = False
        self.reason = reason


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
        self._http = httpx.AsyncClient(verify=self._tls or False, timeout=PROBE_TIMEOUT, trust_env=False)
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

    async def open(self, request: SessionRequest, history: History | None = None) -> RemoteSession:
        """A session of the worker with the most free slots; if it refuses, of the next one.

        With `history` it is one that goes on; it cannot wait for a worker that hangs. Raises EngineFull
        if none accepted and one of them only for being full, else EngineLost.
        """
        full = ""
        lost = next((worker.reason for worker in self.workers if not worker.healthy), "")
        for worker in sorted(self.workers, key=lambda worker: (worker.suspect, -worker.free)):
            if not worker.healthy or (worker.hung and history is not None):
                continue
            try:
                return await worker.open(request, history)
            except EngineFull as error:
                full = str(error)
            except EngineLost as error:
                lost = str(error)
        if full:
            raise EngineFull(full if len(self.workers) == 1 else "no worker has a free slot")
        raise EngineLost(lost or "the local worker is being started again; its messages say why it ended")

    def lost_session(self, url: str, hung: bool) -> None:
        """A session of the worker at `url` was lost; `hung`: it was silent, else its connection broke."""
        for worker in self.workers:
            if worker.engine.url == url:
                worker.lost_session(hung)

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


def _now() -> float:
    return asyncio.get_running_loop().time()


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
