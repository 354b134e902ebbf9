"""What all of the wire's messages are made of: a frame's sizes, the binary header, JSON objects to dataclasses.

Owns the checks of names and plain types, and the one error of a peer that sends something else. Knows no message.
Standard library only.
"""

from __future__ import annotations

import json
import struct
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_PLAIN: dict[Any, type | tuple[type, ...]] = {str: str, bool: bool, int: int, float: (int, float)}


SAMPLE_RATE = 24_000
FRAME_SAMPLES = 1_920
FRAME_SECONDS = 0.08
FRAME_BYTES = 2 * FRAME_SAMPLES
TOKENS_BYTES = 2 * 17
"""A column of the token grid: one text, eight agent and eight caller ids, little-endian u16."""
NO_TOKEN = 0xFFFF
"""In a column: no id yet, as in a delayed row of a session's first columns."""
HEADER = struct.Struct("<BI")
"""Of a binary message: its kind, and a frame's index."""


class WireError(Exception):
    """The peer sent what this protocol does not allow; the message says what."""


def split(message: bytes) -> tuple[int, int, bytes]:
    """A binary message's kind, index and payload. Raises WireError if it is too short."""
    if len(message) < HEADER.size:
        raise WireError(f"a binary message has at least {HEADER.size} bytes, this one {len(message)}")
    kind, index = HEADER.unpack_from(message)
    return kind, index, message[HEADER.size :]


def json_object(message: str) -> dict[str, Any]:
    """A message's JSON object. Raises WireError if it is none."""
    try:
        data = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise WireError("the message is not JSON") from error
    if not isinstance(data, dict):
        raise WireError("the message is not a JSON object")
    return data


def build(kind: type[_T], data: Any, where: str) -> _T:
    """Make a message dataclass from JSON, checking names and plain types; nested ones are made already."""
    if not isinstance(data, dict):
        raise WireError(f"{where} must be an object")
    known = _types(kind)  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in known:
            raise WireError(f"{where} has no field {str(name)[:40]!r}")
        values[name] = _checked(known[name], value, f"{where}.{name}")
    try:
        return kind(**values)
    except TypeError as error:
        raise WireError(f"{where} lacks a field: {error}") from error


@cache
def _types(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _checked(wanted: Any, value: Any, where: str) -> Any:
    """The value of one field of type `wanted`, or WireError."""
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise WireError(f"{where} must be one of {', '.join(map(repr, get_args(wanted)))}")
        return value
    if wanted == tuple[str, ...]:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise WireError(f"{where} must be a list of strings")
        return tuple(_writable(item) for item in value)
    if wanted == tuple[int, ...]:
        if not isinstance(value, list) or not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
            raise WireError(f"{where} must be a list of numbers from 0")
        return tuple(value)
    if wanted == float | None:
        return None if value is None else _checked(float, value, where)
    expected = _PLAIN.get(wanted)
    if expected is None:
        return value
    if not isinstance(value, expected) or (isinstance(value, bool) and wanted is not bool):
        raise WireError(f"{where} must be {wanted.__name__}")
    if wanted is int and isinstance(value, int) and not 0 <= value < 1 << 63:
        raise WireError(f"{where} is out of range")
    if wanted is float and isinstance(value, int | float) and not -1e9 <= value <= 1e9:  # nor NaN
        raise WireError(f"{where} is out of range")
    return _writable(value) if isinstance(value, str) else value


def _writable(text: str) -> str:
    r"""JSON can hold half a character (`"\ud83d"`, RFC 8259 section 8.2), which no file or socket takes."""
    return text if text.isascii() else text.encode(errors="replace").decode()
