"""The gateway's end of the wire: sessions of a worker over one WebSocket each.

Owns the connection to a worker and its losses. Knows nothing of calls, phones or where workers are
(`gateway.pool`). Built on the sans-I/O core of `websockets`, so that a frame is decoded in the same
step of the event loop in which it arrives, and sent without a task, a lock or a wait.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from gateway.engine import EngineError, EngineFull, EngineLost
from gateway.worker_url import parse
from model import wire
from model.wire import CallerFrame, CallerText, Output, SessionRequest

CONNECT_TIMEOUT = 2.0
"""Seconds until a worker has accepted the connection and the WebSocket."""
READY_TIMEOUT = 10.0
"""Seconds until a connected worker has opened the session."""
CLOSE_TIMEOUT = 1.0
"""Seconds a worker has to free the slot before the connection is cut."""
LAST_WORDS_TIMEOUT = 2.5
"""Seconds it then has to say what the caller was still saying, and to close its end; a little more than it takes."""
MAX_UNSENT = 256 * 1024
"""Bytes waiting in our process for a worker that does not read: about 5 s of the caller's sound."""
MAX_UNREAD = 1_000
"""Messages waiting for a call that does not read them: about a minute."""

_QUIET = logging.getLogger(__name__).getChild("websocket")
_QUIET.setLevel(logging.CRITICAL)  # what goes wrong is raised as EngineLost; nobody needs to read it twice


class WorkerUnreachable(EngineLost):
    """No WebSocket could be opened: the worker is down, elsewhere, or refuses us altogether."""


