"""What a message carries: the SDP in it, alone or as a part of a multipart, and keys told by INFO.

Owns the walk through MIME parts (RFC 5621), bounded in depth and number, so that a nested body costs nothing.
"""

from __future__ import annotations

import re

from gateway.sip.errors import SipError
from gateway.sip.fields import get_param, parse_params
from gateway.sip.message import Request, Response

SDP = "application/sdp"
MULTIPART = ("multipart/mixed", "multipart/alternative", "multipart/related")
MAX_DEPTH = 2
MAX_PARTS = 16
MAX_DIGITS = 32

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_SIGNAL = re.compile(rb"^\s*signal\s*=\s*([0-9A-Da-d*#]|1[0-6])\s*$", re.IGNORECASE | re.MULTILINE)
_DURATION = re.compile(rb"^\s*duration\s*=\s*([0-9]{1,5})\s*$", re.IGNORECASE | re.MULTILINE)
_PLAIN = re.compile(rb"[0-9A-Da-d*#]{1,%d}\Z" % MAX_DIGITS)
_KEYS = "0123456789*#ABCD"


def find_sdp(message: Request | Response) -> bytes | None:
    """The session description; None when there is none. Raises SipError (415) for a body that cannot be used."""
    if not message.body.strip():
        return None
    encoding = message.headers.first("Content-Encoding").strip().lower()
    if encoding not in ("", "identity"):
        raise SipError("the content encoding is not understood", 415, headers=(("Accept-Encoding", ""),))
    found = _search(message.headers.first("Content-Type"), message.body, 0)
    if found is None:
        raise SipError("the body holds no session description", 415, headers=(("Accept", SDP),))
    return found


def _search(content_type: str, body: bytes, depth: int) -> bytes | None:
    kind, _, params = content_type.partition(";")
    kind = kind.strip().lower()
    if kind == SDP:
        return body
    if kind not in MULTIPART or depth == MAX_DEPTH:
        return None
    boundary = get_param(parse_params(params), "boundary")
    if not boundary or len(boundary) > 70:
        return None
    parts = body.split(b"--" + boundary.encode("utf-8"), MAX_PARTS + 1)
    for part in parts[1 : MAX_PARTS + 1]:
        if part.startswith(b"--"):
            break
        head, content = _cut(part)
        found = _search(_content_type(head), content, depth + 1)
        if found is not None:
            return found
    return None


def _cut(part: bytes) -> tuple[bytes, bytes]:
    end = _HEAD_END.search(part)
    if end is None:
        return part, b""
    return part[: end.start()], part[end.end() :].removesuffix(b"\n").removesuffix(b"\r")


def _content_type(head: bytes) -> str:
    for line in head.decode("latin-1").splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("content-type", "c"):
            return value
    return "text/plain"


def read_digits(request: Request) -> tuple[str, int]:
    """Keys and milliseconds of an INFO, no key for a hook flash; raises SipError (415) for other content."""
    kind = request.content_type
    if kind == "application/dtmf-relay":
        signal = _SIGNAL.search(request.body)
        duration = _DURATION.search(request.body)
        if signal is not None:
            key = signal[1].decode().upper()
            key = _KEYS[int(key) : int(key) + 1] if len(key) == 2 else key
            return key, int(duration[1]) if duration else 0
    elif kind == "application/dtmf":
        plain = _PLAIN.match(request.body.strip())
        if plain is not None:
            return plain[0].decode().upper(), 0
    accepted = (("Accept", "application/dtmf-relay, application/dtmf"),)
    raise SipError("an INFO holds no keypad digit", 415, headers=accepted)


def write_digit(digit: str, milliseconds: int) -> bytes:
    """The content of an INFO of ours, application/dtmf-relay."""
    if len(digit) != 1 or digit not in _KEYS:
        raise ValueError(f"{digit!r} is no key")
    return f"Signal={digit}\r\nDuration={milliseconds}\r\n".encode()
