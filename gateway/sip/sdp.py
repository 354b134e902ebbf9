"""Session descriptions of peers: who sends which sound where (RFC 4566, RFC 4568).

Owns their grammar, read tolerantly, and the limits of what is read at all. What they come to is `offer`'s affair.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from gateway.sip.crypto import Crypto, read_crypto
from gateway.sip.errors import SipError
from gateway.sip.fields import parse_number

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]

STATIC: dict[int, str] = {0: "PCMU/8000", 8: "PCMA/8000"}
"""Payload types that need no rtpmap (RFC 3551)."""
DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")

MAX_LINES = 500
MAX_MEDIA = 16


@dataclass(frozen=True, slots=True)
class Media:
    """One stream of a description."""

    kind: str
    port: int
    profile: str
    formats: tuple[str, ...]
    host: str = ""
    rtpmap: tuple[tuple[str, str], ...] = ()
    ptime: int | None = None
    direction: Direction = "sendrecv"
    crypto: tuple[Crypto, ...] = ()
    rtcp_port: int | None = None

    def name_of(self, number: str) -> str:
        """Encoding and clock rate of a payload type, in upper case: `PCMU/8000`."""
        for known, name in self.rtpmap:
            if known == number:
                return name
        return STATIC.get(int(number), "") if number.isascii() and number.isdigit() and len(number) < 4 else ""

    def number_of(self, name: str) -> int | None:
        """The payload type the peer gives to an encoding; None when it does not offer it."""
        for number in self.formats:
            if self.name_of(number) == name.upper():
                return int(number)
        return None


@dataclass(frozen=True, slots=True)
class SessionDescription:
    """What a peer describes."""

    session_id: str
    version: str
    media: tuple[Media, ...]

    def audio(self) -> Media | None:
        """The first audio stream that is not declined."""
        return next((media for media in self.media if media.kind == "audio" and media.port), None)


def parse_sdp(data: bytes) -> SessionDescription:
    """Read a description; raises SipError (488). Lines that say nothing to us are passed over."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
    if not lines or not lines[0].startswith("v="):
        raise SipError("the session description does not begin with its version", 488)
    if len(lines) > MAX_LINES:
        raise SipError(f"the session description has more than {MAX_LINES} lines", 488)
    session: list[str] = []
    sections: list[list[str]] = []
    for line in lines:
        if re.match(r"m\s*=", line):
            sections.append([])
        (sections[-1] if sections else session).append(line)
    if len(sections) > MAX_MEDIA:
        raise SipError(f"the session description has more than {MAX_MEDIA} streams", 488)
    origin = next((line[2:].split() for line in session if line.startswith("o=")), [])
    common = Media("", 0, "", (), host=_host(session), direction=_direction(_attributes(session)) or "sendrecv")
    media = tuple(_read_media(section, common) for section in sections)
    session_id, version = (origin[1], origin[2]) if len(origin) >= 3 else ("", "")
    return SessionDescription(session_id, version, media)


Attributes = list[tuple[str, str]]


def _attributes(lines: list[str]) -> Attributes:
    """Names, in lower case, and values of the a= lines."""
    pairs = [line[2:].partition(":") for line in lines if line.startswith("a=")]
    return [(name.strip().lower(), value.strip()) for name, _, value in pairs]


def _read_media(lines: list[str], common: Media) -> Media:
    words = lines[0].partition("=")[2].split()
    if len(words) < 4:
        raise SipError("a stream of the session description is malformed", 488)
    port = parse_number(words[1].partition("/")[0])
    if port is None or port > 65535:
        raise SipError("a stream of the session description has no valid port", 488)
    attributes = _attributes(lines)
    return Media(
        words[0].lower(),
        port,
        words[2].upper(),
        tuple(words[3:]),
        _host(lines) or common.host,
        tuple(_read_rtpmaps(attributes)),
        _read_ptime(dict(attributes)),
        _direction(attributes) or common.direction,
        tuple(one for name, value in attributes if name == "crypto" and (one := read_crypto(value)) is not None),
        _read_rtcp(dict(attributes)),
    )


def _host(lines: list[str]) -> str:
    words = next((line[2:].split() for line in lines if line.startswith("c=")), [])
    return words[2].partition("/")[0] if len(words) >= 3 else ""


def _direction(attributes: Attributes) -> Direction | None:
    known = [name for name, _ in attributes if name in DIRECTIONS]
    return cast("Direction", known[0]) if known else None


def _read_rtpmaps(attributes: Attributes) -> list[tuple[str, str]]:
    pairs = []
    for name, value in attributes:
        words = value.split()
        number = parse_number(words[0]) if len(words) >= 2 else None
        if name == "rtpmap" and number is not None and number < 128:
            pairs.append((words[0], words[1].upper().removesuffix("/1")))
    return pairs


def _read_ptime(attributes: dict[str, str]) -> int | None:
    wanted, longest = (parse_number(attributes.get(name, "").partition(".")[0]) for name in ("ptime", "maxptime"))
    if wanted and longest:
        return min(wanted, longest)
    return wanted or (longest if longest and longest < 20 else None)


def _read_rtcp(attributes: dict[str, str]) -> int | None:
    number = parse_number(attributes.get("rtcp", "").partition(" ")[0])
    return number if number and number < 65536 else None


def is_hold(data: bytes) -> bool:
    """Whether a description asks us not to send sound (RFC 3264, section 8.4; the address 0.0.0.0 of RFC 2543)."""
    try:
        audio = parse_sdp(data).audio()
    except SipError:
        return False
    return audio is not None and (audio.direction in ("sendonly", "inactive") or audio.host in ("0.0.0.0", "::"))
