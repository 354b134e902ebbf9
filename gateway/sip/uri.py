"""Addresses in SIP: sip, sips and tel URIs, and where a request for one is sent.

Owns the grammar of RFC 3261, section 19.1 (and the number of a tel URI, RFC 3966), and the transport address a
URI stands for. Escapes stay as they came, so that a URI written again is the one that was read. Knows no DNS.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast
from urllib.parse import unquote

from gateway.sip.errors import SipError

Transport = Literal["udp", "tcp", "tls"]
TRANSPORTS: tuple[Transport, ...] = ("udp", "tcp", "tls")

Parameters = tuple[tuple[str, str | None], ...]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?\Z")
_BARRED = re.compile(r"[\s<>\"\x00-\x1f\x7f]")
_SIP = ("sip", "sips")


class Addr(NamedTuple):
    """Where bytes go to or came from. `host` is an address, or a name the shell looks up (RFC 3263)."""

    host: str
    port: int
    transport: Transport = "udp"


@dataclass(frozen=True, slots=True)
class Uri:
    """One URI. For schemes other than sip, sips and tel only `scheme` and `opaque` are set."""

    scheme: str
    user: str = ""
    """As written, escapes included; the number of a tel URI."""
    password: str = ""
    host: str = ""
    """Brackets of an IPv6 address included."""
    port: int | None = None
    params: Parameters = ()
    headers: str = ""
    """What stands behind the question mark, as written."""
    opaque: str = ""

    @property
    def is_sip(self) -> bool:
        """Whether a SIP request can be sent to it."""
        return self.scheme in _SIP

    @property
    def name(self) -> str:
        """The user part with escapes resolved: what a call is routed by."""
        return unquote(self.user, errors="replace")

    def param(self, name: str) -> str | None:
        """A parameter's value, "" when it has none; None when it is not there."""
        for key, value in self.params:
            if key.lower() == name:
                return value or ""
        return None

    def without_headers(self) -> Uri:
        """As it may stand in a request line (RFC 3261, section 19.1.5)."""
        return Uri(self.scheme, self.user, self.password, self.host, self.port, self.params, "", self.opaque)

    def __str__(self) -> str:
        if self.scheme == "tel":
            return f"tel:{self.user}{format_params(self.params)}"
        if not self.is_sip:
            return f"{self.scheme}:{self.opaque}"
        user = f"{self.user}:{self.password}@" if self.password else f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port is not None else ""
        headers = f"?{self.headers}" if self.headers else ""
        return f"{self.scheme}:{user}{self.host}{port}{format_params(self.params)}{headers}"


def format_params(params: Parameters) -> str:
    """`;name=value;flag` as it was read."""
    return "".join(f";{name}" if value is None else f";{name}={value}" for name, value in params)


def parse_uri(text: str) -> Uri:
    """Read one URI; raises SipError for what is none."""
    scheme, colon, rest = text.partition(":")
    if not colon or not _SCHEME.match(scheme):
        raise SipError("an address is not a URI")
    if _BARRED.search(rest):
        raise SipError("a URI contains a space, a quote or a bracket")
    scheme = scheme.lower()
    if scheme == "tel":
        number, *parts = rest.split(";")
        return Uri("tel", user=number, params=_read_params(parts))
    if scheme not in _SIP:
        return Uri(scheme, opaque=rest)
    return _parse_sip(scheme, rest)


def _parse_sip(scheme: str, rest: str) -> Uri:
    userinfo, at, tail = rest.rpartition("@")
    if at and not userinfo:
        raise SipError("a SIP URI has an empty user")
    user, _, password = userinfo.partition(":")
    tail, _, headers = tail.partition("?")
    place, *parts = tail.split(";")
    found = _HOST_PORT.match(place)
    if found is None:
        raise SipError("a SIP URI names no valid host")
    port = int(found[2]) if found[2] else None
    if port is not None and not 0 < port < 65536:
        raise SipError("a SIP URI has a port beyond 65535")
    return Uri(scheme, user, password, found[1], port, _read_params(parts), headers)


def _read_params(parts: list[str]) -> Parameters:
    pairs = []
    for part in parts:
        name, equals, value = part.partition("=")
        if name:
            pairs.append((name, value if equals else None))
    return tuple(pairs)


def default_port(transport: str) -> int:
    """RFC 3261, section 18.1.1."""
    return 5061 if transport == "tls" else 5060


def bare_host(host: str) -> str:
    """An IPv6 address without its brackets; anything else as it is."""
    return host.removeprefix("[").removesuffix("]")


def bracketed(host: str) -> str:
    """The form a host takes in a URI or Via: brackets around an IPv6 address."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def canonical(host: str) -> str:
    """An address as everybody here writes it, that of an IPv4 peer on a socket of IPv6 as IPv4; a name as it is."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


def is_address(host: str) -> bool:
    """Whether a host is an address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_private(host: str) -> bool:
    """Whether a host is an address that only its own network can reach."""
    try:
        return ipaddress.ip_address(bare_host(host)).is_private
    except ValueError:
        return host.endswith(".invalid")


def other_family(one: str, other: str) -> bool:
    """Whether one of two hosts is an IPv4 address and the other an IPv6 address."""
    try:
        return ipaddress.ip_address(one).version != ipaddress.ip_address(other).version
    except ValueError:
        return False


def address_of(uri: Uri) -> Addr:
    """Where a request for this URI goes, `maddr` included; the shell resolves names. Raises SipError if nowhere."""
    if not uri.is_sip:
        raise SipError("an address of that scheme cannot be reached over SIP", 416, "Unsupported URI Scheme")
    wanted = (uri.param("transport") or "").lower()
    if uri.scheme == "sips" or wanted == "tls":
        transport: Transport = "tls"
    elif wanted in ("", *TRANSPORTS):
        transport = cast("Transport", wanted or "udp")
    else:
        raise SipError("the transport of an address is not spoken here")
    host = uri.param("maddr") or uri.host
    return Addr(canonical(bare_host(host)), uri.port or default_port(transport), transport)
