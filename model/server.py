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
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from model import wire
from model.session import Counts, GatewayStopped, SessionEnded, converse
from model.wire import SessionRequest
from model.worker_engine import ResumingEngine, SupervisedEngine, WorkerEngine, WorkerSession

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 5.0
"""Seconds a gateway has to send its open request after connecting."""
ENGINE_OPEN_TIMEOUT = 10.0
"""Seconds the engine has to open a session."""
PING_SECONDS = 10.0
"""Between keep-alive pings, and how long the answer may take: finds gateways whose machine vanished."""


class ListenRefused(Exception):
    """The worker cannot listen there; the message says why and what to do, in one sentence."""


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
        self._draining = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

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

    async def drain(self, timeout: float) -> None:
        """Take no more sessions, and end those there are so that gateways resume them elsewhere at once.

        Each is told the error `draining`. Returns when all have gone, `timeout` seconds at most.
        """
        self._draining.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._idle.wait()

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
        refuses = isinstance(self.engine, SupervisedEngine) and bool(self.engine.refusal)
        free = 0 if refuses or self._draining.is_set() else self.capacity - self.active
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
            ("resumed_total", "counter", self.counts.resumed),
            ("frames_total", "counter", self.counts.frames),
        ]
        if isinstance(self.engine, SupervisedEngine):
            values += [(f"engine_{name}_total", "counter", number) for name, number in self.engine.counters().items()]
        lines = (f"# TYPE callplex_worker_{n} {kind}\ncallplex_worker_{n} {value}\n" for n, kind, value in values)
        return "".join(lines)

    # One session.

    async def _handle(self, connection: ServerConnection) -> None:
        """The whole life of a connection: whatever goes wrong is told to this gateway and touches no other."""
        try:
            try:
                await self._session(connection)
                ended = None
            except SessionEnded as error:
                ended = error
            except wire.WireError as error:
                ended = SessionEnded(wire.Error("invalid", str(error)), CloseCode.POLICY_VIOLATION)
            except GatewayStopped:
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
        request = wire.decode_open(await _first_message(connection, "open request"))
        if self._draining.is_set():
            raise SessionEnded(wire.Error("draining", "the worker is being stopped"), CloseCode.GOING_AWAY)
        if self.active >= self.capacity:
            self.counts.refused += 1
            error = wire.Error("full", f"all {self.capacity} slots of this worker are taken")
            raise SessionEnded(error, CloseCode.TRY_AGAIN_LATER)
        self.active += 1
        self._idle.clear()
        try:
            await self._hold_slot(connection, request)
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()

    async def _hold_slot(self, connection: ServerConnection, request: SessionRequest) -> None:
        """Run the session in a slot that is counted already."""
        try:
            async with AsyncExitStack() as stack:
                session = await self._open(connection, request)
                stack.push_async_callback(session.close)
                self.counts.sessions += 1
                resumable = isinstance(self.engine, ResumingEngine)
                await connection.send(wire.encode(wire.Ready(self.engine.name, self.name, resumable)))
                first = request.resume.next_index if request.resume else 0
                await converse(connection, session, self.counts, self._draining, first)
        except (wire.WireError, ConnectionClosed, SessionEnded, GatewayStopped):
            raise
        except Exception as error:  # the engine's fault, of whatever kind, ends this session only
            self.counts.failed += 1
            log.exception("the session of call %s failed", request.call_id)
            failed = wire.Error("failed", "the worker could not continue the session; its log says why")
            raise SessionEnded(failed, CloseCode.INTERNAL_ERROR) from error

    async def _open(self, connection: ServerConnection, request: SessionRequest) -> WorkerSession:
        engine, resume = self.engine, request.resume
        if resume is None:
            return await _while_connected(connection, engine.open(request))
        history = wire.decode_history(await _first_message(connection, "history"), resume)
        if not isinstance(engine, ResumingEngine):
            raise wire.WireError(f"the {engine.name} engine cannot go on with another worker's session")
        self.counts.resumed += 1
        return await _while_connected(connection, engine.resume(request, history))


async def _while_connected(
    connection: ServerConnection, opening: Coroutine[None, None, WorkerSession]
) -> WorkerSession:
    """What the engine opens. For a gateway that left meanwhile nothing is opened: its slot is free at once."""
    task = asyncio.create_task(opening)
    gone = asyncio.create_task(connection.wait_closed())
    try:
        await asyncio.wait({task, gone}, timeout=ENGINE_OPEN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.wait({task, gone})
    if task.cancelled():
        if gone.cancelled():
            raise TimeoutError(f"the engine opened no session within {ENGINE_OPEN_TIMEOUT:.0f} s")
        raise connection.protocol.close_exc
    return task.result()


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
