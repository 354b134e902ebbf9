"""One measured call: Twilio's side of the protocol, as cheap as it can be.

Owns the bytes of the call's messages and a note of when each was sent and received. What came back
is only parsed for its WebSocket frames while the call runs; sound is looked at after it is over, so
that the bench takes little of the machine it measures. Knows nothing of schedules or statistics.
"""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from array import array
from dataclasses import dataclass, field
from typing import cast

from websockets.client import ClientProtocol
from websockets.protocol import State
from websockets.uri import parse_uri

from gateway.bench.tracks import TRACK_FRAMES, track_payloads

_TEXT, _CLOSE, _PING, _PONG = 0x81, 0x88, 0x89, 0x8A
_MASKED = 0x80
_NO_MASK = bytes(4)
"""The masking key. Zero leaves the bytes as they are; the server's work is the same for any key."""

_ENCODED = [base64.b64encode(payload) for payload in track_payloads()]


class CallFailed(Exception):
    """The gateway did not take the call, or dropped it; the message says what it answered."""


def masked_frame(opcode: int, body: bytes) -> bytes:
    """A client's WebSocket frame (RFC 6455 section 5.2), final, up to 65,535 bytes."""
    if len(body) < 126:
        return struct.pack("!BB", opcode, _MASKED | len(body)) + _NO_MASK + body
    return struct.pack("!BBH", opcode, _MASKED | 126, len(body)) + _NO_MASK + body


@dataclass(slots=True)
class CallIds:
    """What Twilio says about a call."""

    call_sid: str
    stream_sid: str
    account_sid: str
    parameters: dict[str, str] = field(default_factory=dict)


class Line(asyncio.Protocol):
    """A call's socket. Use `open_line`; then `send_media` every 20 ms, and `stop`."""

    def __init__(self, url: str, headers: dict[str, str], ids: CallIds) -> None:
        where = parse_uri(url)
        self.host, self.port = where.host, where.port
        self._handshake: ClientProtocol | None = ClientProtocol(where, max_size=None)
        self._headers = headers
        self._ids = ids
        self.call_sid = ids.call_sid
        self._stream = f'","streamSid":"{ids.stream_sid}"'.encode()
        self._rest = b""
        self._transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.sent = 0
        """20 ms frames sent so far."""
        self.sent_at = array("d")
        """When each was sent, seconds of the monotonic clock."""
        self.received: list[tuple[float, bytes]] = []
        """When each message came and what it was, JSON as bytes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by what they do, not by class.
        self._transport = cast(asyncio.Transport, transport)
        assert self._handshake is not None
        request = self._handshake.connect()
        for name, value in self._headers.items():
            request.headers[name] = value
        self._handshake.send_request(request)
        self._transport.write(b"".join(self._handshake.data_to_send()))

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        if self._handshake is not None:
            self._finish_handshake(data)
            return
        if self._rest:
            data = self._rest + data
        start, end = 0, len(data)
        while end - start >= 2:
            opcode, length, body = data[start], data[start + 1], start + 2
            if length == 126:
                if end - start < 4:
                    break
                length, body = (data[start + 2] << 8) | data[start + 3], start + 4
            elif length == 127:
                self._fail("the gateway sent a message of more than 65,535 bytes")
                return
            if end < body + length:
                break
            start = body + length
            if opcode == _TEXT:
                self._take(now, data[body:start])
            else:
                self._control(opcode, data[body:start])
        self._rest = data[start:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the gateway closed the connection")
        if not self.closed.done():
            self.closed.set_result(None)

    def send_media(self, now: float) -> None:
        """The next 20 ms of the track, as Twilio sends it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        number = self.sent
        self.sent = number + 1
        self.sent_at.append(now)
        body = b'{"event":"media","sequenceNumber":"%d%b,"media":{"track":"inbound","chunk":"%d","timestamp":"%d"' % (
            number + 2,
            self._stream,
            number + 1,
            number * 20,
        )
        body += b',"payload":"%b"}}' % _ENCODED[number % TRACK_FRAMES]
        transport.write(b"\x81\xfe%b%b%b" % (len(body).to_bytes(2), _NO_MASK, body))

    async def stop(self) -> None:
        """Hang up as a caller does, and wait until the gateway has closed."""
        if self._transport is None or self._transport.is_closing():
            return
        self._send(
            {
                "event": "stop",
                "sequenceNumber": str(self.sent + 2),
                "streamSid": self._ids.stream_sid,
                "stop": {"accountSid": self._ids.account_sid, "callSid": self._ids.call_sid},
            }
        )
        self._transport.write(masked_frame(_CLOSE, struct.pack("!H", 1000)))
        try:
            async with asyncio.timeout(10):
                await asyncio.shield(self.closed)
        except TimeoutError:
            self._transport.abort()

    def _finish_handshake(self, data: bytes) -> None:
        handshake = self._handshake
        assert handshake is not None
        assert self._transport is not None
        handshake.receive_data(data)
        if handshake.handshake_exc is not None:
            self._fail(f"the gateway refused the stream: {handshake.handshake_exc}")
            self._transport.close()
        elif handshake.state is State.OPEN:
            self._handshake = None
            self._send({"event": "connected", "protocol": "Call", "version": "1.0.0"})
            self._send(self._start())
            self.opened.set_result(None)

    def _start(self) -> dict[str, object]:
        ids = self._ids
        return {
            "event": "start",
            "sequenceNumber": "1",
            "streamSid": ids.stream_sid,
            "start": {
                "streamSid": ids.stream_sid,
                "accountSid": ids.account_sid,
                "callSid": ids.call_sid,
                "tracks": ["inbound"],
                "customParameters": ids.parameters,
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            },
        }

    def _take(self, now: float, body: bytes) -> None:
        self.received.append((now, body))
        if len(body) < 300 and b'"mark"' in body:
            message = json.loads(body)
            if message.get("event") == "mark":
                self._send({"event": "mark", "streamSid": self._ids.stream_sid, "mark": message["mark"]})

    def _control(self, opcode: int, body: bytes) -> None:
        assert self._transport is not None
        if opcode == _PING:
            self._transport.write(masked_frame(_PONG, body))
        elif opcode == _CLOSE:
            self._transport.write(masked_frame(_CLOSE, body[:2]))
            self._transport.close()

    def _send(self, message: dict[str, object]) -> None:
        assert self._transport is not None
        self._transport.write(masked_frame(_TEXT, json.dumps(message).encode()))

    def _fail(self, why: str) -> None:
        if not self.opened.done():
            self.opened.set_exception(CallFailed(why))
