"""One WebSocket to a worker: messages of `model.wire` in and out, and why it ended.

Owns the bytes. Knows nothing of sessions (`gateway.worker_client`). Built on the sans-I/O core of `websockets`,
so that a frame is decoded in the same step of the event loop in which it arrives, and sent without a task, a
lock or a wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI

from gateway.engine import EngineLost
from model import wire

MAX_UNSENT = 256 * 1024
"""Bytes waiting in our process for a worker that does not read: about 5 s of the caller's sound."""
MAX_UNREAD = 1_000
"""Messages waiting for a call that does not read them: about a minute."""

_QUIET = logging.getLogger(__name__).getChild("websocket")
_QUIET.setLevel(logging.CRITICAL)  # what goes wrong is raised as EngineLost; nobody needs to read it twice


class WorkerUnreachable(EngineLost):
    """No WebSocket could be opened: the worker is down, elsewhere, or refuses us altogether."""


class WorkerIncompatible(WorkerUnreachable):
    """Something answers there, and opens no WebSocket to us: another version, or a proxy that passes none on."""


class WorkerConnection(asyncio.Protocol):
    """One WebSocket to a worker: bytes in, decoded messages in `inbox`; messages in, bytes out."""

    def __init__(self, uri: WebSocketURI, headers: dict[str, str]) -> None:
        self.inbox: deque[wire.Output | wire.Ready | wire.Error] = deque()
        self.error = ""
        """Why the connection is unusable; empty while it is usable, and after a good end."""
        self.stopping = False
        """The worker ended the session because it is being stopped, not for the session's sake."""
        self.ended = False
        """Nothing more will arrive in `inbox`."""
        self.freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the worker holds nothing for us any more: it said so, or the connection is no more."""
        self._where = f"the worker at {uri.host}:{uri.port}"
        self._headers = headers
        self._open = False
        self._incompatible = False
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._text = False
        self._done = False
        self._end_timer: asyncio.TimerHandle | None = None
        offered = [Subprotocol(one) for one in wire.SUBPROTOCOLS]
        self._websocket = ClientProtocol(uri, subprotocols=offered, max_size=wire.MAX_MESSAGE, logger=_QUIET)

    @property
    def subprotocol(self) -> str:
        """What the worker took of what we offered."""
        return self._websocket.subprotocol or ""

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
            self._incompatible = True
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
            self.stopping = message.code == "draining" and message.message == wire.STOPPING
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
            raise (WorkerIncompatible if self._incompatible else WorkerUnreachable)(self.error)

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
