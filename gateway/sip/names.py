"""Names of peers, looked up as addresses only: there are no SRV or NAPTR records (RFC 3263).

Owns what was found, for a minute. Sends nothing over SIP.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from gateway.sip.uri import canonical, other_family

BELIEVED = 60.0
"""Seconds for which an address that was looked up is believed."""


class Names:
    """Of the kinds of address that one endpoint can reach."""

    def __init__(self) -> None:
        self._family = socket.AF_INET
        self._public = ""
        self._found: dict[str, tuple[float, str]] = {}

    def reach_from(self, hosts: Iterable[str], public_address: str = "") -> None:
        """Only what can be reached from what is listened on; of both kinds rather that of `public_address`."""
        own = [ipaddress.ip_address(host) for host in hosts]
        self._public = public_address
        if any(host.version == 6 and host.is_unspecified for host in own):
            self._family = socket.AF_UNSPEC
        elif own and all(host.version == 6 for host in own):
            self._family = socket.AF_INET6

    def known(self, host: str) -> str | None:
        """The address of a name that was looked up of late, or of an address, as everybody here writes it."""
        if _is_address(host):
            return canonical(host)
        until, address = self._found.get(host, (0.0, ""))
        return address if asyncio.get_running_loop().time() < until else None

    def last(self, host: str) -> str:
        """The address that a name had when it was looked up last; the name itself before."""
        return self._found.get(host, (0.0, host))[1]

    async def resolve(self, host: str) -> str:
        """The address of a name. Raises OSError when there is none."""
        known = self.known(host)
        return known if known is not None else (await self._look_up(host))[0]

    async def resolve_all(self, host: str) -> set[str]:
        """Every address of a name, as it stands now. Raises OSError when there is none."""
        return set(await self._look_up(host))

    async def _look_up(self, host: str) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            entries = await loop.getaddrinfo(host, None, family=self._family, type=socket.SOCK_DGRAM)
        except UnicodeError:
            raise OSError(f"{host} is no name that can be looked up") from None
        except socket.gaierror as error:
            raise OSError(f"{host} has no address we could reach ({error.strerror}){self._hint}") from None
        found = sorted((str(entry[4][0]) for entry in entries), key=lambda one: other_family(one, self._public))
        if not _is_address(host):
            self._found[host] = (loop.time() + BELIEVED, found[0])
        return found

    @property
    def _hint(self) -> str:
        if self._family == socket.AF_UNSPEC:
            return ""
        spoken, other = ("IPv4", "IPv6") if self._family == socket.AF_INET else ("IPv6", "IPv4")
        return f"; only {spoken} is listened on: if that peer is reached over {other}, listen on [::], which is both"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
