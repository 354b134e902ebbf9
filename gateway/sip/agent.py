"""The SIP user agent without its sockets: bytes and time in, events and bytes out.

Read `UserAgentCore` first. Each datagram, or message a StreamFramer cut out of a stream, is parsed, judged, matched
to a transaction and handed to the part it concerns:

    admission   may it be served at all
    incoming    somebody calls us          outgoing   we call somebody
    session     a call that is up          transfer   REFER, NOTIFY, INFO
    registration   where trunks find us    digest     who may call

Nothing a peer sends raises: its faults are answered where they can be, counted, and told as MessageDropped.
After any call of a method the shell asks `datagrams_to_send`, `next_event` until None, and `get_timer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gateway.sip.admission import ALLOW, SUPPORTED, inspect_demands, inspect_form, inspect_request
from gateway.sip.bodies import SDP
from gateway.sip.call import CallState, SipCall
from gateway.sip.chance import Entropy
from gateway.sip.core import Core
from gateway.sip.dialog import MAX_FORWARDS, same_host
from gateway.sip.digest import ClientDigest, ServerDigest
from gateway.sip.errors import SipError
from gateway.sip.events import AgentConfig, Credentials, Ended, Event, Probed
from gateway.sip.fields import NameAddr
from gateway.sip.incoming import Incoming
from gateway.sip.message import Headers, Request, Response, UnfitMessage, parse_message
from gateway.sip.outgoing import Outgoing
from gateway.sip.refusals import Refusals, is_scanner
from gateway.sip.registration import Registration, Trunk
from gateway.sip.session import Sessions
from gateway.sip.transaction import ServerTransaction
from gateway.sip.transfer import Transfers
from gateway.sip.uri import Addr, Uri, address_of


class UserAgentCore:
    """One endpoint: any number of calls, trunks and peers, over any of the transports."""

    def __init__(self, config: AgentConfig, entropy: Entropy) -> None:
        """`entropy(n)` gives n random bytes: os.urandom, or a seeded source in a test."""
        self.config = config
        self._core = Core(config, entropy)
        self._sessions = Sessions(self._core)
        self._incoming = Incoming(self._core, self._sessions)
        self._outgoing = Outgoing(self._core, self._sessions)
        self._transfers = Transfers(self._core, self._sessions)
        self._registrations: dict[str, Registration] = {}
        self._digest = ServerDigest(config.realm, config.users, self._core.chance)
        self._refusals = Refusals(self._core.emit)
        layer = self._core.layer
        layer.on_request = self._request
        layer.on_ack = lambda ack, addr, now: self._incoming.acknowledged(ack, now)

    # What the shell drives

    def receive(self, data: bytes, addr: Addr, now: float) -> None:
        """One datagram, or one message from a stream. Never raises."""
        if not data.strip(b"\r\n\x00"):
            return
        try:
            message = parse_message(data, stream=addr.transport != "udp")
        except UnfitMessage as error:
            self._unfit(error.message, error, addr, now)
        except SipError as error:
            self._refusals.count(str(error), addr, now)
        else:
            self._take(message, addr, now)

    def _take(self, message: Request | Response, addr: Addr, now: float) -> None:
        layer = self._core.layer
        try:
            if isinstance(message, Response):
                inspect_form(message)
                layer.receive_response(message, now)
            elif is_scanner(message):
                raise Unanswered("the peer is a scanner")
            else:
                if not self._known(message, addr):
                    raise Unanswered("the peer is a stranger")
                inspect_request(message)
                layer.receive_request(message, addr, now)
        except SipError as error:
            self._unfit(message, error, addr, now)

    def _known(self, request: Request, addr: Addr) -> bool:
        """Whether a peer is answered at all: one that is trusted, may prove itself, or has a call with us."""
        if self.config.users or self.config.trusted(addr) or request.method == "ACK":
            return True
        return self._core.find(request) is not None or self._core.layer.knows(request)

    def knows(self, addr: Addr) -> bool:
        """Whether a peer needs no password, or has a call with us."""
        calls = self._core.calls.values()
        return self.config.trusted(addr) or any(call.dialog and call.dialog.flow == addr for call in calls)

    def _unfit(self, message: Request | Response, error: SipError, addr: Addr, now: float) -> None:
        self._refusals.count(str(error), addr, now)
        if isinstance(message, Response) or isinstance(error, Unanswered) or is_scanner(message):
            return
        if not (self.config.trusted(addr) or self.config.users):
            return
        try:
            self._core.layer.refuse(message, error, addr)
        except SipError:
            self._refusals.count("a faulty request says not where to answer", addr, now)

    def next_event(self) -> Event | None:
        """What happened, oldest first; None when all was told."""
        return self._core.events.popleft() if self._core.events else None

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, Addr]]:
        """What is to leave, in order, each once."""
        waiting = list(self._core.layer.outbox)
        self._core.layer.outbox.clear()
        return waiting

    def get_timer(self) -> float | None:
        """When `handle_timer` wants to be called; None: not before something else happens."""
        return self._core.timers.next_time()

    def handle_timer(self, now: float) -> None:
        """Do what is due."""
        self._core.timers.run(now)

    def undeliverable(self, addr: Addr, now: float) -> None:
        """No connection to an address, or no name like that: requests on their way there fail with 503."""
        self._core.layer.undeliverable(addr, now)

    # Requests of peers

    def _request(self, transaction: ServerTransaction, now: float) -> None:
        try:
            self._serve(transaction, now)
        except SipError as error:
            if error.code == 401:
                self._core.challenge(transaction, error, now)
            else:
                self._core.refuse(transaction, error, now)
                self._refusals.count(str(error), transaction.addr, now)

    def _serve(self, transaction: ServerTransaction, now: float) -> None:
        request = transaction.request
        inspect_demands(request)
        if request.method == "CANCEL":
            self._incoming.cancel(transaction, now)
        elif request.to.tag:
            self._serve_inside(transaction, now)
        else:
            if not self.config.trusted(transaction.addr):
                self._digest.check(request, now)
            if request.method == "INVITE":
                self._incoming.invite(transaction, now)
            elif request.method == "OPTIONS":
                self._describe(transaction, now)
            else:
                raise SipError(f"{request.method} belongs to no call", 481)

    def _serve_inside(self, transaction: ServerTransaction, now: float) -> None:
        """A request inside a dialog (RFC 3261, section 12.2.2)."""
        request = transaction.request
        call = self._core.find(request)
        if call is None or (call.ended and request.method != "BYE"):
            raise SipError(f"{request.method} belongs to no call", 481)
        if call.dialog is None:
            if request.method != "BYE":
                raise SipError(f"{request.method} comes before the call is up", 481)
            self._core.respond(transaction, 200, now)
            self._outgoing.hung_up_early(call, now)
            return
        if not call.dialog.in_order(request.cseq.number):
            raise SipError("the request comes after a later one", 500)
        call.dialog.flow = transaction.addr
        self._inside(call, transaction, now)

    def _inside(self, call: SipCall, transaction: ServerTransaction, now: float) -> None:
        method = transaction.request.method
        if method == "BYE":
            self._sessions.bye(call, transaction, now)
        elif method == "OPTIONS":
            self._describe(transaction, now)
        elif call.state is CallState.INCOMING:
            raise SipError(f"{method} comes before the call is answered", 500, headers=(("Retry-After", "1"),))
        elif method in ("INVITE", "UPDATE"):
            self._sessions.reinvite(call, transaction, now)
        elif method == "INFO":
            self._transfers.info(call, transaction, now)
        else:
            self._transfers.notify(call, transaction, now)

    def _describe(self, transaction: ServerTransaction, now: float) -> None:
        """OPTIONS (section 11.2)."""
        fields = [("Allow", ALLOW), ("Accept", SDP), ("Supported", SUPPORTED)]
        self._core.respond(transaction, 200, now, fields=fields)

    # Calls

    def ringing(self, call: SipCall, now: float, code: int = 180, sdp: bytes = b"") -> None:
        """Tell the caller that it rings; 183 with SDP for sound before the answer."""
        self._incoming.ringing(call, code, sdp, now)

    def answer(self, call: SipCall, sdp: bytes, now: float) -> None:
        """Accept an IncomingCall or a Reoffer; nothing when it is over meanwhile."""
        if call.state is CallState.INCOMING:
            self._incoming.answer(call, sdp, now)
        else:
            self._sessions.answer(call, sdp, now)

    def reject(self, call: SipCall, code: int, now: float, *, reason: str = "", retry_after: int | None = None) -> None:
        """Refuse an IncomingCall or a Reoffer: 486, 503 ..."""
        if call.state is CallState.INCOMING:
            fields = [("Retry-After", str(retry_after))] if retry_after is not None else []
            self._incoming.reject(call, code, now, reason, fields)
        else:
            self._sessions.reject(call, code, now, reason)

    def redirect(self, call: SipCall, targets: Iterable[Uri], now: float) -> None:
        """Send the caller elsewhere: 302."""
        self._incoming.reject(call, 302, now, fields=[("Contact", f"<{target}>") for target in targets])

    def hangup(self, call: SipCall, now: float) -> None:
        """End a call, whatever state it is in. Safe to call twice."""
        if call.state is CallState.CALLING:
            self._outgoing.give_up(call, Ended.HANGUP, now)
        elif call.state is CallState.INCOMING:
            self._incoming.reject(call, 480, now)
        elif call.state is CallState.ANSWERED:
            call.hang_up_on_ack = True
        elif call.state is CallState.ESTABLISHED:
            self._sessions.hang_up(call, Ended.HANGUP, now)

    def invite(
        self,
        target: Uri,
        sdp: bytes,
        now: float,
        *,
        from_: NameAddr | None = None,
        trunk: str | None = None,
        credentials: Credentials | None = None,
        may_redirect: Callable[[Uri], bool] | None = None,
        fields: Iterable[tuple[str, str]] = (),
    ) -> SipCall:
        """Call somebody, through a trunk if one is named. Raises SipError when the target gives no address.

        A redirection is followed to the target's own host, or where `may_redirect` says.
        """
        registration = self._registrations[trunk] if trunk is not None else None
        digest = ClientDigest(credentials, self._core.chance) if credentials is not None else None
        proxy = None
        if registration is not None:
            digest = digest or registration.digest
            proxy = registration.trunk.addr
            from_ = from_ or registration.trunk.identity
        addr = self._core.reachable(proxy or address_of(target))
        return self._outgoing.invite(
            target,
            sdp,
            from_ or self._core.identity(addr),
            now,
            proxy=proxy,
            digest=digest,
            may_redirect=may_redirect or (lambda uri: same_host(uri, target)),
            fields=tuple(fields),
        )

    def reinvite(self, call: SipCall, sdp: bytes, now: float) -> bool:
        """Change a call's session; False when another change is in progress. Reanswer or ReofferRefused follows."""
        return self._sessions.change(call, sdp, now)

    def refer(self, call: SipCall, target: Uri, now: float) -> bool:
        """Ask the peer to call somebody else; Transferred follows. False when the call is not up."""
        return self._transfers.refer(call, target, now)

    def info_dtmf(self, call: SipCall, digit: str, now: float, milliseconds: int = 160) -> bool:
        """Press a key by INFO, for a peer without telephone-event; False when the call is not up."""
        return self._transfers.send_digit(call, digit, milliseconds, now)

    # Trunks and peers

    def register(self, trunk: Trunk, now: float) -> None:
        """Register with a trunk and stay so; a trunk of that name known before is registered again."""
        known = self._registrations.get(trunk.name)
        if known is None or known.trunk != trunk:
            known = self._registrations[trunk.name] = Registration(self._core, trunk)
        known.start(now)

    def add_trunk(self, trunk: Trunk) -> None:
        """A trunk that knows where we are without being told."""
        self._registrations[trunk.name] = Registration(self._core, trunk)

    def trunk(self, name: str) -> Trunk:
        """A trunk that was registered or added. Raises KeyError."""
        return self._registrations[name].trunk

    def unregister(self, name: str, now: float) -> None:
        """Take a registration back."""
        self._registrations[name].stop(now)

    def check_registration(self, trunk: Trunk, now: float) -> None:
        """Whether a trunk would let us register, without doing it; one RegistrationChanged follows."""
        Registration(self._core, trunk).check(now)

    def probe(self, target: Uri, now: float) -> None:
        """Ask whether a peer lives (OPTIONS); Probed follows. Raises SipError when the target gives no address."""
        addr = self._core.reachable(address_of(target))
        chance = self._core.chance
        here = self._core.identity(addr)
        headers = Headers([("Max-Forwards", MAX_FORWARDS), ("From", str(here.with_tag(chance.token())))])
        headers.add("To", f"<{target}>")
        headers.add("Call-ID", chance.token(12))
        headers.add("CSeq", "1 OPTIONS")
        headers.add("Accept", SDP)
        request = Request(headers, method="OPTIONS", uri=str(target.without_headers()))
        self._core.complete(request, "", addr)

        def heard(response: Response, then: float) -> None:
            if response.code >= 200:
                self._core.emit(Probed(str(target), response.code))

        self._core.layer.request(request, addr, heard, now)

    # What is going on

    @property
    def calls(self) -> int:
        """Calls whose dialog is known."""
        return len(self._core.calls)

    @property
    def transactions(self) -> int:
        """Requests that wait for answers or copies."""
        return len(self._core.layer)

    @property
    def timers(self) -> int:
        """Timers set."""
        return len(self._core.timers)

    @property
    def dropped(self) -> dict[str, int]:
        """Messages that got no service, by cause."""
        return dict(self._refusals.counts)


class Unanswered(SipError):
    """A request that gets no answer at all, so that a scanner learns nothing."""
