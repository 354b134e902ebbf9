"""One worker of a pool, and what is known of it.

Owns whether it answers, how many slots it has free, and how far it is trusted. Knows nothing of the other
workers, of calls or of the wire's messages: sessions are `gateway.worker_client`'s.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine

import httpx

from gateway.engine import EngineFull, EngineLost
from gateway.worker_client import Describe, RemoteEngine, RemoteSession, WorkerSilent
from gateway.worker_connection import WorkerIncompatible, WorkerUnreachable
from model import wire
from model.wire import SessionRequest

log = logging.getLogger(__name__)

PROBE_SECONDS = 1.0
"""Between two questions to a worker how many slots it has free. One that is down is asked as often: when the other is
stopped right after it came back, the calls of that one must find it."""
PROBE_TIMEOUT = 2.0
"""Seconds that a worker has for its whole answer to that."""
SUSPECT_SECONDS, SUSPECT_LAST = 15.0, 300.0
"""How long others are asked before a worker that failed: doubled each time, up to the last."""
MAX_FREE = 10_000
"""No worker has more slots."""
HUNG_SECONDS = 20.0
"""A local worker that has answered nothing for this long is killed, and so started anew."""
HUNG_IN_CALL_SECONDS = 2.5
"""The same where a call found it silent, and was not answered since: a probe's pause and its time are longer than
this, so that the first probe without an answer decides, and the call is still there when the next worker is."""

_NO_WORKER = "answers otherwise than a worker does; look what listens there"


class PooledWorker:
    """One worker and what is known of it."""

    def __init__(self, engine: RemoteEngine, http: httpx.AsyncClient) -> None:
        self.engine = engine
        self.healthy = False
        self.reason = f"the worker at {engine.url} has not answered yet"
        """Why it is not healthy, in a sentence."""
        self.hung = False
        """It was silent while it held a session, or should have opened one, and has not answered since."""
        self._silent_in_call = False
        self._refused = False
        """It had no slot for a session that was to go on."""
        self._http = http
        self._free = 0
        self._sessions = 0
        self._incompatible = False
        """It said that it is ready, and opened us no WebSocket: until it is asked again its word counts for nothing."""
        self._doubts = 0
        """How often it lost sessions or opened none, since it last opened one."""
        self._suspect_until = 0.0
        self._opening = 0

    @property
    def free(self) -> int:
        """Free slots: what the worker said last, less what we have opened since. 0 if it is not healthy."""
        return max(0, self._free + self._sessions - self.engine.sessions) if self.healthy else 0

    @property
    def full(self) -> bool:
        """It refused a session that was to go on, and has had no slot free since.

        Its word that nothing is free would not do: while it runs late it takes no new call, but those under way.
        """
        return self._refused and not self.free

    @property
    def suspect(self) -> bool:
        """It lost a session, or opened none, and has opened none since: others are asked first.

        What it says of itself does not clear it. After a while one caller at a time finds out, so that it is not
        left out for ever.
        """
        return self._doubts > 0 and (self._opening > 0 or _now() < self._suspect_until)

    async def open(self, request: SessionRequest) -> RemoteSession:
        """Raises EngineFull or EngineLost, and remembers either."""
        return await self._remember(self.engine.open(request))

    async def resume(self, describe: Describe) -> RemoteSession:
        """Raises as `open`."""
        try:
            session = await self._remember(self.engine.resume(describe))
        except EngineFull:
            self._refused = True
            raise
        self._refused = self.full
        return session

    async def _remember(self, opening: Coroutine[None, None, RemoteSession]) -> RemoteSession:
        self._opening += 1
        try:
            session = await opening
        except EngineFull:
            self._know(0)
            raise
        except WorkerUnreachable as error:
            self._incompatible = isinstance(error, WorkerIncompatible)
            self._lost(str(error))
            self.doubt()
            raise
        except EngineLost as error:
            self.hung = self.hung or isinstance(error, WorkerSilent)
            self.doubt()
            raise
        finally:
            self._opening -= 1
        self._doubts, self._incompatible = 0, False
        return session

    async def probe(self) -> None:
        """Ask the worker how many slots it has free."""
        asked = self.engine.sessions
        url, headers = self.engine.readiness_url, self.engine.headers
        try:
            async with asyncio.timeout(PROBE_TIMEOUT):
                response = await self._http.get(url, headers=headers, timeout=PROBE_TIMEOUT)
        except (httpx.HTTPError, TimeoutError) as error:
            self._lost(f"the worker at {self.engine.url} does not answer ({str(error) or type(error).__name__})")
            return
        if response.status_code == 401:
            self._lost(f"the worker at {self.engine.url} refuses our token; set the same CALLPLEX_WORKER_TOKEN")
            return
        try:
            free = _free_slots(response.content)
        except ValueError as error:
            self._lost(f"the worker at {self.engine.url} {error}")
            return
        if self._incompatible and self.suspect:
            return
        if not self.healthy:
            log.info("the worker at %s answers, %d slots free", self.engine.url, free)
        self._know(free, asked)
        self.answers()

    async def watch(self, on_hung: Callable[[], None] | None = None) -> None:
        """Probe for ever.

        `on_hung` is called when nothing has been answered for HUNG_SECONDS, or for HUNG_IN_CALL_SECONDS where a call
        found that it hangs.
        """
        answered = _now()
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            await self.probe()
            if self.healthy:
                answered = _now()
                continue
            limit = HUNG_IN_CALL_SECONDS if self._silent_in_call else HUNG_SECONDS
            if on_hung is not None and _now() - answered > limit:
                on_hung()

    def silent(self) -> None:
        """It holds a session and does not answer in time."""
        self.hung = self._silent_in_call = True
        self.doubt()

    def answers(self) -> None:
        """It does, again."""
        self.hung = self._silent_in_call = False

    def doubt(self) -> None:
        """It lost a session, or opened none. Twice as long as the last time others are asked first; of losses that
        come together the first counts."""
        if _now() >= self._suspect_until:
            self._suspect_until = _now() + min(SUSPECT_SECONDS * 2 ** min(self._doubts, 9), SUSPECT_LAST)
            self._doubts += 1

    def _know(self, free: int, sessions: int | None = None) -> None:
        self.healthy = True
        self._free = free
        self._refused = self._refused and not free
        self._sessions = self.engine.sessions if sessions is None else sessions

    def _lost(self, reason: str) -> None:
        if self.healthy:
            log.warning("%s; its calls go elsewhere until it does", reason)
        self.healthy = False
        self.reason = reason


def _now() -> float:
    return asyncio.get_running_loop().time()


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
