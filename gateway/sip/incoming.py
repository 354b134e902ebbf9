"""Being called: INVITE, CANCEL and the way to an acknowledged answer (RFC 3261, sections 9.2 and 13.3).

Owns the callee's half of setting a call up, and the repetition of every 2xx we give to an INVITE, first or later.
"""

from __future__ import annotations

from gateway.sip.admission import request_uri
from gateway.sip.bodies import find_sdp
from gateway.sip.call import CallState, SipCall
from gateway.sip.core import Core, Fields, peer_allows
from gateway.sip.dialog import dialog_as_server
from gateway.sip.digest import without_proof
from gateway.sip.errors import SipError
from gateway.sip.events import Ended, Established, IncomingCall, Reanswer
from gateway.sip.message import Request
from gateway.sip.session import Sessions
from gateway.sip.session_timer import accept_interval, describe_acceptance
from gateway.sip.transaction import ServerTransaction


class Incoming:
    """The callee."""

    def __init__(self, core: Core, sessions: Sessions) -> None:
        self._core = core
        self._sessions = sessions

    def invite(self, transaction: ServerTransaction, now: float) -> None:
        """A new call; raises SipError for one that cannot be taken."""
        request = transaction.request
        uri = request_uri(request)
        offer = find_sdp(request)
        timer = accept_interval(request, self._core.config.session_expires, self._core.config.min_se)
        dialog = dialog_as_server(request, transaction.tag, transaction.addr)
        call = SipCall(
            request.call_id,
            False,
            CallState.INCOMING,
            dialog.local,
            dialog.remote,
            uri,
            transaction.addr,
            remote_sdp=offer or b"",
            dialog=dialog,
            waiting=transaction,
            late_offer=offer is None,
            timer=timer,
            peer_allows=peer_allows(request, frozenset()),
        )
        self._core.add(call)
        self._core.respond(transaction, 100, now)
        self._core.emit(
            IncomingCall(call, uri, request.from_, request.to, without_proof(request.headers), offer, transaction.addr)
        )

    def ringing(self, call: SipCall, code: int, sdp: bytes, now: float) -> None:
        """180, or 183 with early media."""
        if call.state is CallState.INCOMING and call.waiting is not None:
            fields = self._core.accept_invite(call, call.waiting, ())
            self._core.respond(call.waiting, code, now, fields=fields, sdp=sdp)

    def answer(self, call: SipCall, sdp: bytes, now: float) -> None:
        """Take the call."""
        transaction = call.waiting
        if call.state is not CallState.INCOMING or transaction is None:
            return
        call.waiting = None
        call.state = CallState.ANSWERED
        call.local_sdp = sdp
        fields = describe_acceptance(call.timer, transaction.request)
        self._sessions.accept(call, transaction, sdp, fields, now)

    def reject(self, call: SipCall, code: int, now: float, reason: str = "", fields: Fields = ()) -> None:
        """Refuse the call with a final response of 300 or more."""
        transaction = call.waiting
        if call.state is not CallState.INCOMING or transaction is None:
            return
        call.waiting = None
        self._core.respond(transaction, code, now, reason, fields)
        self._core.drop(call)
        self._core.finish(call, Ended.REJECTED, now, code)

    def cancel(self, transaction: ServerTransaction, now: float) -> None:
        """The caller gives up; too late if we answered. Raises SipError (481) when there is no such call."""
        meant = self._core.layer.cancelled(transaction.request)
        if meant is None:
            raise SipError("the CANCEL means no call", 481)
        transaction.tag = meant.tag
        self._core.respond(transaction, 200, now)
        call = self._core.calls.get((meant.request.call_id, meant.tag))
        if call is not None and call.waiting is meant and call.state is CallState.INCOMING:
            call.waiting = None
            self._core.respond(meant, 487, now)
            self._core.drop(call)
            self._core.finish(call, Ended.CANCELED, now, 487)
        elif self._core.respond(meant, 487, now) is not None:
            self._sessions.withdrawn(meant, now)

    def acknowledged(self, ack: Request, now: float) -> None:
        """An ACK to a 2xx: the call is up, or its change is done."""
        call = self._core.find(ack)
        if call is None or call.unacknowledged is None or call.unacknowledged.cseq != ack.cseq.number:
            return
        self._core.settle(call)
        answer = self._late_answer(call, ack)
        first = call.state is CallState.ANSWERED
        if first:
            call.state = CallState.ESTABLISHED
            self._core.emit(Established(call, answer))
            self._sessions.note_hold(call)
        elif answer is not None:
            self._core.emit(Reanswer(call, answer))
            self._sessions.note_hold(call)
        self._sessions.watch(call, now)
        if call.hang_up_on_ack:
            self._sessions.hang_up(call, Ended.HANGUP, now)

    def _late_answer(self, call: SipCall, ack: Request) -> bytes | None:
        """The SDP of an ACK, when our 2xx held the offer."""
        if not call.late_offer:
            return None
        call.late_offer = False
        try:
            answer = find_sdp(ack)
        except SipError:
            answer = None
        if answer is not None:
            call.remote_sdp = answer
        return answer
