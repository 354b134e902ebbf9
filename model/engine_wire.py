"""What the worker's process and the engine's tell each other over their channel: the wire's messages, each tagged.

Owns one byte before each message that tells text from bytes from an open request from a caller's frame, the time that
such a frame carries, and how large the channel is. Session 0 is the engine itself: it sends its state. Standard library
only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from model import wire
from model.capacity import MOST_SLOTS
from model.wire import CallerFrame, Close, FromWorker, History, Play, Say, SessionRequest

CONTROL = 0
"""The session that is none: the engine's own reports."""
RING_LEAST = 8 << 20
RING_SLOT = 1 << 20
"""Bytes each way, and for each slot: what the server lets one session have unanswered, twice."""
OPENS_FILL = 0.75
"""The part of the way to the engine that requests with their histories may fill: the rest is for sound of calls."""
_OPEN, _FRAME, _TEXT, _BYTES = b"O", b"F", b"T", b"B"
_LENGTH = struct.Struct("<I")
_CAME = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Heard:
    """A caller frame, and when it came to the worker's process.

    came: seconds of `time.monotonic`, one clock for all processes of a machine.
    """

    frame: CallerFrame
    came: float


Told = Heard | Say | Play | Close
"""What the engine is told of a session once it is open."""


def ring_size(slots: int) -> int:
    """Bytes each way of the channel to an engine with so many slots, 0: as many as it chooses.

    It chooses when the channel is there. Memory is taken only where something was put once, which in time is all.
    """
    return max(RING_LEAST, RING_SLOT * (slots or MOST_SLOTS))


def encode_open(request: SessionRequest, history: History) -> bytes:
    """A request, with its history where it resumes."""
    text = wire.encode_open(request).encode()
    rest = wire.encode_history(request.resume, history) if request.resume is not None else b""
    return b"".join((_OPEN, _LENGTH.pack(len(text)), text, rest))


def encode(message: Told | FromWorker) -> bytes:
    """Any other message."""
    if isinstance(message, Heard):
        return b"".join((_FRAME, _CAME.pack(message.came), wire.encode_frame(message.frame)))
    data = wire.encode(message)
    return _TEXT + data.encode() if isinstance(data, str) else _BYTES + data


def decode_to_engine(data: bytes) -> tuple[SessionRequest, History] | Told:
    """What the worker's process sent. Raises WireError, which would be our own fault."""
    if data[:1] == _OPEN:
        (length,) = _LENGTH.unpack_from(data, 1)
        start = 1 + _LENGTH.size
        request = wire.decode_open(data[start : start + length].decode())
        history = History()
        if request.resume is not None:
            history = wire.decode_history(data[start + length :], request.resume)
        return request, history
    if data[:1] == _FRAME:
        (came,) = _CAME.unpack_from(data, 1)
        return Heard(wire.decode_caller_frame(data[1 + _CAME.size :]), came)
    message = wire.decode_to_worker(_message(data))
    if isinstance(message, CallerFrame):
        raise wire.WireError("a caller frame came without its time")
    return message


def decode_from_engine(data: bytes) -> FromWorker:
    """What the engine's process sent of a session."""
    return wire.decode_from_worker(_message(data))


def _message(data: bytes) -> str | bytes:
    return data[1:].decode() if data[:1] == _TEXT else data[1:]
