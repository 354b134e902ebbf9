"""The values of header fields: name-addr, Via, CSeq, parameters, lists.

Owns their grammar (RFC 3261, section 25.1), read tolerantly: white space around separators, quoted strings with
escapes, parameters without values. What was read is written again as it came. Knows no message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from gateway.sip.errors import SipError
from gateway.sip.uri import Parameters, Uri, format_params, parse_uri

_VIA = re.compile(
    r"SIP\s*/\s*[0-9]+\.[0-9]+\s*/\s*([A-Za-z0-9.+*_!%`'~-]+)\s+"
    r"(\[[0-9A-Fa-f:.]+\]|[^\s;:,\[\]\"<>]+)(?:\s*:\s*([0-9]{1,5}))?\s*(;.*)?\Z",
    re.IGNORECASE | re.DOTALL,
)
_CSEQ = re.compile(r"([0-9]+)\s+(\S+)\Z")
_PIECES = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|<[^>]*(?:>|\Z)|[^",;<]+|.', re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)

MAX_CSEQ = 2**31 - 1
MAX_PARTS = 200
"""Separators in one field."""


def split_list(value: str, separator: str = ",") -> list[str]:
    """Cut at separators that stand outside quotes and angle brackets; empty parts are kept. Raises SipError."""
    count = value.count(separator)
    if count == 0:
        return [value.strip()]
    if count > MAX_PARTS:
        raise SipError(f"a header field has more than {MAX_PARTS} parts")
    parts = [""]
    for piece in _PIECES.findall(value):
        if piece == separator:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts]


def unquote_string(value: str) -> str:
    """A quoted string's content with escapes resolved; anything else as it is."""
    found = _QUOTED.fullmatch(value)
    return _ESCAPED.sub(r"\1", found[1]) if found else value


def quote_string(value: str) -> str:
    """A quoted string; line breaks, which would end the field, become spaces."""
    return '"' + re.sub(r"[\r\n\x00]", " ", value).replace("\\", "\\\\").replace('"', '\\"') + '"'


def parse_params(text: str) -> Parameters:
    """`;name=value;flag` into pairs, values as written; empty ones are passed over."""
    pairs: list[tuple[str, str | None]] = []
    for part in split_list(text, ";"):
        name, equals, value = part.partition("=")
        if name.strip():
            pairs.append((name.strip(), value.strip() if equals else None))
    return tuple(pairs)


def get_param(params: Parameters, name: str) -> str | None:
    """A parameter's value, unquoted, "" when it has none; None when it is not there."""
    for key, value in params:
        if key.lower() == name:
            return unquote_string(value) if value else ""
    return None


@dataclass(frozen=True, slots=True)
class NameAddr:
    """What To, From, Contact, Route and Refer-To hold (RFC 3261, section 20.10)."""

    uri: Uri
    display: str = ""
    """The name shown to people, unquoted."""
    params: Parameters = ()

    def param(self, name: str) -> str | None:
        """A parameter of the field, not of the URI."""
        return get_param(self.params, name)

    @property
    def tag(self) -> str:
        """Empty for a peer of RFC 2543, which has none (RFC 3261, section 12.2.1.1)."""
        return self.param("tag") or ""

    def with_tag(self, tag: str) -> NameAddr:
        """The same party with this tag; none for ""."""
        rest = tuple(pair for pair in self.params if pair[0].lower() != "tag")
        return replace(self, params=(*rest, ("tag", tag)) if tag else rest)

    def __str__(self) -> str:
        shown = f"{quote_string(self.display)} " if self.display else ""
        return f"{shown}<{self.uri}>{format_params(self.params)}"


def parse_name_addr(value: str) -> NameAddr:
    """Read one name-addr or addr-spec; raises SipError."""
    value = value.strip()
    display = ""
    if value.startswith('"'):
        found = _QUOTED.match(value)
        if found is None:
            raise SipError("a quoted name does not end")
        display = _ESCAPED.sub(r"\1", found[1])
        value = value[found.end() :].lstrip()
        if not value.startswith("<"):
            raise SipError("a quoted name is not followed by an address in angle brackets")
    before, bracket, after = value.partition("<")
    if not bracket:
        address, semicolon, params = value.partition(";")
        if "?" in address:
            raise SipError("an address with header fields is not in angle brackets")
        return NameAddr(parse_uri(address.strip()), "", parse_params(semicolon + params))
    address, bracket, params = after.partition(">")
    if not bracket:
        raise SipError("an angle bracket is not closed")
    params = params.strip()
    if params and not params.startswith(";"):
        raise SipError("an address in angle brackets is followed by something else than parameters")
    return NameAddr(parse_uri(address.strip()), display or before.strip(), parse_params(params))


@dataclass(frozen=True, slots=True)
class Via:
    """One hop of a request's way (RFC 3261, section 20.42)."""

    transport: str
    """As written: UDP, TCP, TLS, SCTP ..."""
    host: str
    port: int | None = None
    params: Parameters = ()

    def param(self, name: str) -> str | None:
        return get_param(self.params, name)

    @property
    def branch(self) -> str:
        return self.param("branch") or ""

    @property
    def sent_by(self) -> str:
        """Host and port, for comparison."""
        return f"{self.host.lower()}:{self.port or 0}"

    def received_from(self, host: str, port: int) -> Via:
        """As a server notes it: where it really came from (section 18.2.1, RFC 3581)."""
        rport = self.param("rport") is not None
        kept = tuple(pair for pair in self.params if pair[0].lower() not in ("received", "rport"))
        noted: Parameters = ()
        if rport:
            noted = (("rport", str(port)),)
        if rport or self.host.strip("[]").lower() != host.lower():
            noted = (("received", host), *noted)
        return replace(self, params=(*kept, *noted))

    def __str__(self) -> str:
        port = f":{self.port}" if self.port is not None else ""
        return f"SIP/2.0/{self.transport} {self.host}{port}{format_params(self.params)}"


def parse_via(value: str) -> Via:
    """Read one Via; raises SipError."""
    found = _VIA.match(value.strip())
    if found is None:
        raise SipError("a Via is malformed")
    port = int(found[3]) if found[3] else None
    if port is not None and not 0 < port < 65536:
        raise SipError("a Via has a port beyond 65535")
    return Via(found[1].upper(), found[2], port, parse_params(found[4] or ""))


@dataclass(frozen=True, slots=True)
class CSeq:
    """A request's place in its sequence (RFC 3261, section 8.1.1.5)."""

    number: int
    method: str

    def __str__(self) -> str:
        return f"{self.number} {self.method}"


def parse_cseq(value: str) -> CSeq:
    """Read a CSeq; raises SipError."""
    found = _CSEQ.match(value.strip())
    if found is None:
        raise SipError("a CSeq is malformed")
    number = parse_number(found[1])
    if number is None or number > MAX_CSEQ:
        raise SipError("a CSeq is not below 2**31")
    return CSeq(number, found[2])


def parse_number(value: str) -> int | None:
    """A whole number of at most ten digits, leading zeros aside; None for anything else."""
    digits = value.strip()
    if not digits or not digits.isascii() or not digits.isdigit() or len(digits.lstrip("0")) > 10:
        return None
    return int(digits)
