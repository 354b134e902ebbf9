"""Names of peers, looked up as addresses only: there are no SRV or NAPTR records (RFC 3263).

Owns what was found, for a minute. Sends nothing over SIP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping

from gateway.sip.uri import TRANSPORTS, Addr, Transport, canonical, is_address, other_family

BELIEVED = 60.0
"""Seconds for which an address that was looked up is believed."""


class Names:
    """Of the kinds of address that one endpoint can reach over each transport."""

    def __init__(self) -> None:
        self._kinds: Mapping[Transport, socket.AddressFamily] = dict.fromkeys(TRANSPORTS, socket.AF_INET)
        self._public = ""
        self._found: dict[str, tuple[float, list[str]]] = {}

    def reach_from(self, bound: Mapping[Transport, tuple[str, int]], public_address: str = "") -> None:
        """Only what can be reached from what is listened on; of both kinds rather that of `public_address`.

        A transport without a listener counts as the first that has one: its peers are told that one's address.
        """
        somewhere = next(iter(bound.values()), ("127.0.0.1", 0))
        self._kinds = {transport: _kind(bound.get(transport, somewhere)[0]) for transport in TRANSPORTS}
        self._public = public_address

    def known(self, peer: Addr) -> str | None:
        """The address of a name that was looked up of late, or of an address, as everybody here writes it."""
        if is_address(peer.host):
            return canonical(peer.host)
        until, found = self._found.get(peer.host, (0.0, []))
        if asyncio.get_running_loop().time() >= until:
            return None
        return next(iter(self._reached(found, peer.transport)), None)

    def last(self, peer: Addr) -> str:
        """The address that a name had when it was looked up last; the name itself before."""
        _, found = self._found.get(peer.host, (0.0, []))
        return next(iter(self._reached(found, peer.transport)), peer.host)

    async def resolve(self, peer: Addr) -> str:
        """The address of a name. Raises OSError when there is none."""
        known = self.known(peer)
        if known is not None:
            return known
        found = self._reached(await self._look_up(peer.host), peer.transport)
        if not found:
            over = f" over {peer.transport.upper()}"
            raise OSError(f"{peer.host} has no address we could reach{over}{_hint(self._kinds[peer.transport], over)}")
        return found[0]

    async def resolve_all(self, host: str) -> set[str]:
        """Every address of a name, over whichever transport, as it stands now. Raises OSError when there is none."""
        return set(await self._look_up(host))

    async def _look_up(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        kinds = set(self._kinds.values())
        family = kinds.pop() if len(kinds) == 1 else socket.AF_UNSPEC
        try:
            entries = await loop.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
        except UnicodeError:
            raise OSError(f"{host} is no name that can be looked up") from None
        except socket.gaierror as error:
            raise OSError(f"{host} has no address we could reach ({error.strerror}){_hint(family)}") from None
        found = sorted((str(entry[4][0]) for entry in entries), key=lambda one: other_family(one, self._public))
        if not is_address(host):
            self._found[host] = (loop.time() + BELIEVED, found)
        return found

    def _reached(self, found: list[str], transport: Transport) -> list[str]:
        """Those of its addresses that can be reached over a transport, in their order."""
        kind = self._kinds[transport]
        return [one for one in found if kind in (socket.AF_UNSPEC, _kind(one))]


def _kind(host: str) -> socket.AddressFamily:
    """Of an address; that of all of this machine's, [::], stands for both."""
    address = ipaddress.ip_address(host)
    if address.version == 4:
        return socket.AF_INET
    return socket.AF_UNSPEC if address.is_unspecified else socket.AF_INET6


def _hint(kind: socket.AddressFamily, over: str = "") -> str:
    if kind == socket.AF_UNSPEC:
        return ""
    spoken, other = ("IPv4", "IPv6") if kind == socket.AF_INET else ("IPv6", "IPv4")
    return f"; only {spoken} is listened on{over}: if that peer is reached over {other}, listen on [::], which is both"
