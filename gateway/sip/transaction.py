"""The four transactions of RFC 3261, section 17, with the Accepted states of RFC 6026.

Owns retransmission and the life of one request and its responses. Time comes in as `now`, bytes go out through
`Wire.send`; what a response means is the affair of whoever started the transaction. Retransmission timers run on
UDP only, and the waits for stray copies are zero on TCP and TLS (table 4).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from gateway.sip.message import Headers, Request, Response, response_to
from gateway.sip.timers import Timer, TimerQueue, Timing
from gateway.sip.uri import Addr

Listener = Callable[[Response, float], None]
"""Hears every response worth hearing, once; a timeout as a local 408, a broken transport as a local 503."""


class State(Enum):
    CALLING = auto()
    """A request is sent, nothing came back (Trying, for other methods than INVITE)."""
    PROCEEDING = auto()
    COMPLETED = auto()
    """A final response other than a 2xx to INVITE."""
    CONFIRMED = auto()
    ACCEPTED = auto()
    """A 2xx to INVITE (RFC 6026, section 7)."""
    TERMINATED = auto()


class Wire(Protocol):
    """What a transaction needs from the layer that holds it."""

    timers: TimerQueue
    timing: Timing

    def send(self, data: bytes, addr: Addr) -> None:
        """Put bytes on the line."""

    def forget(self, transaction: ClientTransaction | ServerTransaction) -> None:
        """The transaction is over."""


class Transaction:
    """One request's timers and state."""

    def __init__(self, wire: Wire, request: Request, addr: Addr) -> None:
        self.request = request
        self.addr = addr
        self.state = State.CALLING
        self._wire = wire
        self._timing = wire.timing
        self._unreliable = addr.transport == "udp"
        self._again: Timer | None = None
        """Retransmits: timers A, E, G."""
        self._limit: Timer | None = None
        """Ends a state: timers B, D, F, H, I, J, K, L, M."""

    @property
    def is_invite(self) -> bool:
        return self.request.method == "INVITE"

    def _stop(self, again: bool = True, limit: bool = True) -> None:
        if again and self._again is not None:
            self._again.cancel()
        if limit and self._limit is not None:
            self._limit.cancel()

    def _expire(self, seconds: float, now: float) -> None:
        """Linger for stray copies, then end: at once when `seconds` is 0."""
        self._stop()
        if seconds > 0:
            self._limit = self._wire.timers.at(now + seconds, self.end)
        else:
            self.end(now)

    def end(self, now: float) -> None:
        """Over, whatever the state was."""
        raise NotImplementedError


class ClientTransaction(Transaction):
    """Ours to a peer (sections 17.1.1 and 17.1.2)."""

    def __init__(self, wire: Wire, request: Request, addr: Addr, listener: Listener) -> None:
        super().__init__(wire, request, addr)
        self._listener = listener
        self._data = bytes(request)
        self._ack = b""
        self.key = (request.via.branch, request.method)

    def start(self, now: float) -> None:
        """Send the request."""
        self._wire.send(self._data, self.addr)
        if self._unreliable:
            self._retransmit_after(self._timing.t1, now)
        self._limit = self._wire.timers.at(now + self._timing.lifetime, self._time_out)

    def _retransmit_after(self, wait: float, now: float) -> None:
        self._again = self._wire.timers.at(now + wait, lambda then: self._retransmit(wait, then))

    def _retransmit(self, wait: float, now: float) -> None:
        self._wire.send(self._data, self.addr)
        self._retransmit_after(self._next_wait(wait), now)

    def _next_wait(self, wait: float) -> float:
        """Timers A and E: doubled, for other methods than INVITE up to T2, and T2 once it is proceeding."""
        if self.is_invite:
            return 2 * wait
        return self._timing.t2 if self.state is State.PROCEEDING else min(2 * wait, self._timing.t2)

    def receive(self, response: Response, now: float) -> None:
        """One response whose branch and method are ours."""
        if self.state in (State.CALLING, State.PROCEEDING):
            self._receive_first(response, now)
        elif self.state is State.COMPLETED and self._ack and response.code >= 300:
            self._wire.send(self._ack, self.addr)
        elif self.state is State.ACCEPTED and 200 <= response.code < 300:
            self._listener(response, now)

    def _receive_first(self, response: Response, now: float) -> None:
        if response.code < 200:
            self.state = State.PROCEEDING
            if self.is_invite:
                self._stop()
        elif not self.is_invite:
            self.state = State.COMPLETED
            self._expire(self._timing.t4 if self._unreliable else 0, now)
        elif response.code < 300:
            self.state = State.ACCEPTED
            self._expire(self._timing.lifetime, now)
        else:
            self.state = State.COMPLETED
            self._ack = bytes(acknowledge_failure(self.request, response))
            self._wire.send(self._ack, self.addr)
            self._expire(self._timing.lifetime if self._unreliable else 0, now)
        self._listener(response, now)

    def _time_out(self, now: float) -> None:
        self.fail(408, now)

    def fail(self, code: int, now: float) -> None:
        """No answer will come: the listener hears a local response instead, unless it heard a final one."""
        waiting = self.state in (State.CALLING, State.PROCEEDING)
        self.end(now)
        if waiting:
            response = response_to(self.request, code)
            response.local = True
            self._listener(response, now)

    def end(self, now: float) -> None:
        self._stop()
        if self.state is not State.TERMINATED:
            self.state = State.TERMINATED
            self._wire.forget(self)


