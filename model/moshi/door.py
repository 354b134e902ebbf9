"""Sessions for clients of Moshi's protocol, PersonaPlex's web client among them, on any engine, many at once.

Owns who may come in this way, and the translation between their messages and a session. What is said in them is
`model.moshi.protocol`'s. Nothing else knows of this folder but the place that starts a worker: it can be deleted.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Collection
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request

from model.moshi import protocol
from model.moshi.sound import Ears, Mouth
from model.server import bearer_is_right
from model.session import converse
from model.slots import Slots
from model.wire import AgentFrame, AgentText, CallerFrame, Error, Output
from model.worker_engine import WorkerEngine


class MoshiDoor:
    """Implements `model.server.Door`."""

    path = protocol.PATH

    def __init__(self, origins: Collection[str] = ()) -> None:
        """`origins`: whose web pages may open sessions, for example `https://talk.example.com`; no others may."""
        self._origins = frozenset(origins)

    def refusal(self, request: Request, token: bytes) -> tuple[HTTPStatus, str] | None:
        if any(origin not in self._origins for origin in request.headers.get_all("Origin")):
            return HTTPStatus.FORBIDDEN, "Web pages of this origin may not open sessions here.\n"
        if bearer_is_right(request, token) or _shown_in_query(request, token):
            return None
        return HTTPStatus.UNAUTHORIZED, "The worker's token is missing or wrong.\n"

    async def serve(self, connection: ServerConnection, slots: Slots, engine: WorkerEngine) -> None:
        assert connection.request is not None
        call_id = f"moshi-{secrets.token_hex(8)}"
        parameters = protocol.query(connection.request.path)
        request = protocol.session_request(parameters, call_id, secrets.randbits(32))
        async with slots.session(connection, call_id, lambda: engine.open(request)) as session:
            await connection.send(protocol.HANDSHAKE)
            await converse(_Client(connection), session, slots.counts, slots.draining)

    def farewell(self, error: Error) -> bytes:
        return protocol.error(error.message)


def _shown_in_query(request: Request, token: bytes) -> bool:
    parameters = protocol.query(request.path)
    shown = (parameters.get(name, "") for name in protocol.TOKEN_PARAMETERS)
    return any(hmac.compare_digest(one.encode(errors="replace"), token) for one in shown)


class _Client:
    """Implements `model.session.Peer`."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._ears, self._mouth = Ears(), Mouth()
        self._next = 0

    async def receive(self) -> CallerFrame:
        """The next 80 ms; what a client sent before the handshake is the first it hears."""
        while not self._ears.frames:
            self._ears.hear(protocol.sound_in(await self._connection.recv()))
        frame = CallerFrame(self._next, self._ears.frames.popleft())
        self._next += 1
        return frame

    async def send(self, output: Output) -> None:
        """Sound and the agent's words; the protocol has nothing for the rest."""
        if isinstance(output, AgentFrame):
            await self._connection.send(protocol.sound(self._mouth.say(output.pcm)))
        elif isinstance(output, AgentText):
            await self._connection.send(protocol.text(output.text))

    @property
    def reads(self) -> bool:
        return not self._connection.transport.get_write_buffer_size()
