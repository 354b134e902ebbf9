"""The gateway's end of the wire: sessions of a worker over one WebSocket each.

Owns how a session is opened, spoken and closed, and the time each of that may take. Knows nothing of calls, phones or
where workers are (`gateway.pool`); the connection is `gateway.worker_connection`'s.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

from gateway.engine import EngineError, EngineFull, EngineLost
from gateway.worker_connection import WorkerConnection, WorkerUnreachable
from gateway.worker_url import parse
from model import wire
from model.wire import CallerFrame, CallerText, Output, SessionRequest

CONNECT_TIMEOUT = 2.0
"""Seconds until a worker has accepted the connection and the WebSocket."""
READY_TIMEOUT = 10.0
"""Seconds until a connected worker has opened the session."""
RESUME_CONNECT_TIMEOUT, RESUME_READY_TIMEOUT = 0.5, 1.5
"""The same where a caller is on the line already: until ready below the 2 s that a call waits for sound it is owed."""
CLOSE_TIMEOUT = 1.0
"""Seconds a worker has to free the slot before the connection is cut."""
LAST_WORDS_TIMEOUT = 2.5
"""Seconds it then has to say what the caller was still saying, and to close its end; a little more than it takes."""


class WorkerSilent(EngineLost):
    """It did not answer in the time it had."""


Describe = Callable[[], tuple[SessionRequest, wire.History]]
"""What a worker must know to go on with a session, as it stands at that moment; `resume` of the request says so."""


class RemoteSession:
    """A session of a worker. Implements `gateway.engine.Session`."""

    def __init__(self, connection: WorkerConnection, ready: wire.Ready, url: str, first: int = 0) -> None:
        self.engine = ready.engine
        self.worker = ready.worker
        """Which worker holds the session, for records and logs."""
        self.resumable = ready.resumable
        """Whether its frames carry what another worker needs to go on."""
        self.url = url
        self._connection = connection
        self._sent = first
        self._heard = 0
        """Caller frames before this one are told."""
        self._lost = False
        self._closed = False

    async def send(self, pcm: bytes, line: bytes = b"") -> None:
        if self._closed:
            return
        self._connection.send(wire.encode_frame(CallerFrame(self._sent, pcm)))
        self._sent += 1

    async def outputs(self) -> AsyncIterator[Output]:
        connection = self._connection
        while not self._closed:
            while connection.inbox:
                message = connection.inbox.popleft()
                if isinstance(message, wire.Error):
                    connection.fail(message.message)
                elif isinstance(message, wire.Ready):
                    connection.fail("the worker broke the protocol: it said ready twice")
                else:
                    if isinstance(message, CallerText) and message.final:
                        self._heard = message.end
                    yield message
            if connection.ended:
                break
            await connection.arrival()
        if connection.error and not self._closed:
            raise EngineLost(connection.error)

    async def say(self, text: str) -> None:
        if not self._closed:
            self._connection.send(wire.encode(wire.Say(text)))

    async def play(self, clip: str) -> None:
        if not self._closed:
            self._connection.send(wire.encode(wire.Play(clip)))

    @property
    def unread(self) -> bool:
        """The worker has answered a frame, or is finished, and `outputs` has not taken it yet."""
        return any(isinstance(message, wire.AgentFrame | wire.Done) for message in self._connection.inbox)

    @property
    def stopping(self) -> bool:
        """It ended because its worker is being stopped: nothing that the session did."""
        return self._connection.stopping

    def give_up(self, reason: str) -> None:
        """The worker is not waited for any longer: `outputs` raises EngineLost with this reason, and says no more."""
        self._connection.inbox.clear()
        self._connection.fail(reason)

    async def close(self) -> None:
        """Waits until the worker has freed the slot, CLOSE_TIMEOUT at most."""
        if not self._closed:
            self._closed = True
            lost = bool(self._connection.error)
            await _hang_up(self._connection)
            self._lost = lost or not self._connection.freed.done()

    async def last_words(self) -> AsyncIterator[CallerText]:
        connection = self._connection
        while True:
            while connection.inbox:
                if isinstance(message := connection.inbox.popleft(), CallerText):
                    yield message
            if connection.ended:
                return
            await connection.arrival()

    @property
    def unheard(self) -> float | None:
        return self._heard * wire.FRAME_SECONDS if self._lost else None


class RemoteEngine:
    """One worker, reached over its WebSocket. Implements `gateway.engine.Engine`.

    `url` is ws:// or wss://; without a path, the protocol's own. Raises ValueError, with a sentence,
    if it cannot be used: not a WebSocket URL, or a token that would cross a network unencrypted.
    """

    def __init__(self, url: str, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        self.uri = parse(url, token)
        self.url = url
        self.sessions = 0
        """Sessions that are open or being opened."""
        self._token = token
        self._tls = (tls or ssl.create_default_context()) if self.uri.secure else None

    @property
    def readiness_url(self) -> str:
        """Where the worker says over HTTP how many slots it has free."""
        host = f"[{self.uri.host}]" if ":" in self.uri.host else self.uri.host
        return f"{'https' if self.uri.secure else 'http'}://{host}:{self.uri.port}/readyz"

    @property
    def headers(self) -> dict[str, str]:
        """What shows a worker that we may talk to it."""
        return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    async def open(self, request: SessionRequest) -> RemoteSession:
        """A new session. Raises EngineFull, or EngineLost of the kind that it is."""
        return await self._open(lambda: (request, None), CONNECT_TIMEOUT, READY_TIMEOUT)

    async def resume(self, describe: Describe) -> RemoteSession:
        """One that goes on; raises as `open`. `describe` is called once the worker has accepted the connection."""
        return await self._open(describe, RESUME_CONNECT_TIMEOUT, RESUME_READY_TIMEOUT)

    async def _open(
        self, describe: Callable[[], tuple[SessionRequest, wire.History | None]], connect: float, ready: float
    ) -> RemoteSession:
        self.sessions += 1
        try:
            connection = await self._connect(connect)
            try:
                request, history = describe()
                answer = await self._ask(connection, request, history, ready)
            except (EngineError, asyncio.CancelledError):
                connection.fail("")
                raise
        except (EngineError, asyncio.CancelledError):
            self.sessions -= 1
            raise
        connection.freed.add_done_callback(self._left)
        first = request.resume.next_index if request.resume else 0
        return RemoteSession(connection, answer, self.url, first)

    def _left(self, _: asyncio.Future[None]) -> None:
        self.sessions -= 1

    async def _connect(self, timeout: float) -> WorkerConnection:
        uri = self.uri
        try:
            async with asyncio.timeout(timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: WorkerConnection(uri, self.headers), uri.host, uri.port, ssl=self._tls
                )
                try:
                    await connection.opened()
                except (EngineLost, asyncio.CancelledError):
                    connection.fail("")
                    raise
        except TimeoutError:
            raise WorkerSilent(f"the worker at {self.url} did not answer within {timeout:.1f} s") from None
        except OSError as error:
            raise WorkerUnreachable(f"the worker at {self.url} cannot be reached: {_reason(error)}") from None
        return connection

    async def _ask(
        self, connection: WorkerConnection, request: SessionRequest, history: wire.History | None, timeout: float
    ) -> wire.Ready:
        """Send the open request and read the answer to it."""
        if request.resume is not None and connection.subprotocol != wire.WITH_LEVELS:
            request = replace(request, resume=replace(request.resume, agent_levels=()))
        try:
            async with asyncio.timeout(timeout):
                connection.send(wire.encode_open(request))
                if history is not None and request.resume is not None:
                    connection.send(wire.encode_history(request.resume, history))
                await connection.arrival()
        except TimeoutError:
            raise WorkerSilent(f"the worker at {self.url} opened no session within {timeout:.1f} s") from None
        answer = connection.inbox.popleft() if connection.inbox else None
        if isinstance(answer, wire.Ready):
            return answer
        if isinstance(answer, wire.Error) and answer.code in ("full", "draining"):
            raise EngineFull(answer.message)
        reason = answer.message if isinstance(answer, wire.Error) else connection.error or "it did not say ready"
        raise EngineLost(f"the worker at {self.url} refused the session: {reason}")


async def _hang_up(connection: WorkerConnection) -> None:
    connection.finish()
    if not connection.ended:
        try:
            connection.send(wire.encode(wire.Close()))
        except EngineLost:
            return
    try:
        # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes together with its result.
        await asyncio.wait([connection.freed], timeout=CLOSE_TIMEOUT)
    finally:
        if not connection.freed.done():
            connection.fail("")
        else:
            connection.fail_later(LAST_WORDS_TIMEOUT)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    return (error.strerror or str(error)).lower()
