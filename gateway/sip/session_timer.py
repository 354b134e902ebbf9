"""Session timers: both ends notice that a call has died (RFC 4028).

Owns who refreshes and when, from the fields of INVITE, UPDATE and their 2xx. Sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.sip.errors import SipError
from gateway.sip.fields import get_param, parse_number, parse_params
from gateway.sip.message import Request, Response
from gateway.sip.timers import Timer

LOWEST = 90
"""Seconds below which no interval may be (section 5)."""
MARGIN = 32.0


@dataclass(slots=True)
class SessionTimer:
    """What was agreed for one call."""

    interval: int
    refresher: bool
    """Whether we refresh."""
    due: Timer | None = None

    def wait(self) -> float:
        """Seconds to our next refresh, or until the call counts as dead (section 10)."""
        if self.refresher:
            return self.interval / 2
        return self.interval - min(MARGIN, self.interval / 3)

    def stop(self) -> None:
        if self.due is not None:
            self.due.cancel()


def read_interval(message: Request | Response) -> tuple[int, str] | None:
    """Seconds and refresher ("uac", "uas" or "") of a Session-Expires; None when there is none we can read.

    Never raises: the field is optional, and no call is lost for one that is malformed.
    """
    value = message.headers.first("Session-Expires")
    seconds, semicolon, params = value.partition(";")
    number = parse_number(seconds)
    if number is None:
        return None
    try:
        refresher = get_param(parse_params(semicolon + params), "refresher") or ""
    except SipError:
        refresher = ""
    return number, refresher.lower()


def supports_timer(message: Request | Response) -> bool:
    """Whether the peer knows session timers."""
    options = [*message.headers.tokens("Supported"), *message.headers.tokens("Require")]
    return any(option.lower() == "timer" for option in options)


def accept_interval(request: Request, wanted: int, lowest: int) -> SessionTimer | None:
    """The callee's decision (section 9); None for no timer. Raises SipError (422) for an interval too small."""
    asked = read_interval(request)
    capable = supports_timer(request)
    if asked is None:
        if not wanted:
            return None
        floor = max(parse_number(request.headers.first("Min-SE")) or LOWEST, lowest)
        return SessionTimer(max(wanted, floor), refresher=True)
    seconds, refresher = asked
    if seconds < lowest:
        if capable:
            raise SipError("the session interval is too small", 422, headers=(("Min-SE", str(lowest)),))
        seconds = lowest
    return SessionTimer(seconds, refresher=refresher == "uas" or not capable)


def describe_acceptance(timer: SessionTimer | None, request: Request) -> list[tuple[str, str]]:
    """The fields of the callee's 2xx (section 9)."""
    if timer is None:
        return []
    fields = [("Session-Expires", f"{timer.interval};refresher={'uas' if timer.refresher else 'uac'}")]
    if supports_timer(request) and not timer.refresher:
        fields.append(("Require", "timer"))
    return fields


def read_acceptance(response: Response, wanted: int, lowest: int) -> SessionTimer | None:
    """What the caller takes from a 2xx (section 7.2); without one it refreshes by itself, if it wants to."""
    answered = read_interval(response)
    if answered is None:
        return SessionTimer(max(wanted, lowest), refresher=True) if wanted else None
    seconds, refresher = answered
    return SessionTimer(max(seconds, LOWEST), refresher=refresher != "uas")
