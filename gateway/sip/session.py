"""A call that is up: changing, keeping alive, and ending it (RFC 3261, sections 12, 14 and 15).

Owns BYE, re-INVITE and UPDATE both ways with their collisions, hold, and session timers. How a call came up is not
its affair.
"""

from __future__ import annotations

from gateway.sip.bodies import SDP, find_sdp
from gateway.sip.call import CallState, SipCall, Unacknowledged
from gateway.sip.core import Core, Fields, peer_allows
from gateway.sip.digest import proof_of
from gateway.sip.errors import SipError
from gateway.sip.events import Ended, Held, Reanswer, Reoffer, ReofferRefused, Resumed
from gateway.sip.fields import get_param, parse_number, parse_params
from gateway.sip.message import Request, Response
from gateway.sip.sdp import is_hold
from gateway.sip.session_timer import accept_interval, describe_acceptance, read_acceptance
from gateway.sip.transaction import ServerTransaction

REFRESH_AGAIN = 10.0
"""Seconds to another try of a session refresh that was refused."""
RETRY_AFTER = 10
"""Whole seconds below which a peer is told to come again (section 14.2)."""


class Sessions:
    """Calls with a dialog, whoever called whom."""

    def __init__(self, core: Core) -> None:
        self._core = core

    # Answering INVITEs

    def accept(self, call: SipCall, transaction: ServerTransaction, sdp: bytes, fields: Fields, now: float) -> None:
        """Give a 2xx to an INVITE and repeat it until it is acknowledged (section 13.3.1.4)."""
        response = self._core.respond(
            transaction, 200, now, fields=self._core.accept_invite(call, transaction, fields), sdp=sdp
        )
        if response is None:
            return
        timing = self._core.config.timing
        wait = timing.t1
        call.unacknowledged = Unacknowledged(
            bytes(response),
            transaction.reply_to,
            transaction.request.cseq.number,
            self._core.timers.at(now + wait, lambda then: self._repeat(call, wait, then)),
            self._core.timers.at(now + timing.lifetime, lambda then: self._unheard(call, then)),
        )

    def _repeat(self, call: SipCall, wait: float, now: float) -> None:
        answer = call.unacknowledged
        if answer is not None:
            self._core.layer.send(answer.data, answer.addr)
            longer = min(2 * wait, self._core.config.timing.t2)
            answer.again = self._core.timers.at(now + longer, lambda then: self._repeat(call, longer, then))

    def _unheard(self, call: SipCall, now: float) -> None:
        """No ACK came: the session should be ended (section 13.3.1.4)."""
        self._core.settle(call)
        self.hang_up(call, Ended.NO_ACK, now)

    # Ending

    def hang_up(self, call: SipCall, reason: Ended, now: float) -> None:
        """Send a BYE; the dialog is known until it is answered, so that crossing requests find it."""
        if call.ended:
            return
        self._core.finish(call, reason, now)
        self._core.ask(call, "BYE", lambda response, then: self._gone(call, response), now)

    def _gone(self, call: SipCall, response: Response) -> None:
        if response.code >= 200:
            self._core.drop(call)

    def bye(self, call: SipCall, transaction: ServerTransaction, now: float) -> None:
        """The peer hangs up."""
        self._core.respond(transaction, 200, now)
        if call.ended:
            return
        self._core.drop(call)
        self._core.finish(call, Ended.BYE, now, text=reason_text(transaction.request))

    def lost(self, call: SipCall, response: Response, now: float) -> bool:
        """Whether a response to a request inside the dialog means that the call is over (section 12.2.1.2)."""
        if response.code == 481:
            self._core.drop(call)
            self._core.finish(call, Ended.LOST, now, 481, response.reason)
            return True
        if response.code == 408 or (response.local and response.code == 503):
            self.hang_up(call, Ended.LOST, now)
            return True
        return False

    # The peer changes the session

    def reinvite(self, call: SipCall, transaction: ServerTransaction, now: float) -> None:
        """A re-INVITE or UPDATE; raises SipError: 491 or 500 when it collides (section 14.2), 422, 415."""
        self._refuse_collision(call, transaction)
        request = transaction.request
        offer = find_sdp(request)
        timer = accept_interval(request, self._core.config.session_expires, self._core.config.min_se)
        assert call.dialog is not None
        call.dialog.refresh(request, transaction.addr)
        call.addr = transaction.addr
        call.peer_allows = peer_allows(request, call.peer_allows)
        if call.timer is not None:
            call.timer.stop()
        call.timer = timer
        call.waiting = transaction
        call.remote_before = call.remote_sdp
        if request.method == "INVITE":
            self._core.respond(transaction, 100, now)
            call.late_offer = offer is None
        if offer is None and request.method == "UPDATE":
            self.answer(call, b"", now)
        elif offer is None:
            # It asks for an offer of ours, and what stands may be our half of a hold.
            self._core.emit(Reoffer(call, None))
        elif offer == call.remote_sdp:
            self.answer(call, call.local_sdp, now)
        else:
            call.remote_sdp = offer
            self.note_hold(call)
            self._core.emit(Reoffer(call, offer))

    def _refuse_collision(self, call: SipCall, transaction: ServerTransaction) -> None:
        if call.waiting is not None:
            wait = str(self._core.chance.number(RETRY_AFTER + 1))
            raise SipError("the last change is not answered yet", 500, headers=(("Retry-After", wait),))
        if call.offering is not None:
            raise SipError("a change of ours is in progress", 491)
        if call.unacknowledged is not None and transaction.request.method == "INVITE":
            raise SipError("our last answer is not acknowledged yet", 491)

    def answer(self, call: SipCall, sdp: bytes, now: float) -> None:
        """Accept the peer's change."""
        transaction = call.waiting
        if transaction is None or call.ended:
            return
        call.waiting = None
        call.local_sdp = sdp or call.local_sdp
        fields = describe_acceptance(call.timer, transaction.request)
        if transaction.is_invite:
            self.accept(call, transaction, sdp, fields, now)
        else:
            fields = self._core.accept_invite(call, transaction, fields)
            self._core.respond(transaction, 200, now, fields=fields, sdp=sdp)
            self.watch(call, now)

    def reject(self, call: SipCall, code: int, now: float, reason: str = "") -> None:
        """Refuse the peer's change; the session stays as it was."""
        if call.waiting is not None and not call.ended:
            self._core.respond(call.waiting, code, now, reason)
            self._undo(call, now)

    def withdrawn(self, transaction: ServerTransaction, now: float) -> None:
        """A re-INVITE was cancelled and has got its 487."""
        for call in self._core.calls.values():
            if call.waiting is transaction:
                self._undo(call, now)

    def _undo(self, call: SipCall, now: float) -> None:
        """The change that the peer waits for will not be: what stood before it stands."""
        call.waiting = None
        call.late_offer = False
        call.remote_sdp = call.remote_before
        self.note_hold(call)
        self.watch(call, now)

    def note_hold(self, call: SipCall) -> None:
        """Tell when the peer stops wanting to hear us, or wants to again."""
        held = is_hold(call.remote_sdp)
        if held != call.on_hold:
            call.on_hold = held
            self._core.emit(Held(call) if held else Resumed(call))

    # We change it

    def change(self, call: SipCall, sdp: bytes, now: float) -> bool:
        """Offer other SDP in a re-INVITE; False when another change is in progress."""
        if call.state is not CallState.ESTABLISHED or call.dialog is None:
            return False
        if call.offering is not None or call.waiting is not None or call.unacknowledged is not None:
            return False
        if call.retry is not None:
            call.retry.cancel()
        fields = self.interval_fields(call)
        call.offering = self._core.ask(
            call, "INVITE", lambda response, then: self._changed(call, sdp, response, then), now, fields, (SDP, sdp)
        )
        timing = self._core.config.timing
        limit = now + timing.lifetime + timing.t4
        call.offer_limit = self._core.timers.at(limit, lambda then: self._stuck(call, then))
        return True

    def _stuck(self, call: SipCall, now: float) -> None:
        """A provisional response and then nothing: as if there had been none."""
        if call.offering is not None:
            call.offering.fail(408, now)

    def interval_fields(self, call: SipCall) -> list[tuple[str, str]]:
        """The session timer we ask for (RFC 4028, section 7.4)."""
        config = self._core.config
        wanted = call.timer.interval if call.timer is not None else config.session_expires
        if not wanted:
            return []
        return [("Session-Expires", str(max(wanted, config.min_se))), ("Min-SE", str(config.min_se))]

    def _changed(self, call: SipCall, sdp: bytes, response: Response, now: float) -> None:
        if response.code < 200:
            return
        if call.offer_limit is not None and call.offering is not None:
            call.offer_limit.cancel()
        if response.code < 300:
            again = self.acknowledge(call, response)
            if again or call.ended:
                return
            self._take_acceptance(call, response, now)
            call.local_sdp = sdp
            answer = _sdp_of(response)
            if answer is not None and answer != call.remote_sdp:
                call.remote_sdp = answer
                self._core.emit(Reanswer(call, answer))
                self.note_hold(call)
            return
        call.offering = None
        if call.ended or self.lost(call, response, now):
            return
        if self._lengthen(call, response):
            self.change(call, sdp, now)
            return
        if response.code == 491:
            low, high = (2.1, 4.0) if call.outgoing else (0.0, 2.0)
            wait = self._core.chance.between(low, high)
            call.retry = self._core.timers.at(now + wait, lambda then: self._try_again(call, sdp, then))
            return
        self._core.emit(ReofferRefused(call, response.code))
        self._refresh_soon(call, now)

    def _try_again(self, call: SipCall, sdp: bytes, now: float) -> None:
        if not self.change(call, sdp, now) and call.state is CallState.ESTABLISHED:
            call.retry = self._core.timers.at(now + 1.0, lambda then: self._try_again(call, sdp, then))

    def acknowledge(self, call: SipCall, response: Response) -> bool:
        """Send the ACK to a 2xx; True when it is a copy of one that was acknowledged before."""
        assert call.dialog is not None
        number = response.cseq.number
        offering = call.offering
        again = offering is None or offering.request.cseq.number != number
        if offering is not None and not again:
            call.offering = None
            call.proof = proof_of(offering.request)
            call.dialog.refresh(response, None)
        ack = call.dialog.request("ACK", number)
        for name, value in call.proof:
            ack.headers.add(name, value)
        self._core.layer.send_once(ack, self._core.hop(call))
        return again

    def _take_acceptance(self, call: SipCall, response: Response, now: float) -> None:
        if call.timer is not None:
            call.timer.stop()
        call.timer = read_acceptance(response, self._core.config.session_expires, self._core.config.min_se)
        call.peer_allows = peer_allows(response, call.peer_allows)
        self.watch(call, now)

    # Session timers

    def watch(self, call: SipCall, now: float) -> None:
        """Count the session interval anew (RFC 4028, section 10)."""
        timer = call.timer
        if timer is None or call.ended or call.state is not CallState.ESTABLISHED:
            return
        timer.stop()
        action = self._refresh if timer.refresher else self._expire
        timer.due = self._core.timers.at(now + timer.wait(), lambda then: action(call, then))

    def _expire(self, call: SipCall, now: float) -> None:
        self.hang_up(call, Ended.EXPIRED, now)

    def _refresh(self, call: SipCall, now: float) -> None:
        """Tell the peer that we live: UPDATE if it knows that, else a re-INVITE with the SDP that stands."""
        busy = call.offering is not None or call.waiting is not None or call.unacknowledged is not None
        if busy:
            self._refresh_soon(call, now)
        elif "UPDATE" in call.peer_allows:
            fields = self.interval_fields(call)
            call.offering = self._core.ask(call, "UPDATE", lambda r, then: self._refreshed(call, r, then), now, fields)
        else:
            self.change(call, call.local_sdp, now)

    def _refreshed(self, call: SipCall, response: Response, now: float) -> None:
        if response.code < 200:
            return
        call.offering = None
        if call.ended or self.lost(call, response, now):
            return
        if response.code < 300:
            self._take_acceptance(call, response, now)
        elif self._lengthen(call, response):
            self._refresh(call, now)
        else:
            self._refresh_soon(call, now)

    def _refresh_soon(self, call: SipCall, now: float) -> None:
        """A refresh of ours has to wait, or was refused: the peer's clock goes on, so not another half interval."""
        timer = call.timer
        if timer is None or not timer.refresher:
            self.watch(call, now)
            return
        timer.stop()
        wait = min(REFRESH_AGAIN, timer.wait())
        timer.due = self._core.timers.at(now + wait, lambda then: self._refresh(call, then))

    def _lengthen(self, call: SipCall, response: Response) -> bool:
        """Whether a 422 tells of a longer interval that we can ask for (RFC 4028, section 7.4)."""
        shortest = parse_number(response.headers.first("Min-SE")) or 0
        if response.code != 422 or call.timer is None or shortest <= call.timer.interval:
            return False
        call.timer.interval = shortest
        return True


def _sdp_of(response: Response) -> bytes | None:
    try:
        return find_sdp(response)
    except SipError:
        return None


def reason_text(request: Request) -> str:
    """What a Reason field says (RFC 3326): its text, else its cause; "" for one that cannot be read."""
    _, semicolon, params = request.headers.first("Reason").partition(";")
    try:
        fields = parse_params(semicolon + params)
    except SipError:
        return ""
    return get_param(fields, "text") or get_param(fields, "cause") or ""
