"""What the parts of the user agent share: configuration, transactions, calls, events.

Owns the table of dialogs and the making of requests and responses that carry our Contact. Decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from gateway.sip.admission import ALLOW, SUPPORTED
from gateway.sip.bodies import SDP
from gateway.sip.call import CallState, SipCall
from gateway.sip.chance import Chance, Entropy
from gateway.sip.dialog import contact_uri
from gateway.sip.errors import SipError
from gateway.sip.events import AgentConfig, Ended, Event, Terminated
from gateway.sip.fields import NameAddr
from gateway.sip.layer import TransactionLayer
from gateway.sip.message import Request, Response, response_to
from gateway.sip.transaction import ClientTransaction, Listener, ServerTransaction
from gateway.sip.uri import Addr, Uri, bracketed, is_address

Fields = Iterable[tuple[str, str]]

MAX_CHALLENGES = 2
"""Times one request is tried again with a password."""


class Core:
    """Handed to every part."""

    def __init__(self, config: AgentConfig, entropy: Entropy) -> None:
        self.config = config
        self.chance = Chance(entropy)
        self.layer = TransactionLayer(config.timing, self.chance, self.told)
        self.timers = self.layer.timers
        self.events: deque[Event] = deque()
        self.calls: dict[tuple[str, str], SipCall] = {}
        """By Call-ID and our tag."""

    def emit(self, event: Event) -> None:
        self.events.append(event)

    # Messages

    def told(self, peer: Addr) -> tuple[str, int]:
        """Host and port of ours as a peer is told them."""
        return self.config.told(peer) if self.config.told is not None else self.config.addresses[peer.transport]

    def identity(self, peer: Addr, user: str = "") -> NameAddr:
        """Who we are to a peer that knows us by no name of its own."""
        return NameAddr(Uri("sip", user or self.config.user, host=bracketed(self.told(peer)[0])))

    def contact(self, user: str, peer: Addr, secure: bool = False) -> str:
        """Ours, for a peer to reach us."""
        host, port = self.told(peer)
        return f"<{contact_uri(user or self.config.user, bracketed(host), port, peer.transport, secure)}>"

    def respond(
        self,
        transaction: ServerTransaction,
        code: int,
        now: float,
        reason: str = "",
        fields: Fields = (),
        sdp: bytes = b"",
    ) -> Response | None:
        """Answer a request; None when it has its final answer already."""
        tag = "" if code == 100 else transaction.tag
        response = response_to(transaction.request, code, tag, reason)
        for name, value in fields:
            response.headers.add(name, value)
        response.headers.add("Server", self.config.user_agent)
        if sdp:
            response.headers.add("Content-Type", SDP)
            response.body = sdp
        return response if self.layer.respond(transaction, response, now) else None

    def refuse(self, transaction: ServerTransaction, error: SipError, now: float) -> None:
        """Answer a request with what is wrong with it."""
        self.respond(transaction, error.code, now, error.reason, error.headers)

    def challenge(self, transaction: ServerTransaction, error: SipError, now: float) -> None:
        """Ask for a password without keeping anything (RFC 3261, section 26.3.2.4).

        Nobody has proved who they are, so a forged request must cost one answer, not eleven and 32 s of memory. A copy
        of the request is challenged again, under the same tag (section 8.2.7).
        """
        transaction.tag = self.layer.stateless_tag(transaction)
        self.refuse(transaction, error, now)
        transaction.end(now)

    def accept_invite(self, call: SipCall, transaction: ServerTransaction, fields: Fields) -> list[tuple[str, str]]:
        """The fields of a response that makes or keeps a dialog (RFC 3261, section 12.1.1)."""
        request = transaction.request
        secure = request.uri[:5].lower() == "sips:"
        routes = [("Record-Route", value) for value in request.headers.all("Record-Route")]
        contact = ("Contact", self.contact(call.local.uri.user, transaction.addr, secure))
        return [*routes, contact, ("Allow", ALLOW), ("Supported", SUPPORTED), *fields]

    def complete(self, request: Request, user: str, peer: Addr) -> None:
        """Add what every request of ours tells about us."""
        secure = request.uri[:5].lower() == "sips:"
        request.headers.put("Contact", self.contact(user, peer, secure))
        request.headers.put("User-Agent", self.config.user_agent)
        if request.method in ("INVITE", "UPDATE", "OPTIONS"):
            request.headers.put("Allow", ALLOW)
            request.headers.put("Supported", SUPPORTED)

    def ask(
        self,
        call: SipCall,
        method: str,
        listener: Listener,
        now: float,
        fields: Fields = (),
        content: tuple[str, bytes] | None = None,
        tries: int = MAX_CHALLENGES,
    ) -> ClientTransaction:
        """A request inside a call's dialog, tried again when a password is asked for.

        `listener` hears its responses; a peer whose address cannot be reached counts as silent.
        """
        assert call.dialog is not None
        request = call.dialog.request(method)
        hop = self.hop(call)
        fields = list(fields)
        for name, value in fields:
            request.headers.put(name, value)
        # A name may never have been looked up; its messages come from an address.
        peer = hop if is_address(hop.host) else hop._replace(host=call.dialog.flow.host)
        self.complete(request, call.local.uri.user, peer)
        if content is not None:
            request.headers.add("Content-Type", content[0])
            request.body = content[1]
        if call.digest is not None:
            call.digest.sign(request)

        def heard(response: Response, then: float) -> None:
            digest = call.digest
            if response.code in (401, 407) and tries and digest is not None and digest.challenged(response):
                again = self.ask(call, method, listener, then, fields, content, tries - 1)
                if call.offering is not None and call.offering.request is request:
                    call.offering = again
                return
            listener(response, then)

        return self.layer.request(request, hop, heard, now)

    def hop(self, call: SipCall) -> Addr:
        """Where a request inside a call's dialog goes: back where the peer came from, if it names nothing better."""
        assert call.dialog is not None
        try:
            return self.reachable(call.dialog.next_hop())
        except SipError:
            return call.dialog.flow

    def reachable(self, addr: Addr) -> Addr:
        """An address of a transport that we speak; raises SipError."""
        if addr.transport not in self.config.addresses:
            raise SipError("the transport of an address is not spoken here", 416)
        return addr

    # Calls

    def find(self, request: Request) -> SipCall | None:
        """The call a request inside a dialog belongs to."""
        call = self.calls.get((request.call_id, request.to.tag))
        if call is None:
            return None
        if call.dialog is None:
            return call if call.outgoing else None
        return call if call.dialog.remote.tag == request.from_.tag else None

    def add(self, call: SipCall) -> None:
        self.calls[(call.call_id, call.local.tag)] = call

    def drop(self, call: SipCall) -> None:
        """Requests inside the call's dialog are unknown from now on."""
        self.calls.pop((call.call_id, call.local.tag), None)

    def finish(self, call: SipCall, reason: Ended, now: float, code: int = 0, text: str = "") -> None:
        """The call is over, once: no request of the peer's stays open, timers go, the application hears of it."""
        if call.ended:
            return
        if call.waiting is not None:
            self.respond(call.waiting, 487, now)
            call.waiting = None
        call.state = CallState.ENDED
        for timer in (call.retry, call.transfer_limit):
            if timer is not None:
                timer.cancel()
        if call.timer is not None:
            call.timer.stop()
        self.settle(call)
        self.emit(Terminated(call, reason, code, text))

    def settle(self, call: SipCall) -> None:
        """Stop repeating our 2xx."""
        if call.unacknowledged is not None:
            call.unacknowledged.again.cancel()
            call.unacknowledged.limit.cancel()
            call.unacknowledged = None


def peer_allows(message: Request | Response, before: frozenset[str]) -> frozenset[str]:
    """The methods a peer says it knows; what it said before when it says nothing."""
    return frozenset(method.upper() for method in message.headers.tokens("Allow")) or before