def acknowledge_failure(invite: Request, response: Response) -> Request:
    """The ACK to a final response other than 2xx: same Via, same way (section 17.1.1.3)."""
    headers = Headers([("Via", invite.headers.first("Via"))])
    for value in invite.headers.all("Route"):
        headers.add("Route", value)
    headers.add("Max-Forwards", "70")
    headers.add("From", invite.headers.first("From"))
    headers.add("To", response.headers.first("To"))
    headers.add("Call-ID", invite.call_id)
    headers.add("CSeq", f"{invite.cseq.number} ACK")
    return Request(headers, b"", invite.encoding, "ACK", invite.uri)


class ServerTransaction(Transaction):
    """A peer's to us (sections 17.2.1 and 17.2.2)."""

    def __init__(self, wire: Wire, request: Request, addr: Addr, key: tuple[str, ...], tag: str) -> None:
        super().__init__(wire, request, addr)
        self.key = key
        self.tag = tag
        """To-tag of every response but 100, the same for all copies of the request."""
        self.reply_to = addr
        self.final: Response | None = None
        self.merged: tuple[str, str, str] | None = None
        """Under what the request is known, to find those that came by two ways (section 8.2.2.2)."""
        self._last = b""

    @property
    def answered(self) -> bool:
        """Whether a final response was sent."""
        return self.final is not None

    def receive_again(self) -> None:
        """A copy of the request: say again what was said last (not a 2xx: its sender repeats that itself)."""
        if self._last and self.state in (State.PROCEEDING, State.COMPLETED):
            self._wire.send(self._last, self.reply_to)

    def answer_at(self, addr: Addr) -> None:
        """The way that the request came is gone: what was said last goes to another address of the peer's."""
        if addr != self.reply_to and self._last:
            self.reply_to = addr
            self._wire.send(self._last, addr)

    def receive_ack(self, now: float) -> bool:
        """An ACK to this INVITE; False when it is one to a 2xx, which is the dialog's affair."""
        if self.state is State.COMPLETED:
            self.state = State.CONFIRMED
            self._expire(self._timing.t4 if self._unreliable else 0, now)
        return self.state is not State.ACCEPTED

    def respond(self, response: Response, now: float) -> bool:
        """Send a response; False, and nothing sent, when a final one was sent before."""
        if self.final is not None or self.state is State.TERMINATED:
            return False
        self._last = bytes(response)
        self._wire.send(self._last, self.reply_to)
        if response.code < 200:
            self.state = State.PROCEEDING
            return True
        self.final = response
        if not self.is_invite:
            self.state = State.COMPLETED
            self._expire(self._timing.lifetime if self._unreliable else 0, now)
        elif response.code < 300:
            self.state = State.ACCEPTED
            self._expire(self._timing.lifetime, now)
        else:
            self.state = State.COMPLETED
            self._expire(self._timing.lifetime, now)
            if self._unreliable:
                self._repeat_after(self._timing.t1, now)
        return True

    def _repeat_after(self, wait: float, now: float) -> None:
        self._again = self._wire.timers.at(now + wait, lambda then: self._repeat(wait, then))

    def _repeat(self, wait: float, now: float) -> None:
        self._wire.send(self._last, self.reply_to)
        self._repeat_after(min(2 * wait, self._timing.t2), now)

    def end(self, now: float) -> None:
        self._stop()
        if self.state is not State.TERMINATED:
            self.state = State.TERMINATED
            self._wire.forget(self)
