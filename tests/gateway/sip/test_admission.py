"""Who is heard at all, and what a request must not ask: the answers to faults, and those that get none."""

from __future__ import annotations

import pytest

from gateway.sip.events import (
    Ended,
    IncomingCall,
    MessageDropped,
    Terminated,
)
from gateway.sip.uri import Addr, parse_uri
from tests.gateway.sip.pair import ANSWER, SDP
from tests.gateway.sip.script import Script, ask, invite


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        (("Require: 100rel, timer",), ["420 Bad Extension"]),
        (("Require: timer",), ["100 Trying"]),
        (("Accept: text/plain",), ["406 Not Acceptable"]),
        (("Accept: application/*;q=0.5",), ["100 Trying"]),
        (("Content-Encoding: gzip",), ["415 Unsupported Media Type"]),
        (("Supported: timer", "Session-Expires: 30"), ["422 Session Interval Too Small"]),
        (("Session-Expires: 30",), ["100 Trying"]),
        (("Max-Forwards: 3",), ["400 Bad Request"]),
        (("Contact: *",), ["400 Bad Request"]),
        (("Contact: <sip:a@b",), ["400 Bad Request"]),
        (("Record-Route: nonsense",), ["400 Bad Request"]),
    ],
)
def test_what_an_invite_may_ask(fields: tuple[str, ...], lines: list[str]) -> None:
    assert Script().say(invite(*fields)) == lines


def test_a_scanner_hears_nothing() -> None:
    script = Script()
    assert script.say(ask("OPTIONS", "User-Agent: friendly-scanner")) == []
    assert script.say(ask("OPTIONS", "User-Agent: sipvicious 0.3", branch="z9hG4bK" + "x" * 9, cseq_method="BYE")) == []
    assert script.say(ask("NONSENSE", "User-Agent: pplsip")) == []
    assert script.core.dropped == {"the peer is a scanner": 3}


def test_what_proved_a_password_is_not_handed_on() -> None:
    script = Script()
    script.say(invite("Authorization: Digest realm=x", "X-Kept: yes"))
    headers = script.take(IncomingCall).headers
    assert "Authorization" not in headers
    assert "X-Kept" in headers


def test_a_stranger_that_we_called_is_heard() -> None:
    script = Script(trusted=lambda addr: False)
    script.core.invite(parse_uri("sip:bob@192.0.2.99:5070"), SDP, script.now)
    script.collect()
    script.answer(200, "Contact: <sip:bob@192.0.2.99:5070>", body=ANSWER)
    request = script.request(0)
    bye = ask("BYE", to_tag=request.from_.tag, from_tag="peer", call_id=request.call_id)
    assert script.say(bye) == ["200 OK"]
    assert script.take(Terminated).reason is Ended.BYE
    assert script.say(bye) == ["200 OK"]
    assert script.say(ask("BYE", to_tag="none", branch="z9hG4bKother")) == []


def test_when_too_many_requests_are_in_progress_new_ones_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.sip.layer.MAX_TRANSACTIONS", 3)
    script = Script()
    for number in range(3):
        assert script.say(ask("OPTIONS", cseq=number)) == ["200 OK"]
    assert script.say(ask("OPTIONS", cseq=3)) == ["503 Service Unavailable"]
    assert script.say(ask("OPTIONS", cseq=2)) == ["200 OK"]
    script.run(32.0)
    assert script.say(ask("OPTIONS", cseq=4)) == ["200 OK"]


def test_a_flood_of_faults_is_told_once_a_second() -> None:
    script = Script()
    for number in range(25):
        script.say(ask("OPTIONS", "Require: x", branch=f"z9hG4bK{number}", call_id=str(number)))
        script.now += 0.125
    told = [event.count for event in script.events if isinstance(event, MessageDropped)]
    assert told == [1, 8, 8, 8]
    assert script.core.dropped == {"a required extension is not supported": 25}


def test_a_stranger_hears_nothing_when_there_are_no_passwords() -> None:
    script = Script(trusted=lambda addr: addr.host == "192.0.2.50")
    assert script.say(invite()) == []
    assert script.say(b"OPTIONS sip:a SIP/7.0\r\nVia: SIP/7.0/UDP h\r\n\r\n") == []
    assert script.say(invite(), Addr("192.0.2.50", 5060)) == ["100 Trying"]


def test_a_fault_without_a_way_back_is_only_counted() -> None:
    script = Script()
    assert script.say(b"INVITE sip:a@b SIP/2.0\r\nFrom: x\r\n\r\n") == []
    assert script.say(b"INVITE sip:a@b SIP/2.0\r\nVia: nonsense\r\n\r\n") == []
    assert script.say(b"ACK sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h\r\n\r\n") == []
    assert script.say(b"\r\n\r\n") == []
    assert sum(script.core.dropped.values()) == 4
