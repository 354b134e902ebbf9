"""The worker's WebSocket server: one connection a session, spoken in `model.wire`, whatever the engine.

Owns the listener, who may connect, how many sessions there are, and the lifetime of each. Knows
nothing of speech, models, phones or personas; an engine behind `WorkerEngine` does the talking.
Standard library and `websockets` only.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from model import wire
from model.wire import AgentFrame, CallerFrame, Output, SessionRequest

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 5.0
"""Seconds a gateway has to send its open request after connecting."""
ENGINE_OPEN_TIMEOUT = 10.0
"""Seconds the engine has to open a session."""
MAX_BEHIND = 125
"""Caller frames (80 ms each) a session may have unanswered, or answered but unread: 10 s. It bounds
what a session holds in memory, whether the engine is slow or the gateway does not read."""
PING_SECONDS = 10.0
"""Between keep-alive pings, and how long the answer may take: finds gateways whose machine vanished."""


class WorkerSession(Protocol):
    """One call inside the worker."""

    def push(self, frame: CallerFrame) -> None:
        """The caller's next 80 ms. Called on the event loop: never blocks, never raises for load."""

    def outputs(self) -> AsyncIterator[Output]:
        """Everything for the gateway, in order; ends after the last frame of `Done`, and after close."""

    def say(self, text: str) -> None:
        """The agent says this next."""

    def play(self, clip: str) -> None:
        """A prepared clip, sound for sound."""

    async def close(self) -> None:
        """Frees what the session holds. Called once, always."""


class WorkerEngine(Protocol):
    """What a worker runs. How many sessions it holds at once is decided by the server, not by it."""

    name: str

    async def start(self) -> None:
        """Load what sessions need; the listener opens afterwards."""

    async def stop(self) -> None:
        """Release everything; no session is open any more."""

    async def open(self, request: SessionRequest) -> WorkerSession:
        """A new session. Raises WireError if the request cannot be served as it is."""


class ListenRefused(Exception):
    """The worker cannot listen there; the message says why and what to do, in one sentence."""


class _Ended(Exception):
    """The session ends with this error and close code."""

    def __init__(self, error: wire.Error, close_code: CloseCode) -> None:
        super().__init__(error.message)
        self.error = error
        self.close_code = close_code


class _Finished(Exception):
    """The session has said everything."""


class _GatewayStopped(Exception):
    """The gateway does not read what it is sent."""


@dataclass(slots=True)
class Counts:
    """What the worker has done since it started."""

    sessions: int = 0
    refused: int = 0
    failed: int = 0
    frames: int = 0


