"""Twilio Media Streams, our side of one stream: JSON text in, typed events out, and what we send.

Owns the messages, their order and the numbering of media. Pure: it knows no sockets, tasks or
clocks, and not what sound means. The carrier's side of the same protocol is `peer.py`.

The order of a stream (Twilio, "Media Streams WebSocket messages"):

    connected               once, first
    start                   once; names the stream, the call and the TwiML parameters
    media | dtmf | mark     any number, every one with the stream's sid
    stop                    once, last

Anything else is the peer's fault and raises PeerError, except events this file does not know, which
are counted and ignored, since Twilio adds to them. Media must be exactly 20 ms of mu-law: it is what
Twilio documents, and what lets the call count time by frames. Media that comes twice or late is
dropped and counted; media that is missing is counted and told with the next frame.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import orjson

from gateway.leg import LegError

MAX_TEXT = 64 * 1024
"""Characters of the longest message accepted; Twilio's own are under 1 KiB but for `start`."""

FRAME_BYTES = 160
"""Mu-law bytes of one media message: 20 ms at 8 kHz."""

FRAME_MS = 20
MAX_MISSING = 3_000
"""Frames at most told as missing at once (a minute), whatever numbers the peer makes up."""

MAX_PARAMETERS = 100
MAX_SID = 128
MAX_NUMBER = 1 << 53
"""Largest chunk number or timestamp accepted: exact in any JSON reader."""

