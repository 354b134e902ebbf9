"""Calling: an INVITE of ours, from the first try to an answer, a refusal or giving up (RFC 3261, sections 9.1, 13.2).

Owns the caller's half of setting a call up: passwords, redirections, forks, and the CANCEL that waits for a
provisional response. A call given up is over for the application at once; what still comes is cleared away here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway.sip.bodies import SDP, find_sdp
from gateway.sip.call import CallState, SipCall
from gateway.sip.core import MAX_CHALLENGES, Core, peer_allows
from gateway.sip.dialog import MAX_FORWARDS, Dialog, dialog_as_client
from gateway.sip.digest import ClientDigest, proof_of
from gateway.sip.errors import SipError
from gateway.sip.events import Ended, Established, Progress
from gateway.sip.fields import NameAddr, parse_number
from gateway.sip.message import Headers, Request, Response
from gateway.sip.session import Sessions
from gateway.sip.session_timer import read_acceptance
from gateway.sip.timers import Timer
from gateway.sip.transaction import ClientTransaction
from gateway.sip.uri import Addr, Uri, address_of

MAX_TARGETS = 5
"""Addresses one call is redirected to."""
MAX_FORKS = 16

Allowed = Callable[[Uri], bool]
"""Whether a call may be redirected there: a peer must not choose whom we pay for."""


@dataclass(slots=True)
class Attempt:
    """One call of ours on its way to somebody."""

    target: Uri
    sdp: bytes
    proxy: Addr | None
    """The trunk's address, if the call goes through one."""
    may_redirect: Allowed
    fields: tuple[tuple[str, str], ...]
    interval: int
    """Seconds of the session timer we ask for."""
    cseq: int = 0
    transaction: ClientTransaction | None = None
    proceeding: bool = False
    challenges: int = MAX_CHALLENGES
    targets: deque[Uri] = field(default_factory=deque)
    tried: set[str] = field(default_factory=set)
    limit: Timer | None = None
    acks: dict[str, tuple[bytes, Addr]] = field(default_factory=dict)
    """By the To-tag of the 2xx that they answer."""


