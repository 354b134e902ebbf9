"""Who may speak SIP to us without a password, how often, and what is logged of the rest. Pure.

Owns what is decided before a message is parsed at all; time comes in as an argument. Passwords, scanners and
what is wrong with a message are the user agent's affair.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterable

from gateway.sip.uri import Addr

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_PEERS = 10_000
"""Addresses whose rate is remembered; the longest unheard go first."""
LOG_EVERY = 10.0
"""Seconds between two log lines about what was dropped for the same cause."""
MAX_CAUSES = 100
LONGEST_PAUSE = 5.0
"""Seconds for which a connection may be left unread."""
BURST = 2.0
"""Seconds' worth of messages that may come at once."""


class Peers:
    """Whose calls are taken without a password."""

    def __init__(self, networks: Iterable[Network], *, loopback: bool) -> None:
        self._networks = tuple(networks)
        self._loopback = loopback
        self._trunks: dict[str, frozenset[str]] = {}

    def know_trunk(self, name: str, hosts: Iterable[str]) -> None:
        """The addresses a trunk's name stands for now."""
        self._trunks[name] = frozenset(hosts)

    def trunk_of(self, addr: Addr) -> str | None:
        """The trunk that a peer belongs to."""
        return next((name for name, hosts in self._trunks.items() if addr.host in hosts), None)

    def trusts(self, addr: Addr) -> bool:
        """Whether a peer needs no password."""
        try:
            address = ipaddress.ip_address(addr.host.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if self._loopback and address.is_loopback:
            return True
        if self.trunk_of(addr) is not None:
            return True
        return any(address.version == network.version and address in network for network in self._networks)


class RateLimit:
    """So many messages a second from each address, and a burst of two seconds' worth."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._most = max(1.0, BURST * per_second)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def admit(self, host: str, now: float) -> bool:
        """Count one message; False when it is one too many."""
        tokens, then = self._buckets.pop(host, (self._most, now))
        tokens = min(self._most, tokens + (now - then) * self._rate)
        admitted = tokens >= 1.0
        self._keep(host, tokens - 1.0 if admitted else tokens, now)
        return admitted

    def charge(self, host: str, now: float) -> float:
        """Count one message that is taken in any case; gives the seconds that its sender is ahead of the rate by."""
        tokens, then = self._buckets.pop(host, (self._most, now))
        tokens = max(min(self._most, tokens + (now - then) * self._rate) - 1.0, -LONGEST_PAUSE * self._rate)
        self._keep(host, tokens, now)
        return max(0.0, -tokens / self._rate)

    def _keep(self, host: str, tokens: float, now: float) -> None:
        self._buckets[host] = (tokens, now)
        if len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)


class DropLog:
    """Turns what is dropped into a few sentences: the first at once, later ones summed up."""

    def __init__(self) -> None:
        self.dropped = 0
        self._causes: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def note(self, cause: str, host: str, count: int, now: float) -> str:
        """A sentence to log, or "" while one about the same cause is recent."""
        self.dropped += count
        last, waiting = self._causes.pop(cause, (now - LOG_EVERY, 0))
        waiting += count
        if now - last < LOG_EVERY:
            self._causes[cause] = (last, waiting)
            return ""
        self._causes[cause] = (now, 0)
        if len(self._causes) > MAX_CAUSES:
            self._causes.popitem(last=False)
        many = f"{waiting} SIP messages were" if waiting > 1 else "a SIP message was"
        return f"{many} dropped ({cause}), the last from {host}"
