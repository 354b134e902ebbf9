"""One worker of a pool, and what is known of it.

Owns whether it answers, how many slots it has free, and how far it is trusted. Knows nothing of the other
workers, of calls or of the wire's messages: sessions are `gateway.worker_client`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable

import httpx

from gateway.engine import EngineFull
from gateway.worker_client import RemoteEngine, RemoteSession, WorkerUnreachable
from model import wire
from model.wire import History, SessionRequest

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
"""Between two questions to a worker how many slots it has free."""
PROBE_LAST = 5.0
"""Longest pause between questions to a worker that does not answer: doubled each time, up to this."""
PROBE_TIMEOUT = 2.0
"""Seconds that a worker has for its whole answer to that."""
MAX_FREE = 10_000
"""No worker has more slots."""
HUNG_SECONDS = 20.0
"""A local worker that has answered nothing for this long is killed, and so started anew."""

_NO_WORKER = "answers otherwise than a worker does; look what listens there"


class PooledWorker:
    """One worker and what is known of it."""

    def __init__(self, engine: RemoteEngine, http: httpx.AsyncClient) -> None:
        self.engine = engine
        self.healthy = False
        self.reason = f"the worker at {engine.url} has not answered yet"
        """Why it is not healthy, in a sentence."""
        self.suspect = False
        """It lost a session since it last answered: others are asked first."""
        self.hung = False
        """It was silent while it held one: nobody who cannot wait asks it."""
        self._http = http
        self._free = 0
        self._sessions = 0

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
        url, headers = self.engine.readiness_url, self.engine.headers
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                response = await self._http.get(url, headers=headers, timeout=PROBE_TIMEOUT)
        except (httpx.HTTPError, TimeoutError) as error:
            self._lost(f"the worker at {self.engine.url} does not answer ({error or type(error).__name__})")
            return
        if response.status_code == 401:
            self._lost(f"the worker at {self.engine.url} refuses our token; set the same CALLPLEX_WORKER_TOKEN")
            return
        try:
            free = _free_slots(response.content)
        except ValueError as error:
            self._lost(f"the worker at {self.engine.url} {error}")
            return
        if not self.healthy:
            log.info("the worker at %s answers, %d slots free", self.engine.url, free)
        self._know(free, asked)
        self.suspect = self.hung = False

    async def watch(self, on_hung: Callable[[], None] | None = None) -> None:
        """Probe for ever: often while it answers, with growing pauses while it does not.

        `on_hung` is called when nothing has been answered for HUNG_SECONDS.
        """
        clock = asyncio.get_running_loop().time
        pause, answered = PROBE_SECONDS, clock()
        while True:
            await asyncio.sleep(pause)
            await self.probe()
            if self.healthy:
                pause, answered = PROBE_SECONDS, clock()
                continue
            pause = min(2 * pause, PROBE_LAST)
            if on_hung is not None and clock() - answered > HUNG_SECONDS:
                on_hung()

    def lost_session(self, hung: bool) -> None:
        """A session of this worker broke, or was given up because the worker was silent."""
        self.suspect = True
        self.hung = self.hung or hung

    def _know(self, free: int, sessions: int | None = None) -> None:
        self.healthy = True
        self._free = free
        self._sessions = self.engine.sessions if sessions is None else sessions

    def _lost(self, reason: str) -> None:
        if self.healthy:
            log.warning("%s; its calls go elsewhere until it does", reason)
        self.healthy = False
        self.reason = reason


def _free_slots(readiness: bytes) -> int:
    """What a worker says of itself. Raises ValueError, with the rest of a sentence, if it cannot serve us."""
    try:
        said = json.loads(readiness)
        free, theirs = said["free"], said.get("subprotocols", [wire.SUBPROTOCOL])  # which older workers do not say
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(_NO_WORKER) from None
    listed = isinstance(theirs, list) and all(isinstance(one, str) for one in theirs)
    if not (listed and type(free) is int and 0 <= free <= MAX_FREE):
        raise ValueError(_NO_WORKER)
    if not set(theirs) & set(wire.SUBPROTOCOLS):
        raise ValueError(
            f"speaks {' or '.join(theirs)} and we {' or '.join(wire.SUBPROTOCOLS)};"
            " install the same version of Callplex on both sides"
        )
    return free
