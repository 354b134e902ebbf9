"""Registrations: telling several trunks where we are, and keeping that true (RFC 3261, section 10.2).

Owns one REGISTER dialogue for each trunk: password, refresh before it expires, and longer and longer waits while a
trunk refuses or is silent (RFC 5626, section 4.5), each with jitter so that gateways do not come back together.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.sip.chance import Chance
from gateway.sip.core import MAX_CHALLENGES, Core
from gateway.sip.dialog import MAX_FORWARDS
from gateway.sip.digest import ClientDigest
from gateway.sip.events import Credentials, RegistrationChanged
from gateway.sip.fields import NameAddr, parse_number
from gateway.sip.message import Headers, Request, Response
from gateway.sip.timers import Timer
from gateway.sip.transaction import ClientTransaction
from gateway.sip.uri import Addr, Uri, address_of, bare_host

BACKOFF = 30.0
"""Seconds to the second try; doubled for each one after."""
MAX_BACKOFF = 1800.0
SHORTEST = 30.0
"""Seconds between refreshes, whatever the registrar grants."""


@dataclass(frozen=True, slots=True)
class Trunk:
    """Somebody who carries our calls."""

    name: str
    registrar: Uri
    """`sip:trunk.example.com;transport=tls`"""
    user: str
    credentials: Credentials | None = None
    proxy: Addr | None = None
    """Where requests go, when not to the registrar's own address."""
    expires: int = 3600

    @property
    def addr(self) -> Addr:
        return self.proxy or address_of(self.registrar)

    @property
    def identity(self) -> NameAddr:
        """Who we are there."""
        return NameAddr(Uri(self.registrar.scheme, self.user, host=self.registrar.host))


class Registration:
    """One trunk's; raises SipError when its address gives no way to it."""

    def __init__(self, core: Core, trunk: Trunk) -> None:
        core.reachable(trunk.addr)
        self.trunk = trunk
        self.registered = False
        self.digest = ClientDigest(trunk.credentials, core.chance) if trunk.credentials is not None else None
        self._core = core
        self._call_id = core.chance.token(12)
        self._tag = core.chance.token()
        self._cseq = 0
        self._expires = trunk.expires
        self._failures = 0
        self._challenges = MAX_CHALLENGES
        self._leaving = False
        self._next: Timer | None = None
        self._transaction: ClientTransaction | None = None

    def start(self, now: float) -> None:
        """Register, or register again at once."""
        self._leaving = False
        self._begin(now)

    def stop(self, now: float) -> None:
        """Take the registration back; nothing is refreshed any more."""
        self._leaving = True
        if self.registered:
            self._begin(now)
        else:
            self._cancel()

    def check(self, now: float) -> None:
        """Find out whether we would be let in, and change nothing: take back an address that was never registered.

        A query without Contact (section 10.2.3) would do the same; there are registrars that answer it with 400.
        """
        self._leaving = True
        self._begin(now)

    def _cancel(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def _begin(self, now: float) -> None:
        self._cancel()
        self._challenges = MAX_CHALLENGES
        self._send(now)

    def _send(self, now: float) -> None:
        addr = self.trunk.addr
        self._cseq += 1
        identity = self.trunk.identity
        headers = Headers([("Max-Forwards", MAX_FORWARDS), ("From", str(identity.with_tag(self._tag)))])
        headers.add("To", str(identity))
        headers.add("Call-ID", self._call_id)
        headers.add("CSeq", f"{self._cseq} REGISTER")
        headers.add("Expires", "0" if self._leaving else str(self._expires))
        target = Uri(self.trunk.registrar.scheme, host=self.trunk.registrar.host, port=self.trunk.registrar.port)
        request = Request(headers, method="REGISTER", uri=str(target))
        self._core.complete(request, self.trunk.user, addr)
        if self.digest is not None:
            self.digest.sign(request)
        cseq = self._cseq
        self._transaction = self._core.layer.request(
            request, addr, lambda response, then: self._heard(cseq, response, then), now
        )

    def _heard(self, cseq: int, response: Response, now: float) -> None:
        if response.code < 200 or cseq != self._cseq:
            return
        if response.code < 300:
            self._accepted(response, now)
        elif self._challenged(response) or self._lengthen(response):
            self._send(now)
        else:
            self._failed(response, now)

    def _challenged(self, response: Response) -> bool:
        if response.code not in (401, 407) or self.digest is None or not self._challenges:
            return False
        if not self.digest.challenged(response):
            return False
        self._challenges -= 1
        return True

    def _lengthen(self, response: Response) -> bool:
        """The registrar wants fewer refreshes (section 10.2.8)."""
        shortest = parse_number(response.headers.first("Min-Expires")) or 0
        if response.code != 423 or shortest <= self._expires:
            return False
        self._expires = shortest
        return True

    def _accepted(self, response: Response, now: float) -> None:
        self._failures = 0
        self.registered = not self._leaving
        if self._leaving:
            self._tell(response, 0.0)
            return
        granted = self._granted(response)
        wait = max(min(granted * self._core.chance.between(0.75, 0.9), granted - 5.0), min(SHORTEST, granted / 2))
        self._again(wait, now)
        self._tell(response, wait)

    def _granted(self, response: Response) -> float:
        """Seconds our binding lasts (section 10.2.4): as our Contact says, else the message, else what we asked."""
        ours = self._core.told(self.trunk.addr)
        for contact in response.contacts():
            seconds = parse_number(contact.param("expires") or "")
            if seconds and bare_host(contact.uri.host) == bare_host(ours[0]) and contact.uri.user == self.trunk.user:
                return float(seconds)
        return float(parse_number(response.headers.first("Expires")) or self._expires)

    def _failed(self, response: Response, now: float) -> None:
        self.registered = False
        if self._leaving:
            self._tell(response, 0.0)
            return
        wait = backoff(self._failures, self._core.chance)
        self._failures += 1
        asked = parse_number(response.headers.first("Retry-After").partition(";")[0].partition("(")[0])
        wait = min(max(wait, float(asked or 0)), 2 * MAX_BACKOFF)
        self._again(wait, now)
        self._tell(response, wait)

    def _again(self, wait: float, now: float) -> None:
        self._cancel()
        self._next = self._core.timers.at(now + wait, self._begin)

    def _tell(self, response: Response, wait: float) -> None:
        self._core.emit(
            RegistrationChanged(
                self.trunk.name, self.registered, response.code, response.reason, wait, seen_as(response, self.trunk)
            )
        )


def backoff(failures: int, chance: Chance) -> float:
    """Seconds to the next try, after so many that failed before the last one did."""
    return min(BACKOFF * 2.0 ** min(failures, 10), MAX_BACKOFF) * chance.between(0.5, 1.0)


def seen_as(response: Response, trunk: Trunk) -> Addr | None:
    """Where the registrar saw us come from (RFC 3581)."""
    if response.local:
        return None
    via = response.via
    received, rport = via.param("received"), parse_number(via.param("rport") or "")
    if not received or not rport or rport > 65535:
        return None
    return Addr(received, rport, trunk.addr.transport)
