"""Sessions for clients of Moshi's protocol, PersonaPlex's web client among them, on any engine, many at once.

Owns who may come in this way, and the translation between their messages and a session. What is said in them is
`model.moshi.protocol`'s. Nothing else knows of this folder but the place that starts a worker: it can be deleted.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Collection
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.frames import CloseCode
from websockets.http11 import Request

from model.moshi import protocol
from model.moshi.sound import Ears, Mouth
from model.server import bearer_is_right
from model.session import SessionEnded, converse
from model.slots import Slots
from model.wire import AgentFrame, AgentText, CallerFrame, Error, Output, WireError
from model.worker_engine import WorkerEngine

MOST = 16
"""Sessions at a time. Each frame takes a millisecond and a half of this process, in which `sphn` lets nothing else run,
another thread no more than this one: so many take 24 of every 80 ms, and the rest is left to the gateways' calls."""
SOUNDLESS_SECONDS = 30.0
"""After so long without a frame from its client a session ends: its slot is for others. A muted one sends silence."""
MOST_LOGGED = 16
"""Origins whose refusal the log tells, each once: whoever reaches the port can name as many as they like."""

log = logging.getLogger(__name__)


class MoshiDoor:
    """Implements `model.server.Door`."""

    path = protocol.PATH

    def __init__(
        self, origins: Collection[str] = (), *, most: int = MOST, soundless: float = SOUNDLESS_SECONDS
    ) -> None:
        """`origins`: whose web pages may open sessions, for example `https://talk.example.com`; no others may.

        most: sessions at a time. soundless: seconds without a frame after which one ends.
        """
        self._origins = frozenset(origins)
        self._most, self._soundless = most, soundless
        self._logged: set[str] = set()
        self._sessions = 0
        self._turn = asyncio.Lock()

    def refusal(self, request: Request, token: bytes) -> tuple[HTTPStatus, str] | None:
        for origin in request.headers.get_all("Origin"):
            if origin not in self._origins:
                self._log_refused(origin[:100])
                return HTTPStatus.FORBIDDEN, "Web pages of this origin may not open sessions here.\n"
        if bearer_is_right(request, token) or _shown_in_query(request, token):
            return None
        return HTTPStatus.UNAUTHORIZED, "The worker's token is missing or wrong.\n"

    def _log_refused(self, origin: str) -> None:
        """For the operator: a browser tells its user only that the connection failed."""
        if origin in self._logged or len(self._logged) >= MOST_LOGGED:
            return
        self._logged.add(origin)
        log.info(
            "a web page of %r asked for a session and was refused; if it is yours, name its origin in"
            " CALLPLEX_MOSHI_ORIGINS",
            origin,
        )

    async def serve(self, connection: ServerConnection, slots: Slots, engine: WorkerEngine) -> None:
        call_id = f"moshi-{secrets.token_hex(8)}"
        try:
            await self._session(connection, call_id, slots, engine)
        except (SessionEnded, WireError) as error:
            log.info("call %s is ended: %s", call_id, error)  # the clients there are show nobody what they are told
            raise

    async def _session(self, connection: ServerConnection, call_id: str, slots: Slots, engine: WorkerEngine) -> None:
        assert connection.request is not None
        parameters = protocol.query(connection.request.path)
        request = protocol.session_request(parameters, call_id, secrets.randbits(32))
        if self._sessions >= self._most:
            slots.counts.refused += 1
            reason = f"this worker holds {self._most} sessions of this protocol, and no more at a time"
            raise SessionEnded(Error("full", reason), CloseCode.TRY_AGAIN_LATER)
        self._sessions += 1
        try:
            async with slots.session(connection, call_id, lambda: engine.open(request)) as session:
                await connection.send(protocol.HANDSHAKE)
                client = _Client(connection, self._turn, self._soundless)
                await converse(client, session, slots.counts, slots.draining)
        finally:
            self._sessions -= 1

    def farewell(self, error: Error) -> bytes:
        return protocol.error(error.message)


def _shown_in_query(request: Request, token: bytes) -> bool:
    parameters = protocol.query(request.path)
    shown = (parameters.get(name, "") for name in protocol.TOKEN_PARAMETERS)
    return any(hmac.compare_digest(one.encode(errors="replace"), token) for one in shown)


class _Client:
    """Implements `model.session.Peer`."""

    def __init__(self, connection: ServerConnection, turn: asyncio.Lock, soundless: float) -> None:
        """`turn`: shared by all, of which one encodes at a time. soundless: seconds that a frame may take to come."""
        self._connection, self._turn, self._soundless = connection, turn, soundless
        self._ears, self._mouth = Ears(), Mouth()
        self._next = 0

    async def receive(self) -> CallerFrame:
        """The next 80 ms; what a client sent before the handshake is the first it hears."""
        try:
            async with asyncio.timeout(self._soundless):
                while not self._ears.frames:
                    self._ears.hear(protocol.sound_in(await self._connection.recv()))
        except TimeoutError:
            raise WireError(f"no sound came for {self._soundless:.0f} s; send silence where there is none") from None
        frame = CallerFrame(self._next, self._ears.frames.popleft())
        self._next += 1
        return frame

    async def send(self, output: Output) -> None:
        """Sound and the agent's words; the protocol has nothing for the rest."""
        if isinstance(output, AgentFrame):
            await self._connection.send(protocol.sound(await self._encoded(output.pcm)))
        elif isinstance(output, AgentText):
            await self._connection.send(protocol.text(output.text))

    async def _encoded(self, pcm: bytes) -> bytes:
        """Whatever else waits for the event loop comes before the next one's turn: a gateway's call waits for one frame
        of these at most, not for one of each."""
        async with self._turn:
            data = self._mouth.say(pcm)
            await asyncio.sleep(0)
        return data

    @property
    def reads(self) -> bool:
        return not self._connection.transport.get_write_buffer_size()
