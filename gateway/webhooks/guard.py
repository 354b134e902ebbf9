"""No request goes where it must not: the guard against server-side request forgery.

Owns which addresses an endpoint may have, and that a connection goes to the very address that was
checked: the name is resolved here, once, so that a second answer of its DNS server changes nothing.
Addresses that are not public (private, loopback, link-local, the clouds' metadata services ...) are
refused unless the endpoint allows them. Redirects are the caller's affair: it follows none.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK: tuple[Network, ...] = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
RESOLVED_FOR = 5.0
"""Seconds for which a name's checked addresses are used again."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_PUBLIC: tuple[Network, ...] = (
    ipaddress.ip_network("168.63.129.16/32"),
    ipaddress.ip_network("192.0.0.0/24"),
    ipaddress.ip_network("fec0::/10"),
)
"""What the `ipaddress` of some Python takes for public: Azure's and Oracle's metadata, and site-local addresses."""


class AddressRefused(httpx.ConnectError):
    """The endpoint's host has an address it must not have; the message says which and what allows it."""


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could be asked there; an IPv4 address inside an IPv6 one counts as itself."""
    if isinstance(address, ipaddress.IPv6Address) and (inner := _embedded(address)) is not None:
        return is_public(inner)
    special = address.is_multicast or address.is_reserved or any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not special


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that is really asked: mapped (RFC 4291), NAT64 (6052), 6to4 (3056), Teredo (4380)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def may_connect(address: Address, allowed: Sequence[Network]) -> bool:
    """Whether an endpoint with this allow-list may have this address."""
    plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return is_public(address) or any((plain or address) in network for network in allowed)


def literal_address(host: str) -> Address | None:
    """The address that a URL's host is, if it is one and not a name; `localhost` is 127.0.0.1."""
    if host.lower().rstrip(".") == "localhost":
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


class GuardedTransport(httpx.AsyncBaseTransport):
    """Sends requests only to addresses that are public or in `allowed`.

    Raises AddressRefused, or httpx.ConnectError for a name that nobody knows. One transport serves one
    endpoint: connections, and the thread in which names are resolved, are shared with no other, so
    that a DNS server that does not answer delays only its own endpoint.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        allowed: Sequence[Network],
        *,
        clock: Callable[[], float] = time.monotonic,
        resolve: Callable[[str, int], list[str]] | None = None,
    ) -> None:
        self._inner = inner
        self._allowed = tuple(allowed)
        self._clock = clock
        self._resolve = resolve or _getaddrinfo
        self._resolver = ThreadPoolExecutor(max_workers=1, thread_name_prefix="webhook-dns")
        self._known: dict[tuple[str, int], tuple[float, list[Address]]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.raw_host.decode()
        port = request.url.port or (443 if request.url.scheme == "https" else 80)
        addresses = await self._addresses(host, port)
        for address in addresses:
            if not may_connect(address, self._allowed):
                reason = f"{host} has the address {address}, which is not public; `allow` it if that is meant"
                raise AddressRefused(reason, request=request)
        for place, address in enumerate(addresses, 1):
            try:
                return await self._inner.handle_async_request(_to_address(request, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                # Nothing was sent yet, so that the next address cannot make it twice.
                self._known.pop((host, port), None)
                if place == len(addresses):
                    raise
        raise httpx.ConnectError(f"{host} has no address", request=request)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        literal = literal_address(host)
        if literal is not None:
            return [literal]
        found = self._known.get((host, port))
        if found is not None and self._clock() < found[0]:
            return found[1]
        loop = asyncio.get_running_loop()
        try:
            names = await loop.run_in_executor(self._resolver, self._resolve, host, port)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"the name {host} cannot be resolved") from error
        addresses = [ipaddress.ip_address(name.partition("%")[0]) for name in dict.fromkeys(names)]
        self._known[host, port] = (self._clock() + RESOLVED_FOR, addresses)
        return addresses

    async def aclose(self) -> None:
        self._resolver.shutdown(wait=False, cancel_futures=True)
        await self._inner.aclose()


def _getaddrinfo(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _to_address(request: httpx.Request, address: Address) -> httpx.Request:
    """The same request to a checked address: Host and the certificate's name stay those of the URL."""
    url = request.url.copy_with(host=str(address))
    extensions = {**request.extensions, "sni_hostname": request.url.raw_host.decode().strip("[]")}
    return httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=extensions)
