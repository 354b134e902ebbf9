"""What the endpoint binds, what peers are told of it, and the certificate they are shown.

Owns the making of its sockets, this machine's own addresses, and the reasons for which it does not open. Reads and
sends nothing.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping

from gateway.sip.settings import ListenAddress, SipSettings
from gateway.sip.uri import TRANSPORTS, Transport, other_family

Place = tuple[str, int]
"""Host and port."""


class SipUnavailable(Exception):
    """The endpoint cannot be opened; the message says why and what to do, in one sentence."""


def bound_socket(address: ListenAddress) -> socket.socket:
    """A socket that is bound and does not block; on `[::]` it takes IPv4 too. Raises OSError."""
    kind = socket.SOCK_DGRAM if address.transport == "udp" else socket.SOCK_STREAM
    door = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, kind)
    try:
        if door.family == socket.AF_INET6:
            # Left to itself it would depend on the system, and on who makes the socket.
            alone = not ipaddress.ip_address(address.host).is_unspecified
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, alone)
        if kind == socket.SOCK_STREAM:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((address.host, address.port))
        door.setblocking(False)
    except OSError:
        door.close()
        raise
    return door


class OwnPlaces:
    """Ours as peers are told them: where a listener takes both kinds of address, each peer is told one of its own."""

    def __init__(self, bound: Mapping[Transport, Place], public_address: str = "") -> None:
        """Raises SipUnavailable when a listener on every address gives none to tell."""
        self.first: dict[Transport, Place] = {}
        """What is told to a peer of the other kind too, where there is but one."""
        self._others: dict[Transport, str] = {}
        somewhere = next(iter(bound.values()), ("127.0.0.1", 5060))
        for transport in TRANSPORTS:
            host, port = bound.get(transport, somewhere)
            hosts = [public_address] if public_address else own_addresses(host)
            self.first[transport] = (hosts[0], port)
            self._others[transport] = hosts[-1]

    def told(self, host: str, transport: Transport) -> Place:
        """What a peer is told that sends from `host`, or is reached there."""
        first, port = self.first[transport]
        return (self._others[transport] if other_family(first, host) else first), port


def own_addresses(listening: str) -> list[str]:
    """Where a listener is reached: an IPv6 address, then an IPv4 one, if it takes both. Raises SipUnavailable."""
    if not ipaddress.ip_address(listening).is_unspecified:
        return [listening]
    ways = [(socket.AF_INET, "192.0.2.1")]
    if ":" in listening:
        ways.insert(0, (socket.AF_INET6, "2001:db8::1"))
    found = [own for family, far in ways if (own := _own_address(family, far))]
    if not found:
        raise SipUnavailable(
            f"this machine's own address cannot be told from {listening}; set CALLPLEX_SIP_PUBLIC_ADDRESS"
        )
    return found


def _own_address(family: socket.AddressFamily, far: str) -> str:
    """This machine's on the way to the network; "" when there is no way."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 5060))
        except OSError:
            return ""
        return str(probe.getsockname()[0])


def refuse_open_door(settings: SipSettings) -> None:
    """Raises SipUnavailable when anybody could call from elsewhere."""
    away = [one for one in settings.addresses if not ipaddress.ip_address(one.host).is_loopback]
    if away and not settings.networks and not settings.users:
        raise SipUnavailable(
            f"CALLPLEX_SIP_LISTEN is {settings.listen}, where anybody can call; name the peers that may in "
            "CALLPLEX_SIP_ALLOW, give passwords in [sip.users], or listen on 127.0.0.1"
        )


def server_tls(settings: SipSettings) -> ssl.SSLContext:
    """The certificate we show. Raises SipUnavailable."""
    assert settings.tls_cert is not None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise SipUnavailable(f"the certificate {settings.tls_cert} cannot be used: {error}") from None
    return context
