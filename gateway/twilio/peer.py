"""Twilio Media Streams, the carrier's side of one stream: what Twilio sends, and reading what it gets.

Owns the same messages as `protocol.py`, seen from the other end; the terminal phone, the benchmark
and tests use it. Pure: it knows no sockets, tasks or clocks.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from gateway.twilio.protocol import FRAME_MS, PeerError, decode_object


@dataclass(frozen=True, slots=True)
class Played:
    """Sound for the caller: mu-law at 8 kHz, any length."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Marked:
    """Return this mark when all sound before it was heard, or at once when that is cleared."""

    name: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """Drop all sound not yet heard, and return its marks."""


ServerEvent = Played | Marked | Cleared


class CarrierStream:
    """One stream as Twilio sees it. Builders number messages and frames themselves."""

    def __init__(self, stream_sid: str, call_sid: str, account_sid: str) -> None:
        self.stream_sid = stream_sid
        self.call_sid = call_sid
        self.account_sid = account_sid
        self._quoted = orjson.dumps(stream_sid).decode()
        self._sequence = 0
        self._chunk = 0

    def connected(self) -> str:
        """The first message on the socket."""
        return '{"event":"connected","protocol":"Call","version":"1.0.0"}'

    def start(self, parameters: Mapping[str, str]) -> str:
        """The second message: `parameters` are the `<Parameter>`s of the TwiML."""
        return self._message(
            "start",
            {
                "streamSid": self.stream_sid,
                "accountSid": self.account_sid,
                "callSid": self.call_sid,
                "tracks": ["inbound"],
                "customParameters": dict(parameters),
                "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            },
        )

    def media(self, payload: bytes) -> str:
        """The caller's next 20 ms: 160 bytes of mu-law."""
        self._sequence += 1
        self._chunk += 1
        return (
            f'{{"event":"media","sequenceNumber":"{self._sequence}","media":{{"track":"inbound",'
            f'"chunk":"{self._chunk}","timestamp":"{(self._chunk - 1) * FRAME_MS}",'
            f'"payload":"{b2a_base64(payload, newline=False).decode("ascii")}"}},"streamSid":{self._quoted}}}'
        )

    def skip(self, frames: int) -> None:
        """Leave out `frames` frames of 20 ms, as when they are lost."""
        self._chunk += frames

    def dtmf(self, digit: str) -> str:
        """The caller pressed a key."""
        return self._message("dtmf", {"track": "inbound_track", "digit": digit})

    def mark(self, name: str) -> str:
        """A mark the server sent comes back."""
        return self._message("mark", {"name": name})

    def stop(self) -> str:
        """The last message, when the caller hangs up or the stream ends."""
        return self._message("stop", {"accountSid": self.account_sid, "callSid": self.call_sid})

    def receive_text(self, data: str) -> ServerEvent:
        """Read what the server sent. Raises PeerError where Twilio would end the stream (error 31951)."""
        message = decode_object(data)
        event = message.get("event")
        if message.get("streamSid") != self.stream_sid:
            raise PeerError("the server's message does not name this stream")
        if event == "clear":
            return Cleared()
        body = message.get(event) if isinstance(event, str) else None
        if event == "media" and isinstance(body, dict) and isinstance(body.get("payload"), str):
            return Played(_decode(body["payload"]))
        if event == "mark" and isinstance(body, dict) and isinstance(body.get("name"), str):
            return Marked(body["name"])
        raise PeerError("the server sent a message that is not media, mark or clear")

    def _message(self, event: str, body: Mapping[str, object]) -> str:
        self._sequence += 1
        sequence = str(self._sequence)
        message = {"event": event, "sequenceNumber": sequence, "streamSid": self.stream_sid, event: body}
        return orjson.dumps(message).decode()


def _decode(text: str) -> bytes:
    try:
        return a2b_base64(text, strict_mode=True)
    except (Base64Error, ValueError) as error:
        raise PeerError("the server's media.payload is not base64") from error
