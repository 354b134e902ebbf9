"""Telnyx media streams, our side of one stream: JSON text in, typed events out, and what we send.

Owns what differs from Twilio's Media Streams, whose events it gives, so that one leg serves both. Pure:
it knows no sockets, tasks or clocks.

    connected                      once, first
    start                          once; names the stream, the call, its numbers and our parameters
    media | dtmf | mark | error    any number
    stop                           once, last

Media comes in chunks of any length, not always in order (Telnyx, "Stream call media over WebSocket"):
chunks wait here for the ones before them, a few at most, and leave as whole frames of 20 ms of mu-law,
several in one event when a late chunk lets others go. What we send names no stream.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from enum import Enum
from typing import Any

import orjson

from gateway.audio import decode_alaw, encode_ulaw
from gateway.twilio.protocol import (
    DUPLICATE,
    LATE,
    MAX_MISSING,
    MAX_PARAMETERS,
    MAX_SID,
    TRACK,
    UNKNOWN,
    Connected,
    Counters,
    Dtmf,
    Event,
    Ignored,
    Mark,
    Media,
    PeerError,
    Start,
    Stop,
    decode_object,
)

FRAME_BYTES = 160
"""Bytes of 20 ms at 8 kHz."""
MAX_CHUNK_BYTES = 8_000
"""Bytes of the longest chunk accepted: a second."""
MAX_WAITING = 3
"""Chunks that wait for one before them: 60 ms, after which it is given up."""
_MAX_NUMBER = 1 << 53
_INBOUND = frozenset({"inbound", "inbound_track"})
_DIGITS = frozenset("0123456789*#ABCD")

PENDING = Ignored("pending")
"""Nothing to hear yet: the chunk waits, or it did not fill a frame."""


class _State(Enum):
    NEW = "connected"
    CONNECTED = "start"
    STARTED = "media, dtmf, mark, error or stop"
    STOPPED = "nothing"


class TelnyxProtocol:
    """One stream as the server sees it. After a PeerError it must not be used again."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.errors = 0
        """Error messages the carrier sent, about what we sent it."""
        self._state = _State.NEW
        self._stream = ""
        self._alaw = False
        self._chunk = -1
        """Newest chunk handed on; -1 before the first, which may have any number."""
        self._waiting: dict[int, bytes] = {}
        self._rest = b""

    def receive_text(self, data: str) -> Event:
        """Read one text message. Raises PeerError, and nothing else, for whatever is not allowed."""
        message = decode_object(data)
        event = message.get("event")
        if not isinstance(event, str):
            raise PeerError("the message has no event name")
        known = _HANDLERS.get(event)
        if known is None:
            self.counters.unknown += 1
            return UNKNOWN
        expected, read = known
        if expected is not self._state:
            raise PeerError(f"{event} came where only {self._state.value} may come")
        if expected is _State.STARTED and message.get("stream_id", self._stream) != self._stream:
            raise PeerError(f"{event} names another stream than start did")
        read_event: Event = read(self, message)
        return read_event

    def media(self, payload: bytes) -> str:
        """Sound for the caller: 20 ms to 30 s of mu-law at 8 kHz."""
        return f'{{"event":"media","media":{{"payload":"{b2a_base64(payload, newline=False).decode("ascii")}"}}}}'

    def mark(self, name: str) -> str:
        """Ask to be told, by the same name, when all sound sent so far was heard or cleared."""
        return f'{{"event":"mark","mark":{{"name":{orjson.dumps(name).decode()}}}}}'

    def clear(self) -> str:
        """Void all sound sent and not yet heard."""
        return '{"event":"clear"}'

    def _connected(self, message: dict[str, Any]) -> Connected:
        self._state = _State.CONNECTED
        version = message.get("version", "")
        if not isinstance(version, str):
            raise PeerError("connected.version must be a string")
        return Connected(version)

    def _start(self, message: dict[str, Any]) -> Start:
        start = _object(message, "start")
        self._stream = _name(message, "stream_id")
        form = start.get("media_format")
        encoding = form.get("encoding") if isinstance(form, dict) else None
        if encoding not in ("PCMU", "PCMA") or form != {"encoding": encoding, "sample_rate": 8000, "channels": 1}:
            raise PeerError("start.media_format must be PCMU or PCMA, 8000 Hz, one channel")
        self._alaw = encoding == "PCMA"
        event = Start(self._stream, _name(start, "call_control_id"), _optional(start, "user_id"), _parameters(start))
        self._state = _State.STARTED
        return event

    def _media(self, message: dict[str, Any]) -> Event:
        media = _object(message, "media")
        if media.get("track", "inbound") not in _INBOUND:
            self.counters.unknown += 1
            return TRACK
        chunk, timestamp = _number(media, "chunk"), _number(media, "timestamp")
        payload = _payload(media)
        if self._chunk < 0:
            self._chunk = chunk - 1
        if chunk <= self._chunk:
            # Whether it was handed on or given up is not remembered; the newest surely was.
            return self._stale(chunk)
        if chunk in self._waiting:
            self.counters.duplicate += 1
            return DUPLICATE
        self._waiting[chunk] = payload
        missing = 0
        if chunk != self._chunk + 1:
            if len(self._waiting) <= MAX_WAITING:
                return PENDING
            missing = self._give_up()
        return self._release(timestamp, missing)

    def _stale(self, chunk: int) -> Ignored:
        if chunk == self._chunk:
            self.counters.duplicate += 1
            return DUPLICATE
        self.counters.late += 1
        return LATE

    def _give_up(self) -> int:
        """The chunks before the first that waits will not be waited for; how many they are."""
        first = min(self._waiting)
        missing = min(first - self._chunk - 1, MAX_MISSING)
        self.counters.missing += missing
        self._chunk = first - 1
        return missing

    def _release(self, timestamp: int, missing: int) -> Event:
        """Everything that is next in order, as whole frames."""
        sound = self._rest
        while (payload := self._waiting.pop(self._chunk + 1, None)) is not None:
            self._chunk += 1
            sound += encode_ulaw(decode_alaw(payload)) if self._alaw else payload
        whole = len(sound) - len(sound) % FRAME_BYTES
        self._rest = sound[whole:]
        if whole == 0:
            return PENDING
        self.counters.media += whole // FRAME_BYTES
        return Media(sound[:whole], timestamp, self._chunk, missing)

    def _dtmf(self, message: dict[str, Any]) -> Dtmf:
        digit = _object(message, "dtmf").get("digit")
        if not isinstance(digit, str) or digit not in _DIGITS:
            raise PeerError("dtmf.digit must be one of 0-9, *, # and A-D")
        return Dtmf(digit)

    def _mark(self, message: dict[str, Any]) -> Mark:
        name = _object(message, "mark").get("name")
        if not isinstance(name, str):
            raise PeerError("mark.name must be a string")
        return Mark(name)

    def _error(self, message: dict[str, Any]) -> Ignored:
        self.errors += 1
        return UNKNOWN

    def _stop(self, message: dict[str, Any]) -> Stop:
        self._state = _State.STOPPED
        return Stop()