_PAYLOAD_CHARS = 4 * ((FRAME_BYTES + 2) // 3)
_PAYLOAD_FAULT = f"media.payload must be base64 of {FRAME_BYTES} bytes of mu-law"
_DIGITS = frozenset("0123456789*#ABCD")


class PeerError(LegError):
    """The peer broke the Media Streams protocol; the message says how, in one sentence."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The socket speaks Media Streams; `version` is as the peer names it."""

    version: str


@dataclass(frozen=True, slots=True)
class Start:
    """The stream begins: which call it belongs to, and the `<Parameter>`s of our TwiML."""

    stream_sid: str
    call_sid: str
    account_sid: str
    parameters: Mapping[str, str] = field(default_factory=dict)


class Media(NamedTuple):
    """20 ms of the caller: 160 bytes of mu-law at 8 kHz. A tuple, because there are 50 a second."""

    payload: bytes
    timestamp: int
    """Milliseconds since the stream began, by the peer's clock."""
    chunk: int
    """Number of this frame in its track, from 1."""
    missing: int
    """Frames that should have come between the last accepted one and this."""


@dataclass(frozen=True, slots=True)
class Dtmf:
    """The caller pressed a key: one of 0-9 * # A-D."""

    digit: str


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything sent before our mark `name` was played, or cleared."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The stream is over: the caller hung up, or the call was moved on."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing to do. Why: `unknown` event, other `track`, `duplicate` or `late` media."""

    why: str


Event = Connected | Start | Media | Dtmf | Mark | Stop | Ignored

UNKNOWN = Ignored("unknown")
TRACK = Ignored("track")
DUPLICATE = Ignored("duplicate")
LATE = Ignored("late")


@dataclass(slots=True)
class Counters:
    """What happened to the messages of one stream."""

    media: int = 0
    """Frames accepted."""
    missing: int = 0
    """Frames that never came, by chunk number or timestamp."""
    duplicate: int = 0
    late: int = 0
    """Frames dropped because a later one had come first."""
    unknown: int = 0
    """Events and tracks ignored."""


class _State(Enum):
    NEW = "connected"
    CONNECTED = "start"
    STARTED = "media, dtmf, mark or stop"
    STOPPED = "nothing"
    """The value says what may come next."""


class StreamProtocol:
    """One stream as the server sees it. After a PeerError it must not be used again."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._state = _State.NEW
        self._sid = ""
        self._chunk = 0
        self._timestamp = -FRAME_MS
        self._media_head = ""
        self._mark_head = ""
        self._clear = ""

    def receive_text(self, data: str) -> Event:
        """Read one text message. Raises PeerError, and nothing else, for whatever is not allowed."""
        message = decode_object(data)
        event = message.get("event")
        if event == "media" and self._state is _State.STARTED:
            return self._media(message)
        return self._rare(event, message)

    def media(self, payload: bytes) -> str:
        """Sound for the caller: any length of mu-law at 8 kHz. Only after `start`, as all builders."""
        return f'{self._media_head}{b2a_base64(payload, newline=False).decode("ascii")}"}}}}'

    def mark(self, name: str) -> str:
        """Ask to be told, by the same name, when all sound sent so far was heard or cleared."""
        return f"{self._mark_head}{orjson.dumps(name).decode()}}}}}"

    def clear(self) -> str:
        """Void all sound sent and not yet heard."""
        return self._clear

    def _media(self, message: dict[str, Any]) -> Event:
        """The hot path: plain subscripts, and one handler for all that can be missing or mistyped.

        `int` with a base takes only strings. Sequence numbers are not read: chunks order the media.
        """
        try:
            media = message["media"]
            text = media["payload"]
            payload = a2b_base64(text, strict_mode=True) if len(text) == _PAYLOAD_CHARS else b""
            chunk = int(media["chunk"], 10)
            timestamp = int(media["timestamp"], 10)
            if message["streamSid"] != self._sid or media["track"] != "inbound":
                return self._other_track(message)
        except (KeyError, TypeError, ValueError) as error:
            raise PeerError(_media_fault(message)) from error
        if len(payload) != FRAME_BYTES:
            raise PeerError(_PAYLOAD_FAULT)
        missing = 0
        if chunk != self._chunk + 1 or timestamp != self._timestamp + FRAME_MS:
            if chunk <= self._chunk or timestamp < self._timestamp:
                return self._stale(chunk)
            missing = self._missing(chunk, timestamp)
        self._chunk = chunk
        self._timestamp = timestamp
        self.counters.media += 1
        return Media(payload, timestamp, chunk, missing)

    def _other_track(self, message: dict[str, Any]) -> Ignored:
        if message["streamSid"] != self._sid:
            raise PeerError("media names another stream than start did")
        if not isinstance(message["media"]["track"], str):
            raise PeerError("media.track must be a string")
        self.counters.unknown += 1
        return TRACK

    def _stale(self, chunk: int) -> Ignored:
        if chunk == self._chunk:
            self.counters.duplicate += 1
            return DUPLICATE
        self.counters.late += 1
        return LATE

    def _missing(self, chunk: int, timestamp: int) -> int:
        """Frames left out, by number or by time: timestamps wander by less than a frame.

        The stream's first frame may be stamped with how late it comes; only its number tells.
        """
        if max(chunk, timestamp) > MAX_NUMBER:
            raise PeerError("media.chunk and media.timestamp must be smaller")
        by_time = 0 if self.counters.media == 0 else (timestamp - self._timestamp) // FRAME_MS - 1
        missing = min(max(chunk - self._chunk - 1, by_time), MAX_MISSING)
        self.counters.missing += missing
        return missing

    def _rare(self, event: object, message: dict[str, Any]) -> Event:
        """Everything but media in its place."""
        if not isinstance(event, str):
            raise PeerError("the message has no event name")
        handler = _HANDLERS.get(event)
        if handler is None:
            self.counters.unknown += 1
            return UNKNOWN
        expected, read = handler
        if expected is not self._state:
            raise PeerError(f"{event} came where only {self._state.value} may come")
        if expected is _State.STARTED and message.get("streamSid") != self._sid:
            raise PeerError(f"{event} names another stream than start did")
        read_event: Event = read(self, message)
        return read_event

    def _connected(self, message: dict[str, Any]) -> Connected:
        self._state = _State.CONNECTED
        version = message.get("version", "")
        if not isinstance(version, str):
            raise PeerError("connected.version must be a string")
        return Connected(version)

    def _start(self, message: dict[str, Any]) -> Start:
        start = _object(message, "start")
        sid = _sid(message, "streamSid")
        if start.get("streamSid", sid) != sid:
            raise PeerError("start names two different streams")
        _check_format(start.get("mediaFormat"))
        event = Start(sid, _sid(start, "callSid"), _sid(start, "accountSid"), _parameters(start))
        self._state = _State.STARTED
        self._sid = sid
        quoted = orjson.dumps(sid).decode()
        self._media_head = f'{{"event":"media","streamSid":{quoted},"media":{{"payload":"'
        self._mark_head = f'{{"event":"mark","streamSid":{quoted},"mark":{{"name":'
        self._clear = f'{{"event":"clear","streamSid":{quoted}}}'
        return event

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

    def _stop(self, message: dict[str, Any]) -> Stop:
        self._state = _State.STOPPED
        return Stop()


_HANDLERS: dict[str, tuple[_State, Any]] = {
    "connected": (_State.NEW, StreamProtocol._connected),
    "start": (_State.CONNECTED, StreamProtocol._start),
    "media": (_State.STARTED, StreamProtocol._media),
    "dtmf": (_State.STARTED, StreamProtocol._dtmf),
    "mark": (_State.STARTED, StreamProtocol._mark),
    "stop": (_State.STARTED, StreamProtocol._stop),
}


def decode_object(data: str) -> dict[str, Any]:
    """One JSON object out of a text message. Raises PeerError for anything else.

    orjson itself refuses NaN, lone surrogates and nesting deeper than 1,024.
    """
    if len(data) > MAX_TEXT:
        raise PeerError(f"the message is longer than {MAX_TEXT} characters")
    try:
        message = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise PeerError("the message is not JSON") from error
    if type(message) is not dict:
        raise PeerError("the message is not a JSON object")
    return message


def _media_fault(message: dict[str, Any]) -> str:
    """What is wrong with a media message that could not be read; off the hot path."""
    media = message.get("media")
    if not isinstance(media, dict):
        return "media must be an object"
    for name in ("chunk", "timestamp"):
        try:
            int(media.get(name), 10)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return f"media.{name} must be a decimal number in a string"
    if "track" not in media:
        return "media names no track"
    if "streamSid" not in message:
        return "media names no stream"
    return _PAYLOAD_FAULT


def _object(message: dict[str, Any], name: str) -> dict[str, Any]:
    value = message.get(name)
    if not isinstance(value, dict):
        raise PeerError(f"{name} must be an object")
    return value


def _sid(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_SID:
        raise PeerError(f"{name} must be a string of 1 to {MAX_SID} characters")
    return value


def _check_format(value: object) -> None:
    if value != {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}:
        raise PeerError("start.mediaFormat must be audio/x-mulaw, 8000 Hz, one channel")


def _parameters(start: dict[str, Any]) -> dict[str, str]:
    value = start.get("customParameters", {})
    if not isinstance(value, dict) or len(value) > MAX_PARAMETERS:
        raise PeerError(f"start.customParameters must be an object of at most {MAX_PARAMETERS} strings")
    if not all(isinstance(item, str) for item in value.values()):
        raise PeerError("every value in start.customParameters must be a string")
    return value
