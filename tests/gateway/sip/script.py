"""A peer played by the test itself: what it sends is written out, what comes back is parsed."""

from __future__ import annotations

from typing import Any

from gateway.sip.agent import UserAgentCore
from gateway.sip.call import SipCall
from gateway.sip.events import Established, Event, IncomingCall
from gateway.sip.message import Message, Request, Response, parse_message
from gateway.sip.uri import Addr
from tests.gateway.sip.pair import ANSWER, SDP, E, agent

PEER = Addr("192.0.2.99", 5070)


class Script:
    """One agent at 192.0.2.1, and time."""

    def __init__(self, core: UserAgentCore | None = None, addr: Addr = PEER, **config: Any) -> None:
        self.core = core or agent(**config)
        self.addr = addr
        self.now = 0.0
        self.arrived: list[tuple[float, Message, Addr]] = []
        self.events: list[Event] = []

    def say(self, text: bytes, addr: Addr | None = None) -> list[str]:
        """Send a message; gives the first lines of what comes back at once."""
        self.core.receive(text, addr or self.addr, self.now)
        return self.collect()

    def collect(self) -> list[str]:
        while (event := self.core.next_event()) is not None:
            self.events.append(event)
        new = [(self.now, parse_message(data), addr) for data, addr in self.core.datagrams_to_send(self.now)]
        self.arrived += new
        return [message.start_line.removeprefix("SIP/2.0 ").removesuffix(" SIP/2.0") for _, message, _ in new]

    def run(self, seconds: float) -> list[tuple[float, str]]:
        """Let time pass; gives when what came."""
        until = self.now + seconds
        came: list[tuple[float, str]] = []
        while (due := self.core.get_timer()) is not None and due <= until:
            self.now = max(due, self.now)
            self.core.handle_timer(self.now)
            came += [(round(self.now, 3), line) for line in self.collect()]
        self.now = until
        return came

    def request(self, nth: int = -1) -> Request:
        """The nth request that the agent sent."""
        return [message for _, message, _ in self.arrived if isinstance(message, Request)][nth]

    def response(self, nth: int = -1) -> Response:
        return [message for _, message, _ in self.arrived if isinstance(message, Response)][nth]

    def take(self, kind: type[E]) -> E:
        for event in self.events:
            if isinstance(event, kind):
                self.events.remove(event)
                return event
        raise AssertionError(f"no {kind.__name__} among {self.events}")

    def answer(
        self, code: int, *fields: str, body: bytes = b"", to: Request | None = None, tag: str = "peer"
    ) -> list[str]:
        """Answer the agent's last request."""
        request = to or self.request()
        party = str(request.to) if request.to.tag else f"{request.to};tag={tag}"
        head = [f"SIP/2.0 {code} Because", *(f"Via: {via}" for via in request.headers.all("Via"))]
        head += [f"From: {request.headers.first('From')}", f"To: {party if code > 100 else request.to}"]
        head += [f"Call-ID: {request.call_id}", f"CSeq: {request.cseq}", *fields]
        if body:
            head.append("Content-Type: application/sdp")
        head.append(f"Content-Length: {len(body)}")
        return self.say("\r\n".join([*head, "", ""]).encode() + body)


def ask(
    method: str,
    *fields: str,
    cseq: int = 1,
    branch: str = "",
    to_tag: str = "",
    from_tag: str = "caller",
    call_id: str = "c1",
    uri: str = "sip:agent@192.0.2.1",
    body: bytes = b"",
    kind: str = "application/sdp",
    via: str = "SIP/2.0/UDP 192.0.2.99:5070;rport",
    cseq_method: str = "",
) -> bytes:
    """A request of the peer's."""
    branch = branch or f"z9hG4bK{method}{cseq}"
    tagged = f";tag={to_tag}" if to_tag else ""
    head = [f"{method} {uri} SIP/2.0", f"Via: {via};branch={branch}", "Max-Forwards: 70"]
    head += [f'From: "Ann" <sip:ann@192.0.2.99>;tag={from_tag}', f"To: <sip:agent@192.0.2.1>{tagged}"]
    head += [f"Call-ID: {call_id}", f"CSeq: {cseq} {cseq_method or method}"]
    if not any(field.startswith(("Contact", "m:")) for field in fields):
        head.append("Contact: <sip:ann@192.0.2.99:5070>")
    head += fields
    if body:
        head.append(f"Content-Type: {kind}")
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def invite(*fields: str, **changes: str | int | bytes) -> bytes:
    """An INVITE with an offer, if not told otherwise."""
    changes.setdefault("body", SDP)
    return ask("INVITE", *fields, **changes)  # type: ignore[arg-type]


def called(*fields: str, **config: Any) -> tuple[Script, SipCall]:
    script = Script(**config)
    assert script.say(invite(*fields)) == ["100 Trying"]
    return script, script.take(IncomingCall).call


def answered(*fields: str, **config: Any) -> tuple[Script, SipCall, str]:
    """A call that waits for its ACK, and our tag."""
    script, call = called(*fields, **config)
    script.core.answer(call, ANSWER, script.now)
    assert script.collect() == ["200 OK"]
    return script, call, script.response().to.tag


def talking(*fields: str, **config: Any) -> tuple[Script, SipCall, str]:
    script, call, tag = answered(*fields, **config)
    assert script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack")) == []
    script.take(Established)
    return script, call, tag