class WorkerServer:
    """Serves one engine. `start` listens, `stop` ends every session and the listener.

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
    ) -> None:
        self.host, self.port = _split_address(listen)
        if not _is_loopback(self.host) and not (token and tls):
            raise ListenRefused(
                f"a worker on {listen} is reachable from other machines and needs a token and TLS: set"
                " CALLPLEX_WORKER_TOKEN, CALLPLEX_WORKER_TLS_CERT and CALLPLEX_WORKER_TLS_KEY,"
                " or listen on 127.0.0.1"
            )
        self.engine = engine
        self.capacity = capacity
        self.active = 0
        self.counts = Counts()
        self.name = name or f"{socket.gethostname()}-{os.getpid()}"
        self._token = token.encode()
        self._tls = tls
        self._server: Server | None = None

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
                subprotocols=[Subprotocol(wire.SUBPROTOCOL)],
                origins=[None],  # a gateway sends no Origin; a web page on this machine always does
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

    async def stop(self) -> None:
        """End every session (close code 1001) and the listener."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    # Plain HTTP, and who may connect.

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "ok\n")
        given = request.headers.get_all("Authorization")
        wrong = bool(self._token) and not (
            len(given) == 1
            and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), b"Bearer " + self._token)
        )
        if wrong and (given or path != "/readyz"):
            response = connection.respond(HTTPStatus.UNAUTHORIZED, "The worker's token is missing or wrong.\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        if path == "/readyz":
            return self._readiness(connection)
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._metrics())
        if path != wire.PATH:
            return connection.respond(HTTPStatus.NOT_FOUND, f"Nothing here; sessions are at {wire.PATH}.\n")
        return None

    def _readiness(self, connection: ServerConnection) -> Response:
        """200 with a free slot, else 503; the body says how many there are."""
        free = self.capacity - self.active
        body = {"engine": self.engine.name, "capacity": self.capacity, "free": free}
        status = HTTPStatus.OK if free > 0 else HTTPStatus.SERVICE_UNAVAILABLE
        response = connection.respond(status, json.dumps(body) + "\n")
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    def _metrics(self) -> str:
        values = [
            ("active_sessions", "gauge", self.active),
            ("capacity", "gauge", self.capacity),
            ("sessions_total", "counter", self.counts.sessions),
            ("refused_total", "counter", self.counts.refused),
            ("failed_total", "counter", self.counts.failed),
            ("frames_total", "counter", self.counts.frames),
        ]
        lines = (f"# TYPE callplex_worker_{n} {kind}\ncallplex_worker_{n} {value}\n" for n, kind, value in values)
        return "".join(lines)

    # One session.

    async def _handle(self, connection: ServerConnection) -> None:
        """The whole life of a connection: whatever goes wrong is told to this gateway and touches no other."""
        try:
            try:
                await self._session(connection)
                ended = None
            except _Ended as error:
                ended = error
            except wire.WireError as error:
                ended = _Ended(wire.Error("invalid", str(error)), CloseCode.POLICY_VIOLATION)
            except _GatewayStopped:
                log.warning("a gateway stopped reading; its session is dropped")
                connection.transport.abort()
                return
            if ended is None:
                await connection.close()
            else:
                await connection.send(wire.encode(ended.error))
                await connection.close(ended.close_code)
        except ConnectionClosed:
            return

    async def _session(self, connection: ServerConnection) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                message = await connection.recv()
        except TimeoutError:
            raise wire.WireError(f"no open request came within {OPEN_TIMEOUT:.0f} s") from None
        request = wire.decode_open(message)
        if self.active >= self.capacity:
            self.counts.refused += 1
            error = wire.Error("full", f"all {self.capacity} slots of this worker are taken")
            raise _Ended(error, CloseCode.TRY_AGAIN_LATER)
        self.active += 1
        try:
            await self._hold_slot(connection, request)
        finally:
            self.active -= 1

    async def _hold_slot(self, connection: ServerConnection, request: SessionRequest) -> None:
        """Run the session in a slot that is counted already."""
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(ENGINE_OPEN_TIMEOUT):
                    session = await self.engine.open(request)
                stack.push_async_callback(session.close)
                self.counts.sessions += 1
                await connection.send(wire.encode(wire.Ready(self.engine.name, self.name)))
                await _converse(connection, session, self.counts)
        except (wire.WireError, ConnectionClosed, _Ended, _GatewayStopped):
            raise
        except Exception as error:  # the engine's fault, of whatever kind, ends this session only
            self.counts.failed += 1
            log.exception("the session of call %s failed", request.call_id)
            failed = wire.Error("failed", "the worker could not continue the session; its log says why")
            raise _Ended(failed, CloseCode.INTERNAL_ERROR) from error


@dataclass(slots=True)
class _Progress:
    answered: int = 0


async def _converse(connection: ServerConnection, session: WorkerSession, counts: Counts) -> None:
    """Both directions until either ends; raises what the first of them raised."""
    progress = _Progress()
    try:
        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(_send_outputs(connection, session, progress))
            await _receive(connection, session, progress, counts)
            sender.cancel()
    except ExceptionGroup as group:
        if not isinstance(group.exceptions[0], _Finished):
            raise group.exceptions[0] from None


async def _receive(connection: ServerConnection, session: WorkerSession, progress: _Progress, counts: Counts) -> None:
    """Hand the gateway's messages to the session until it closes. Raises WireError at its faults."""
    expected = 0
    while True:
        try:
            message = wire.decode_to_worker(await connection.recv())
        except ConnectionClosed:
            return
        if isinstance(message, CallerFrame):
            if message.index != expected:
                raise wire.WireError(f"caller frame {message.index} came where {expected} was due")
            expected += 1
            if expected - progress.answered > MAX_BEHIND:
                _refuse_backlog(connection)
            counts.frames += 1
            session.push(message)
        elif isinstance(message, wire.Close):
            return
        elif isinstance(message, wire.Say):
            session.say(message.text)
        else:
            session.play(message.clip)


def _refuse_backlog(connection: ServerConnection) -> None:
    if connection.transport.get_write_buffer_size():
        raise _GatewayStopped
    error = wire.Error("failed", f"{MAX_BEHIND} caller frames wait for an answer; send one every 80 ms")
    raise _Ended(error, CloseCode.TRY_AGAIN_LATER)


async def _send_outputs(connection: ServerConnection, session: WorkerSession, progress: _Progress) -> None:
    """Send what the session says as it comes. Raises _Finished when it has said everything."""
    finished = False
    try:
        async for output in session.outputs():
            await connection.send(wire.encode(output))
            if isinstance(output, AgentFrame):
                progress.answered += 1
            elif isinstance(output, wire.Done):
                finished = True
    except ConnectionClosed:
        return
    if not finished:
        raise RuntimeError("the engine ended a session without saying why")
    raise _Finished


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