_HANDLERS: dict[str, tuple[_State, Any]] = {
    "connected": (_State.NEW, TelnyxProtocol._connected),
    "start": (_State.CONNECTED, TelnyxProtocol._start),
    "media": (_State.STARTED, TelnyxProtocol._media),
    "dtmf": (_State.STARTED, TelnyxProtocol._dtmf),
    "mark": (_State.STARTED, TelnyxProtocol._mark),
    "error": (_State.STARTED, TelnyxProtocol._error),
    "stop": (_State.STARTED, TelnyxProtocol._stop),
}


def _object(message: dict[str, Any], name: str) -> dict[str, Any]:
    value = message.get(name)
    if not isinstance(value, dict):
        raise PeerError(f"{name} must be an object")
    return value


def _name(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SID:
        raise PeerError(f"{name} must be a string of 1 to {MAX_SID} characters")
    return value


def _optional(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""


def _number(media: dict[str, Any], name: str) -> int:
    """A decimal number in a string, as documented, or a JSON number."""
    value = media.get(name)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 16:
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MAX_NUMBER:
        raise PeerError(f"media.{name} must be a decimal number in a string")
    return value


def _payload(media: dict[str, Any]) -> bytes:
    text = media.get("payload")
    try:
        payload = a2b_base64(text, strict_mode=True) if isinstance(text, str) else b""
    except ValueError:
        payload = b""
    if not 0 < len(payload) <= MAX_CHUNK_BYTES:
        raise PeerError(f"media.payload must be base64 of 1 to {MAX_CHUNK_BYTES} bytes")
    return payload


def _parameters(start: dict[str, Any]) -> dict[str, str]:
    value = start.get("custom_parameters") or {}
    if not isinstance(value, dict) or len(value) > MAX_PARAMETERS:
        raise PeerError(f"start.custom_parameters must be an object of at most {MAX_PARAMETERS} strings")
    if not all(isinstance(item, str) for item in value.values()):
        raise PeerError("every value in start.custom_parameters must be a string")
    return value
