"""The worker's WebSocket server: one connection a session, spoken in `model.wire`, whatever the engine.

Owns the listener, who may connect, how many sessions there are, and the lifetime of each. Knows
nothing of speech, models, phones or personas; an engine behind `WorkerEngine` does the talking.
Standard library and `websockets` only.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
import socket
import ssl
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Protocol
from weakref import WeakSet

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed, NegotiationError
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from model import wire
from model.metrics import Histogram, Kind, exposition
from model.session import Gateway, GatewayStopped, SessionEnded, converse
from model.slots import Slots
from model.wire import SessionRequest
from model.worker_engine import ResumingEngine, SupervisedEngine, WorkerEngine, WorkerSession

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 5.0
"""Seconds a gateway has to send its open request after connecting."""
STOP_TIMEOUT = 0.5
"""Seconds that peers have to answer the close when the worker stops, or to be gone once they are cut off."""
PING_SECONDS = 10.0
"""Between keep-alive pings, and how long the answer may take: finds gateways whose machine vanished."""


class ListenRefused(Exception):
    """The worker cannot listen there; the message says why and what to do, in one sentence."""


class Door(Protocol):
    """Another protocol at a path of its own, for sessions of the same slots."""

    path: str

    def refusal(self, request: Request, token: bytes) -> tuple[HTTPStatus, str] | None:
        """Why this request may not come in; `token` is the worker's, empty where none is asked for."""

    async def serve(self, connection: ServerConnection, slots: Slots, engine: WorkerEngine) -> None:
        """One session. Raises SessionEnded, WireError, GatewayStopped and ConnectionClosed."""

    def farewell(self, error: wire.Error) -> str | bytes:
        """The message that tells the peer why it ends."""


def bearer_is_right(request: Request, token: bytes) -> bool:
    """The request shows the token as RFC 6750 has it, in one Authorization header, or none is asked for."""
    given = request.headers.get_all("Authorization")
    return not token or (
        len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), b"Bearer " + token)
    )


def _unauthorised(connection: ServerConnection) -> Response:
    response = connection.respond(HTTPStatus.UNAUTHORIZED, "The worker's token is missing or wrong.\n")
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _select_subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """Our newest that is offered. At our own path one must be; whoever comes in by another door has none."""
    for ours in map(Subprotocol, wire.SUBPROTOCOLS):
        if ours in offered:
            return ours
    request = connection.request
    if request is not None and request.path.partition("?")[0] == wire.PATH:
        raise NegotiationError(f"the subprotocol {wire.SUBPROTOCOL} is not offered")
    return None


