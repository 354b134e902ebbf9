"""The transaction layer: which message belongs to which transaction, and where answers go.

Owns the tables of transactions, the Via of what we send, and the bytes waiting to leave. Matches requests as
RFC 3261, section 17.2.3, says (with its rule for peers of RFC 2543), responses as 17.1.3. Dialogs and calls are
above: they get new requests, ACKs to 2xx and responses, each once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import deque
from collections.abc import Callable

from gateway.sip.chance import MAGIC_COOKIE, Chance
from gateway.sip.errors import SipError
from gateway.sip.fields import Via
from gateway.sip.message import Request, Response, response_to
from gateway.sip.timers import TimerQueue, Timing
from gateway.sip.transaction import ClientTransaction, Listener, ServerTransaction, State
from gateway.sip.uri import Addr, bare_host, bracketed, default_port

MAX_TRANSACTIONS = 20_000
"""Of peers, at once; beyond this new requests are dropped until old ones expire."""


class TransactionLayer:
    """Everything between bytes and what they mean."""

    def __init__(self, timing: Timing, chance: Chance, told: Callable[[Addr], tuple[str, int]]) -> None:
        self.timing = timing
        self.timers = TimerQueue()
        self.chance = chance
        self.outbox: deque[tuple[bytes, Addr]] = deque()
        self._told = told
        self._secret = chance.token(16).encode()
        self._clients: dict[tuple[str, str], ClientTransaction] = {}
        self._servers: dict[tuple[str, ...], ServerTransaction] = {}
        self._merged: dict[tuple[str, str, str], ServerTransaction] = {}
        self.on_request: Callable[[ServerTransaction, float], None] = lambda transaction, now: None
        self.on_ack: Callable[[Request, Addr, float], None] = lambda request, addr, now: None
        self.on_stray: Callable[[Response, float], bool] = lambda response, now: False

    def __len__(self) -> int:
        """Transactions that live."""
        return len(self._clients) + len(self._servers)

    # What transactions need

    def send(self, data: bytes, addr: Addr) -> None:
        self.outbox.append((data, addr))

    def forget(self, transaction: ClientTransaction | ServerTransaction) -> None:
        if isinstance(transaction, ClientTransaction):
            self._clients.pop(transaction.key, None)
            return
        self._servers.pop(transaction.key, None)
        if transaction.merged is not None and self._merged.get(transaction.merged) is transaction:
            del self._merged[transaction.merged]

    # Ours to peers

    def via(self, peer: Addr) -> Via:
        """A Via of ours with a new branch, asking to be answered at the port we send from (RFC 3581)."""
        host, port = self._told(peer)
        params = (("branch", self.chance.branch()), ("rport", None))
        return Via(peer.transport.upper(), bracketed(host), port, params)

    def request(self, request: Request, addr: Addr, listener: Listener, now: float) -> ClientTransaction:
        """Send a request that has no Via yet; `listener` hears its responses."""
        request.headers.prepend("Via", str(self.via(addr)))
        return self._start(request, addr, listener, now)

    def cancel(self, invite: ClientTransaction, listener: Listener, now: float) -> None:
        """Cancel an INVITE that is proceeding (section 9.1): same Via, same way."""
        request = invite.request
        headers = request.headers.copy()
        kept = ("via", "route", "max-forwards", "from", "to", "call-id")
        for name in {name for name, _ in headers if name.lower() not in kept}:
            headers.remove(name)
        headers.add("CSeq", f"{request.cseq.number} CANCEL")
        cancel = Request(headers, b"", request.encoding, "CANCEL", request.uri)
        self._start(cancel, invite.addr, listener, now)

    def _start(self, request: Request, addr: Addr, listener: Listener, now: float) -> ClientTransaction:
        transaction = ClientTransaction(self, request, addr, listener)
        self._clients[transaction.key] = transaction
        transaction.start(now)
        return transaction

    def send_once(self, request: Request, addr: Addr) -> bytes:
        """Send an ACK to a 2xx, which has no transaction; gives its bytes to be sent again."""
        request.headers.prepend("Via", str(self.via(addr)))
        data = bytes(request)
        self.send(data, addr)
        return data

    # Peers' to us

    def receive_response(self, response: Response, now: float) -> None:
        """Raises SipError for one that answers nothing of ours."""
        if len(response.headers.items("Via")) != 1:
            raise SipError("a response has not exactly one Via")
        if not 100 <= response.code < 700:
            raise SipError("a response has a code beyond 699")
        transaction = self._clients.get((response.via.branch, response.cseq.method))
        if transaction is not None:
            transaction.receive(response, now)
        elif not self.on_stray(response, now):
            raise SipError("a response answers no request of ours")

    def receive_request(self, request: Request, addr: Addr, now: float) -> None:
        """Feed a transaction or start one. The request's form has been judged."""
        via = request.via
        if request.method == "ACK":
            transaction = self._servers.get(_key(request, via, "INVITE"))
            if transaction is None or not transaction.receive_ack(now):
                self.on_ack(request, addr, now)
            return
        key = _key(request, via, request.method)
        known = self._servers.get(key)
        if known is not None:
            known.receive_again()
            return
        if len(self._servers) >= MAX_TRANSACTIONS:
            raise SipError("too many requests are in progress", 503)
        self._serve(request, via, addr, key, now)

    def _serve(self, request: Request, via: Via, addr: Addr, key: tuple[str, ...], now: float) -> None:
        request.headers.note_first("Via", str(via.received_from(addr.host, addr.port)))
        transaction = ServerTransaction(self, request, addr, key, self.chance.token())
        transaction.reply_to = reply_address(via, addr)
        self._servers[key] = transaction
        to, cseq = request.to, request.cseq
        if not to.tag and request.method != "CANCEL":
            merged = (request.from_.tag, request.call_id, str(cseq))
            if merged in self._merged:
                self.respond(transaction, response_to(request, 482, transaction.tag, "Merged Request"), now)
                return
            transaction.merged = merged
            self._merged[merged] = transaction
        self.on_request(transaction, now)

    def respond(self, transaction: ServerTransaction, response: Response, now: float) -> bool:
        """Answer; False when the request has had its final answer."""
        return transaction.respond(response, now)

    def stateless_tag(self, transaction: ServerTransaction) -> str:
        """A To-tag that every copy of a request gets, though none is remembered."""
        text = "\0".join((*transaction.key, transaction.request.call_id))
        return hmac.new(self._secret, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:16]

    def knows(self, request: Request) -> bool:
        """Whether a request is a copy of one in progress."""
        return _key(request, request.via, request.method) in self._servers

    def cancelled(self, cancel: Request) -> ServerTransaction | None:
        """The INVITE that a CANCEL means (section 9.2); None when there is none."""
        return self._servers.get(_key(cancel, cancel.via, "INVITE"))

    def refuse(self, request: Request, error: SipError, addr: Addr) -> None:
        """Answer a request too malformed for a transaction, once and without state, if it says where it came from."""
        if request.method == "ACK" or "Via" not in request.headers:
            return
        via = request.via
        request.headers.note_first("Via", str(via.received_from(addr.host, addr.port)))
        response = response_to(request, error.code, self.chance.token(), error.reason)
        for name, value in error.headers:
            response.headers.add(name, value)
        self.send(bytes(response), reply_address(via, addr))

    def undeliverable(self, addr: Addr, now: float) -> None:
        """The shell could not send to an address: what waits for it fails (section 8.1.3.1).

        Answers whose connection is gone are tried once more, where the peer says it listens (section 18.2.2).
        """
        for server in [one for one in self._servers.values() if one.reply_to == addr]:
            via = server.request.via
            server.answer_at(Addr(addr.host, via.port or default_port(addr.transport), addr.transport))
        for client in [one for one in self._clients.values() if one.addr == addr]:
            client.fail(503, now)

    def live(self) -> list[ClientTransaction | ServerTransaction]:
        """For tests and diagnosis."""
        everyone: list[ClientTransaction | ServerTransaction] = [*self._clients.values(), *self._servers.values()]
        return [one for one in everyone if one.state is not State.TERMINATED]


def reply_address(via: Via, addr: Addr) -> Addr:
    """Where a response goes (section 18.2.2, RFC 3581): never anywhere but the host the request came from."""
    if addr.transport != "udp" or via.param("rport") is not None:
        return addr
    return Addr(addr.host, via.port or default_port("udp"), "udp")


def _key(request: Request, via: Via, method: str) -> tuple[str, ...]:
    """Section 17.2.3; `method` is INVITE for the ACK and CANCEL that belong to one."""
    branch = via.branch
    if branch.startswith(MAGIC_COOKIE) and len(branch) > len(MAGIC_COOKIE):
        return (branch, via.sent_by, method)
    sender = request.from_
    return (request.uri, sender.tag, request.call_id, str(request.cseq.number), bare_host(via.sent_by), branch, method)
