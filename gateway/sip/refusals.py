"""What happens to messages that get no service: counted by cause, told at most once a second.

Owns the counts and the signs of a scanner. A flood costs a number, not a log line each.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.sip.events import MessageDropped
from gateway.sip.message import Request
from gateway.sip.uri import Addr

SCANNERS = (
    "friendly-scanner",
    "sipvicious",
    "sipcli",
    "sip-scan",
    "sipsak",
    "sundayddr",
    "iwar",
    "smap",
    "vaxsipuseragent",
    "pplsip",
    "sipptk",
    "eyebeam-scan",
)
"""Beginnings of User-Agent, in lower case, of tools that look for open gateways."""

EVENT_SECONDS = 1.0


def is_scanner(request: object) -> bool:
    """Whether a request says of itself that it scans."""
    if not isinstance(request, Request):
        return False
    agent = request.headers.first("User-Agent").lower()
    return agent.startswith(SCANNERS) or "friendly-scanner" in agent


class Refusals:
    """Counts by cause."""

    def __init__(self, emit: Callable[[MessageDropped], None]) -> None:
        self.counts: dict[str, int] = {}
        self._told: dict[str, tuple[float, int]] = {}
        self._emit = emit

    def count(self, cause: str, addr: Addr, now: float) -> None:
        """One more message without service; `cause` is one of a fixed set."""
        total = self.counts[cause] = self.counts.get(cause, 0) + 1
        last, told = self._told.get(cause, (now - EVENT_SECONDS, 0))
        if now - last >= EVENT_SECONDS:
            self._told[cause] = (now, total)
            self._emit(MessageDropped(cause, addr, total - told))