class WorkerServer:
    """Serves one engine. `start` listens, `drain` hands the sessions over, `stop` ends them and the listener.

    `listen` is host:port (port 0: any free one, see `url`). Off loopback both `token` and `tls` are
    required, else ListenRefused.
    """

    def __init__(
        self,
        engine: WorkerEngine,
        listen: str,
        *,
        token: str = "",
        capacity: int = 4,
        tls: ssl.SSLContext | None = None,
        name: str = "",
        doors: Sequence[Door] = (),
    ) -> None:
        self.host, self.port = _split_address(listen)
        if not _is_loopback(self.host) and not (token and tls):
            raise ListenRefused(
                f"a worker on {listen} is reachable from other machines and needs a token and TLS: set"
                " CALLPLEX_WORKER_TOKEN, CALLPLEX_WORKER_TLS_CERT and CALLPLEX_WORKER_TLS_KEY,"
                " or listen on 127.0.0.1"
            )
        self.engine = engine
        self.slots = Slots(capacity)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self._token = token.encode()
        self._tls = tls
        self._server: Server | None = None
        self._connections: WeakSet[ServerConnection] = WeakSet()
        """Those that have sent no request yet among them."""
        self._doors = {door.path: door for door in doors}

    @property
    def url(self) -> str:
        """Where a gateway reaches this worker."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self._tls else 'ws'}://{host}:{self.port}{wire.PATH}"

    async def start(self) -> None:
        """Listen. Raises ListenRefused if the port is taken or not ours to use."""
        quiet = log.getChild("websocket")
        quiet.setLevel(logging.CRITICAL)  # what a peer does wrong is told to the peer; the rest is logged here
        try:
            self._server = await serve_websockets(
                self._handle,
                self.host,
                self.port,
                process_request=self._process_request,
                select_subprotocol=_select_subprotocol,
                create_connection=self._connection,  # type: ignore[arg-type]  # it is only called
                compression=None,
                max_size=wire.MAX_MESSAGE,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                open_timeout=OPEN_TIMEOUT,
                close_timeout=2.0,
                ssl=self._tls,
                logger=quiet,
            )
        except OSError as error:
            reason = error.strerror or str(error)
            raise ListenRefused(f"cannot listen on {self.host}:{self.port} ({reason}); choose another port") from error
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def drain(self, timeout: float) -> None:
        """Take no more sessions, and end those there are so that gateways resume them elsewhere at once.

        Each is told the error `draining`. Returns when all have gone, `timeout` seconds at most.
        """
        await self.slots.drain(timeout)

    async def stop(self) -> None:
        """End every session (close code 1001) and the listener. Peers that do not answer the close are cut off."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if await _all_gone(server):
            return
        for connection in self._connections:
            if hasattr(connection, "transport"):  # which it has once TLS is agreed upon
                connection.transport.abort()
        await _all_gone(server)

    def _connection(self, *arguments: Any, **options: Any) -> ServerConnection:
        connection = ServerConnection(*arguments, **options)
        self._connections.add(connection)
        return connection

    # Plain HTTP, and who may connect.

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        door = self._doors.get(path)
        if door is not None:
            refusal = door.refusal(request, self._token)
            return connection.respond(*refusal) if refusal else None
        right = bearer_is_right(request, self._token)
        if not right and ("Authorization" in request.headers or path != "/readyz"):
            return _unauthorised(connection)
        if path == "/readyz":
            return self._readiness(connection)
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._metrics())
        if path != wire.PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"Nothing here; sessions are at {wire.PATH}.\n")
        if "Origin" in request.headers:  # a gateway sends none; a web page on this machine always does
            return connection.respond(HTTPStatus.FORBIDDEN, "Web pages cannot open sessions here.\n")
        return None

    def _readiness(self, connection: ServerConnection) -> Response:
        """200 with a free slot, else 503; the body says how many there are, what we speak, and why no call is taken."""
        refusal, free = self._refusal, self._free
        body: dict[str, Any] = {"engine": self.engine.name, "capacity": self.slots.capacity, "free": free}
        body["subprotocols"] = wire.SUBPROTOCOLS
        if refusal:
            body["refusal"] = refusal
        status = HTTPStatus.OK if free > 0 else HTTPStatus.SERVICE_UNAVAILABLE
        response = connection.respond(status, json.dumps(body) + "\n")
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    @property
    def _refusal(self) -> str:
        """Why the engine takes no call now; empty if it does."""
        return self.engine.refusal if isinstance(self.engine, SupervisedEngine) else ""

    @property
    def _free(self) -> int:
        """Calls that would be taken now."""
        return 0 if self._refusal else self.slots.free

    def _metrics(self) -> str:
        counts = self.slots.counts
        values: list[tuple[str, Kind, int]] = [
            ("active_sessions", "gauge", self.slots.active),
            ("capacity", "gauge", self.slots.capacity),
            ("free", "gauge", self._free),
            ("sessions_total", "counter", counts.sessions),
            ("refused_total", "counter", counts.refused),
            ("failed_total", "counter", counts.failed),
            ("resumed_total", "counter", counts.resumed),
            ("frames_total", "counter", counts.frames),
        ]
        histograms: dict[str, Histogram] = {}
        if isinstance(self.engine, SupervisedEngine):
            values += [(f"engine_{name}_total", "counter", number) for name, number in self.engine.counters().items()]
            histograms = {f"engine_{name}": one for name, one in self.engine.histograms().items()}
        return exposition(values, histograms)

    # One session.

    async def _handle(self, connection: ServerConnection) -> None:
        """The whole life of a connection: whatever goes wrong is told to this peer and touches no other."""
        request = connection.request
        door = self._doors.get(request.path.partition("?")[0]) if request is not None else None
        session = door.serve(connection, self.slots, self.engine) if door is not None else self._session(connection)
        farewell = door.farewell if door is not None else wire.encode
        try:
            try:
                await session
                ended = None
            except SessionEnded as error:
                ended = error
            except wire.WireError as error:
                ended = SessionEnded(wire.Error("invalid", str(error)), CloseCode.POLICY_VIOLATION)
            except GatewayStopped:
                log.warning("a peer stopped reading; its session is dropped")
                connection.transport.abort()
                return
            if ended is None:
                await _close(connection, CloseCode.NORMAL_CLOSURE)
            else:
                await connection.send(farewell(ended.error))
                await _close(connection, ended.close_code)
        except ConnectionClosed:
            return

    async def _session(self, connection: ServerConnection) -> None:
        request = wire.decode_open(await _first_message(connection, "open request"))
        gateway, slots, words = Gateway(connection), self.slots, None
        with slots.presence():
            async with slots.session(connection, request.call_id, lambda: self._open(connection, request)) as session:
                resumable = isinstance(self.engine, ResumingEngine)
                await connection.send(wire.encode(wire.Ready(self.engine.name, self.name, resumable)))
                first = request.resume.next_index if request.resume else 0
                over = await converse(gateway, session, slots.counts, slots.draining, first)
                if over and gateway.waits:
                    words = session.finish()
            if words is not None:
                await gateway.send_last(words)

    async def _open(self, connection: ServerConnection, request: SessionRequest) -> WorkerSession:
        engine, resume = self.engine, request.resume
        if resume is None:
            return await engine.open(request)
        history = wire.decode_history(await _first_message(connection, "history"), resume)
        if not isinstance(engine, ResumingEngine):
            raise wire.WireError(f"the {engine.name} engine cannot go on with another worker's session")
        session = await engine.resume(request, history)
        self.slots.counts.resumed += 1
        return session


async def _all_gone(server: Server) -> bool:
    """Wait until nobody is connected, STOP_TIMEOUT at most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT):
            await server.wait_closed()
            return True
    return False


async def _close(connection: ServerConnection, code: CloseCode) -> None:
    """Close, and read what the peer still sends: its answer to the close comes after that, and the queue has an end."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_drop_messages(connection))
        await connection.close(code)


async def _drop_messages(connection: ServerConnection) -> None:
    with contextlib.suppress(ConnectionClosed):
        while True:
            await connection.recv(decode=False)


async def _first_message(connection: ServerConnection, what: str) -> str | bytes:
    try:
        async with asyncio.timeout(OPEN_TIMEOUT):
            return await connection.recv()
    except TimeoutError:
        raise wire.WireError(f"no {what} came within {OPEN_TIMEOUT:.0f} s") from None


def _split_address(listen: str) -> tuple[str, int]:
    host, separator, port = listen.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65_535:
        raise ListenRefused(f"{listen!r} is not host:port, for example 127.0.0.1:8090")
    return "127.0.0.1" if host == "localhost" else host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