class Outgoing:
    """The caller."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions

    def invite(
        self,
        target: Uri,
        sdp: bytes,
        from_: NameAddr,
        now: float,
        *,
        proxy: Addr | None,
        digest: ClientDigest | None,
        may_redirect: Allowed,
        fields: tuple[tuple[str, str], ...],
    ) -> SipCall:
        """Call somebody; raises SipError when the target gives no address."""
        core = self._core
        addr = core.reachable(proxy or address_of(target))
        local = from_.with_tag(core.chance.token())
        call = SipCall(core.chance.token(12), True, CallState.CALLING, local, NameAddr(target), target, addr)
        call.local_sdp = sdp
        call.digest = digest
        call.attempt = Attempt(target, sdp, proxy, may_redirect, fields, core.config.session_expires)
        core.add(call)
        limit = now + core.config.ring_seconds
        call.attempt.limit = core.timers.at(limit, lambda then: self.give_up(call, Ended.NO_ANSWER, then))
        self._send(call, call.attempt, now)
        return call

    def _send(self, call: SipCall, attempt: Attempt, now: float) -> None:
        core = self._core
        attempt.cseq += 1
        attempt.proceeding = False
        attempt.tried.add(str(attempt.target))
        addr = attempt.proxy or address_of(attempt.target)
        headers = Headers([("Max-Forwards", MAX_FORWARDS), ("From", str(call.local)), ("To", str(call.remote))])
        headers.add("Call-ID", call.call_id)
        headers.add("CSeq", f"{attempt.cseq} INVITE")
        if attempt.interval:
            headers.add("Session-Expires", str(attempt.interval))
            headers.add("Min-SE", str(core.config.min_se))
        for name, value in attempt.fields:
            headers.put(name, value)
        headers.add("Content-Type", SDP)
        request = Request(headers, attempt.sdp, method="INVITE", uri=str(attempt.target.without_headers()))
        core.complete(request, call.local.uri.user, addr)
        if call.digest is not None:
            call.digest.sign(request)
        call.addr = addr
        attempt.transaction = core.layer.request(
            request, addr, lambda response, then: self._heard(call, attempt, response, then), now
        )

    def _heard(self, call: SipCall, attempt: Attempt, response: Response, now: float) -> None:
        if response.code < 200:
            self._proceed(call, attempt, response, now)
        elif response.code < 300:
            self._accepted(call, attempt, response, now)
        else:
            self._failed(call, attempt, response, now)

    def _proceed(self, call: SipCall, attempt: Attempt, response: Response, now: float) -> None:
        first = not attempt.proceeding
        attempt.proceeding = True
        if call.ended:
            if first:
                self._cancel(attempt, now)
        elif response.code > 100:
            self._core.emit(Progress(call, response.code, _sdp_of(response)))

    # Giving up

    def give_up(self, call: SipCall, reason: Ended, now: float) -> None:
        """Stop calling: CANCEL now, or as soon as something comes back (section 9.1)."""
        attempt = call.attempt
        if call.state is not CallState.CALLING or attempt is None:
            return
        self._core.drop(call)
        self._core.finish(call, reason, now)
        self._abandon_after(attempt, now)
        if attempt.proceeding:
            self._cancel(attempt, now)

    def _cancel(self, attempt: Attempt, now: float) -> None:
        if attempt.transaction is not None:
            self._core.layer.cancel(attempt.transaction, lambda response, then: None, now)
            self._abandon_after(attempt, now)

    def _abandon_after(self, attempt: Attempt, now: float) -> None:
        """An INVITE without a final response is forgotten 64 x T1 after its CANCEL (section 9.1)."""
        transaction = attempt.transaction
        if attempt.limit is not None:
            attempt.limit.cancel()
        if transaction is not None:
            attempt.limit = self._core.timers.at(now + self._core.config.timing.lifetime, transaction.end)

    def hung_up_early(self, call: SipCall, now: float) -> None:
        """A BYE came before the 2xx that it ends: that was lost, or is late."""
        attempt = call.attempt
        self._core.drop(call)
        self._core.finish(call, Ended.BYE, now)
        if attempt is not None:
            self._abandon_after(attempt, now)

    # Answers

    def _accepted(self, call: SipCall, attempt: Attempt, response: Response, now: float) -> None:
        assert attempt.transaction is not None
        tag = response.to.tag
        known = attempt.acks.get(tag)
        if known is not None:
            self._core.layer.send(*known)
            return
        if len(attempt.acks) >= MAX_FORKS:
            return
        dialog = dialog_as_client(attempt.transaction.request, response, attempt.transaction.addr)
        leg = call if not call.ended and call.dialog is None else _fork_of(call, dialog)
        leg.dialog = dialog
        ack = dialog.request("ACK", attempt.cseq)
        call.proof = proof_of(attempt.transaction.request)
        for name, value in call.proof:
            ack.headers.add(name, value)
        hop = self._core.hop(leg)
        attempt.acks[tag] = (self._core.layer.send_once(ack, hop), hop)
        if attempt.limit is not None:
            attempt.limit.cancel()
        if leg is call:
            self._establish(call, response, now)
        else:
            self._core.ask(leg, "BYE", lambda answer, then: None, now)

    def _establish(self, call: SipCall, response: Response, now: float) -> None:
        assert call.dialog is not None
        call.state = CallState.ESTABLISHED
        call.remote = call.dialog.remote
        call.remote_sdp = _sdp_of(response) or b""
        call.peer_allows = peer_allows(response, frozenset())
        call.timer = read_acceptance(response, self._core.config.session_expires, self._core.config.min_se)
        self._core.emit(Established(call, call.remote_sdp or None))
        self._sessions.note_hold(call)
        self._sessions.watch(call, now)

    def _failed(self, call: SipCall, attempt: Attempt, response: Response, now: float) -> None:
        if call.ended:
            if attempt.limit is not None:
                attempt.limit.cancel()
        elif not self._try_again(call, attempt, response, now):
            if attempt.limit is not None:
                attempt.limit.cancel()
            silent = response.local and response.code == 408
            reason = Ended.NO_ANSWER if silent else Ended.LOST if response.local else Ended.REJECTED
            self._core.drop(call)
            self._core.finish(call, reason, now, response.code, response.reason)

    def _try_again(self, call: SipCall, attempt: Attempt, response: Response, now: float) -> bool:
        """Whether the call goes on, with a password, a longer interval, or somewhere else."""
        digest = call.digest
        if response.code in (401, 407):
            if digest is None or not attempt.challenges or not digest.challenged(response):
                return False
            attempt.challenges -= 1
        elif response.code == 422:
            wanted = parse_number(response.headers.first("Min-SE")) or 0
            if wanted <= attempt.interval:
                return False
            attempt.interval = wanted
        elif not self._redirect(attempt, response):
            return False
        self._send(call, attempt, now)
        return True

    def _redirect(self, attempt: Attempt, response: Response) -> bool:
        """Choose the next target: a 3xx names some, any failure moves to the next one known (section 8.1.3.4)."""
        if 300 <= response.code < 400:
            attempt.targets.extendleft(reversed(contacts_by_preference(response)[:MAX_TARGETS]))
        while attempt.targets and len(attempt.tried) <= MAX_TARGETS:
            target = attempt.targets.popleft()
            if str(target) not in attempt.tried and attempt.may_redirect(target) and self._reachable(target):
                attempt.target = target
                return True
        return False

    def _reachable(self, target: Uri) -> bool:
        try:
            self._core.reachable(address_of(target))
        except SipError:
            return False
        return True


def contacts_by_preference(response: Response) -> list[Uri]:
    """The SIP addresses of a redirection, the highest q first."""
    found: list[tuple[float, Uri]] = []
    for contact in response.contacts():
        try:
            q = float(contact.param("q") or 1)
        except ValueError:
            continue
        if contact.uri.is_sip:
            found.append((q, contact.uri.without_headers()))
    return [uri for _, uri in sorted(found, key=lambda pair: -pair[0])]


def _fork_of(call: SipCall, dialog: Dialog) -> SipCall:
    """A stand-in for the answer of a phone that nobody waits for any more."""
    return SipCall(
        call.call_id, True, CallState.ENDED, call.local, dialog.remote, call.uri, call.addr, digest=call.digest
    )


def _sdp_of(response: Response) -> bytes | None:
    try:
        return find_sdp(response)
    except SipError:
        return None