class _Connection(asyncio.Protocol):
    """One WebSocket to a worker: bytes in, decoded messages in `inbox`; messages in, bytes out."""

    def __init__(self, uri: WebSocketURI, headers: dict[str, str]) -> None:
        self.inbox: deque[wire.Output | wire.Ready | wire.Error] = deque()
        self.error = ""
        """Why the connection is unusable; empty while it is usable, and after a good end."""
        self.ended = False
        """Nothing more will arrive in `inbox`."""
        self.freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the worker holds nothing for us any more: it said so, or the connection is no more."""
        self._where = f"the worker at {uri.host}:{uri.port}"
        self._headers = headers
        self._open = False
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._text = False
        self._done = False
        self._end_timer: asyncio.TimerHandle | None = None
        offered = [Subprotocol(one) for one in wire.SUBPROTOCOLS]
        self._websocket = ClientProtocol(uri, subprotocols=offered, max_size=wire.MAX_MESSAGE, logger=_QUIET)

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        request = self._websocket.connect()
        request.headers.update(self._headers)
        self._websocket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        websocket = self._websocket
        websocket.receive_data(data)
        for event in websocket.events_received():
            if isinstance(event, Frame):
                self._frame_received(event)
            else:
                self._handshake_answered()
        self._flush()
        if self._open and websocket.state is not State.OPEN:
            self._closed_by_peer()

    def eof_received(self) -> bool:
        self._websocket.receive_eof()
        self._closed_by_peer()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed_by_peer()
        self._free()
        if self._end_timer is not None:
            self._end_timer.cancel()

    # Receiving.

    def _handshake_answered(self) -> None:
        failure = self._websocket.handshake_exc
        if failure is None:
            self._open = True
            self._wake()
        elif isinstance(failure, InvalidStatus) and failure.response.status_code == 401:
            self.fail(f"{self._where} refuses our token; set the same CALLPLEX_WORKER_TOKEN on both sides")
        elif isinstance(failure, InvalidStatus) and failure.response.status_code == 503:
            self.fail(f"{self._where} takes no connections now: it is being stopped, or not up yet")
        else:
            self.fail(f"{self._where} does not speak {wire.SUBPROTOCOL}: {failure}")

    def _frame_received(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.BINARY or opcode is Opcode.TEXT:
            self._text = opcode is Opcode.TEXT
        elif opcode is not Opcode.CONT:
            return
        data = bytes(frame.data)
        if not frame.fin:
            self._parts.append(data)
            return
        if self._parts:
            data = b"".join([*self._parts, data])
            self._parts.clear()
        try:
            message = wire.decode_from_worker(data.decode() if self._text else data)
        except (wire.WireError, UnicodeDecodeError) as error:
            self.fail(f"{self._where} broke the protocol: {error}")
            return
        if isinstance(message, wire.Closed):
            self._done = True
            self._free()
            return
        if isinstance(message, wire.Done):
            self._done = True
        elif isinstance(message, wire.Error):
            self.error = f"the worker ended the session: {message.message}"
        if len(self.inbox) >= MAX_UNREAD:
            self.fail("the call does not read what the worker says")
            return
        self.inbox.append(message)
        self._wake()

    def _closed_by_peer(self) -> None:
        """The worker ends the session: well after Done or our close, else we have lost it."""
        if not self._done and not self.error:
            close = self._websocket.close_rcvd
            how = f"closed the session (code {int(close.code)})" if close else "broke the connection"
            self.error = f"{self._where} {how}"
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._wake()

    def _free(self) -> None:
        if not self.freed.done():
            self.freed.set_result(None)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def opened(self) -> None:
        """Wait until messages can be sent. Raises WorkerUnreachable if that will never be."""
        while not self._open and not self.ended:
            await self._change()
        if not self._open:
            raise WorkerUnreachable(self.error)

    async def arrival(self) -> None:
        """Wait until something is in `inbox`, or nothing more will come."""
        while not self.inbox and not self.ended:
            await self._change()

    async def _change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # Sending.

    def send(self, message: str | bytes) -> None:
        """Raises EngineLost if the worker is gone, or does not read."""
        if self.ended:
            if self.error:
                raise EngineLost(self.error)
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self.fail(f"{self._where} does not read what it is sent")
            raise EngineLost(self.error)
        if isinstance(message, bytes):
            self._websocket.send_binary(message)
        else:
            self._websocket.send_text(message.encode())
        self._flush()

    def finish(self) -> None:
        """From now on the end of the connection is what we want."""
        self._done = True

    def fail(self, reason: str) -> None:
        """Cut the connection; whoever reads or sends is told why."""
        self.error = self.error or reason
        self._end()
        self._transport.abort()

    def fail_later(self, seconds: float) -> None:
        """Cut it if the worker has not ended it by then."""
        if not self.ended:
            self._end_timer = asyncio.get_running_loop().call_later(seconds, self.fail, "")

    def _flush(self) -> None:
        for data in self._websocket.data_to_send():
            if data and not self._transport.is_closing():
                self._transport.write(data)
            elif not data:
                self._transport.close()


class RemoteSession:
    """A session of a worker. Implements `gateway.engine.Session`."""

    def __init__(self, connection: _Connection, ready: wire.Ready, url: str, first: int = 0) -> None:
        self.engine = ready.engine
        self.worker = ready.worker
        """Which worker holds the session, for records and logs."""
        self.resumable = ready.resumable
        """Whether its frames carry what another worker needs to go on."""
        self.url = url
        self._connection = connection
        self._sent = first
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

    def give_up(self, reason: str) -> None:
        """The worker is not waited for any longer: `outputs` raises EngineLost with this reason."""
        self._connection.fail(reason)

    async def close(self) -> None:
        """Waits until the worker has freed the slot, CLOSE_TIMEOUT at most."""
        if not self._closed:
            self._closed = True
            await _hang_up(self._connection)

    async def last_words(self) -> AsyncIterator[CallerText]:
        connection = self._connection
        while True:
            while connection.inbox:
                if isinstance(message := connection.inbox.popleft(), CallerText):
                    yield message
            if connection.ended:
                return
            await connection.arrival()


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

    async def open(self, request: SessionRequest, history: wire.History | None = None) -> RemoteSession:
        """A new session, or one that goes on: then `request.resume` describes `history`."""
        self.sessions += 1
        try:
            connection = await self._connect()
            try:
                ready = await self._ask(connection, request, history)
            except (EngineError, asyncio.CancelledError):
                connection.fail("")
                raise
        except (EngineError, asyncio.CancelledError):
            self.sessions -= 1
            raise
        connection.freed.add_done_callback(self._left)
        first = request.resume.next_index if request.resume else 0
        return RemoteSession(connection, ready, self.url, first)

    def _left(self, _: asyncio.Future[None]) -> None:
        self.sessions -= 1

    async def _connect(self) -> _Connection:
        uri = self.uri
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(uri, self.headers), uri.host, uri.port, ssl=self._tls
                )
                try:
                    await connection.opened()
                except (EngineLost, asyncio.CancelledError):
                    connection.fail("")
                    raise
        except TimeoutError:
            raise WorkerUnreachable(f"the worker at {self.url} did not answer within {CONNECT_TIMEOUT:.0f} s") from None
        except OSError as error:
            raise WorkerUnreachable(f"the worker at {self.url} cannot be reached: {_reason(error)}") from None
        return connection

    async def _ask(self, connection: _Connection, request: SessionRequest, history: wire.History | None) -> wire.Ready:
        """Send the open request and read the answer to it."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                connection.send(wire.encode_open(request))
                if history is not None and request.resume is not None:
                    connection.send(wire.encode_history(request.resume, history))
                await connection.arrival()
        except TimeoutError:
            raise EngineLost(f"the worker at {self.url} opened no session within {READY_TIMEOUT:.0f} s") from None
        answer = connection.inbox.popleft() if connection.inbox else None
        if isinstance(answer, wire.Ready):
            return answer
        if isinstance(answer, wire.Error) and answer.code in ("full", "draining"):
            raise EngineFull(answer.message)
        reason = answer.message if isinstance(answer, wire.Error) else connection.error or "it did not say ready"
        raise EngineLost(f"the worker at {self.url} refused the session: {reason}")


async def _hang_up(connection: _Connection) -> None:
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
