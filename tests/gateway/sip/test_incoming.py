"""Being called, message by message: what RFC 3261 asks of a callee, and what peers do to it."""

from __future__ import annotations

import pytest

from gateway.sip.call import CallState
from gateway.sip.events import (
    Ended,
    Established,
    IncomingCall,
    Terminated,
)
from gateway.sip.uri import Addr, parse_uri
from tests.gateway.sip.pair import ANSWER, SDP
from tests.gateway.sip.script import PEER, Script, answered, ask, called, invite, talking


def test_what_the_application_is_told_of_a_call() -> None:
    script = Script()
    script.say(invite("X-Persona: bank", uri="sip:%2B4412@192.0.2.1;user=phone"))
    event = script.take(IncomingCall)
    assert event.uri.name == "+4412"
    assert (event.from_.display, event.from_.uri.user) == ("Ann", "ann")
    assert event.to.uri.user == "agent"
    assert event.headers.first("x-persona") == "bank"
    assert event.offer == SDP
    assert event.addr == PEER
    assert event.call.state is CallState.INCOMING


def test_an_answer_names_us_and_what_we_can() -> None:
    script, _, tag = answered("Record-Route: <sip:p1;lr>, <sip:p2;lr>", "Supported: timer", "Session-Expires: 600")
    response = script.response()
    assert tag
    assert response.headers.items("Record-Route") == ["<sip:p1;lr>", "<sip:p2;lr>"]
    assert response.headers.first("Contact") == "<sip:agent@192.0.2.1:5060>"
    assert "BYE" in response.headers.first("Allow")
    assert response.headers.first("Session-Expires") == "600;refresher=uac"
    assert response.headers.first("Require") == "timer"
    assert response.body == ANSWER
    assert response.via.param("received") == "192.0.2.99"
    assert response.via.param("rport") == "5070"


def test_a_duplicate_invite_is_one_call_with_one_tag() -> None:
    script, call = called()
    assert script.say(invite()) == ["100 Trying"]
    script.core.ringing(call, script.now)
    assert script.collect() == ["180 Ringing"]
    assert script.say(invite()) == ["180 Ringing"]
    script.core.answer(call, ANSWER, script.now)
    script.collect()
    assert script.say(invite()) == []
    assert script.response(-2).to.tag == script.response(-1).to.tag
    assert script.events == []


def test_a_request_that_came_by_two_ways_is_refused_once() -> None:
    script, _ = called()
    assert script.say(invite(branch="z9hG4bKother")) == ["482 Merged Request"]
    assert script.say(invite(branch="z9hG4bKother")) == ["482 Merged Request"]
    assert not [event for event in script.events if isinstance(event, IncomingCall)]


def test_two_callers_may_use_the_same_call_id() -> None:
    script, _ = called()
    assert script.say(invite(branch="z9hG4bKother", from_tag="someone-else")) == ["100 Trying"]
    script.take(IncomingCall)


def test_a_2xx_is_repeated_until_its_ack() -> None:
    script, call, tag = answered()
    assert script.run(8.0) == [(0.5, "200 OK"), (1.5, "200 OK"), (3.5, "200 OK"), (7.5, "200 OK")]
    script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack"))
    assert script.run(20.0) == []
    assert call.state is CallState.ESTABLISHED
    assert script.take(Established).sdp is None


def test_an_ack_that_never_comes_ends_the_call() -> None:
    script, _, _ = answered()
    came = script.run(31.9)
    assert [time for time, _ in came] == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert script.run(0.2) == [(32.0, "BYE sip:ann@192.0.2.99:5070")]
    assert script.take(Terminated).reason is Ended.NO_ACK
    script.answer(200)
    script.run(100.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_a_failure_is_repeated_until_its_ack() -> None:
    script, call = called()
    script.core.reject(call, 486, script.now, retry_after=7)
    assert script.collect() == ["486 Busy Here"]
    assert script.response().headers.first("Retry-After") == "7"
    assert [time for time, _ in script.run(4.0)] == [0.5, 1.5, 3.5]
    script.say(ask("ACK", to_tag=script.response().to.tag, branch="z9hG4bKINVITE1"))
    assert script.run(40.0) == []
    assert script.take(Terminated).code == 486
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_over_tcp_only_the_2xx_is_repeated() -> None:
    tcp = Addr("192.0.2.99", 40000, "tcp")
    script = Script(addr=tcp)
    via = "SIP/2.0/TCP 192.0.2.99"
    script.say(invite(via=via))
    script.core.reject(script.take(IncomingCall).call, 603, script.now)
    assert script.collect() == ["603 Decline"]
    assert script.arrived[-1][2] == tcp
    assert script.run(10.0) == []
    script.say(invite(via=via, call_id="c2", branch="z9hG4bK2"))
    script.core.answer(script.take(IncomingCall).call, ANSWER, script.now)
    assert script.response().headers.first("Contact") == ""
    script.collect()
    assert script.response().headers.first("Contact") == "<sip:agent@192.0.2.1:5060;transport=tcp>"
    assert len(script.run(4.0)) == 3


def test_a_cancelled_call_gets_487() -> None:
    script, _ = called()
    assert script.say(ask("CANCEL", branch="z9hG4bKINVITE1")) == ["200 OK", "487 Request Terminated"]
    assert script.response(-1).to.tag == script.response(-2).to.tag != ""
    assert script.take(Terminated).reason is Ended.CANCELED
    assert script.say(ask("CANCEL", branch="z9hG4bKINVITE1")) == ["200 OK"]
    script.run(100.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_a_cancel_after_the_answer_changes_nothing() -> None:
    script, call, tag = answered()
    assert script.say(ask("CANCEL", branch="z9hG4bKINVITE1")) == ["200 OK"]
    script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack"))
    assert call.state is CallState.ESTABLISHED
    script.core.answer(call, ANSWER, script.now)
    assert script.collect() == []


def test_a_cancel_of_nothing_gets_481() -> None:
    script = Script()
    assert script.say(ask("CANCEL", branch="z9hG4bKnone")) == ["481 Call/Transaction Does Not Exist"]


@pytest.mark.parametrize("method", ["BYE", "INVITE", "INFO", "UPDATE", "NOTIFY"])
def test_a_request_in_an_unknown_dialog_gets_481(method: str) -> None:
    script = Script()
    assert script.say(ask(method, to_tag="unknown")) == ["481 Call/Transaction Does Not Exist"]


@pytest.mark.parametrize("method", ["BYE", "INFO", "UPDATE", "NOTIFY"])
def test_a_request_of_no_dialog_gets_481(method: str) -> None:
    assert Script().say(ask(method)) == ["481 Call/Transaction Does Not Exist"]


def test_the_tag_of_the_caller_counts_too() -> None:
    script, call, tag = talking()
    assert script.say(ask("BYE", to_tag=tag, cseq=2, from_tag="stranger")) == ["481 Call/Transaction Does Not Exist"]
    assert not call.ended


def test_a_bye_sent_again_is_answered_again() -> None:
    script, call, tag = talking()
    bye = ask("BYE", 'Reason: Q.850;cause=16;text="Normal call clearing"', to_tag=tag, cseq=2)
    assert script.say(bye) == ["200 OK"]
    assert script.say(bye) == ["200 OK"]
    ended = script.take(Terminated)
    assert (ended.reason, ended.text) == (Ended.BYE, "Normal call clearing")
    assert script.say(ask("BYE", to_tag=tag, cseq=3)) == ["481 Call/Transaction Does Not Exist"]
    assert call.ended
    assert not [event for event in script.events if isinstance(event, Terminated)]


def test_a_bye_before_the_ack_ends_the_call() -> None:
    script, _, tag = answered()
    assert script.say(ask("BYE", to_tag=tag, cseq=2)) == ["200 OK"]
    assert script.take(Terminated).reason is Ended.BYE
    assert script.run(100.0) == []


def test_we_hang_up_only_after_the_ack() -> None:
    script, call, tag = answered()
    script.core.hangup(call, script.now)
    assert script.collect() == []
    assert script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack")) == ["BYE sip:ann@192.0.2.99:5070"]
    assert script.take(Terminated).reason is Ended.HANGUP


def test_our_bye_takes_the_recorded_route() -> None:
    script, call, tag = answered("Record-Route: <sip:p1.example.com;lr>", "Record-Route: <sip:p2.example.com;lr>")
    script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack"))
    script.core.hangup(call, script.now)
    script.collect()
    bye = script.request()
    assert bye.uri == "sip:ann@192.0.2.99:5070"
    assert bye.headers.all("Route") == ["<sip:p1.example.com;lr>", "<sip:p2.example.com;lr>"]
    assert script.arrived[-1][2] == Addr("p1.example.com", 5060)
    assert str(bye.cseq) == "1 BYE"
    assert bye.from_.tag == tag
    assert bye.to.tag == "caller"


def test_hanging_up_before_answering_refuses() -> None:
    script, call = called()
    script.core.hangup(call, script.now)
    assert script.collect() == ["480 Temporarily Unavailable"]
    script.core.hangup(call, script.now)
    assert script.collect() == []


def test_a_call_can_be_sent_elsewhere() -> None:
    script, call = called()
    script.core.redirect(call, [parse_uri("sip:desk@example.com")], script.now)
    assert script.collect() == ["302 Moved Temporarily"]
    assert script.response().headers.first("Contact") == "<sip:desk@example.com>"


def test_an_invite_without_offer_is_answered_with_one() -> None:
    script = Script()
    script.say(invite(body=b""))
    event = script.take(IncomingCall)
    assert event.offer is None
    script.core.answer(event.call, SDP, script.now)
    script.collect()
    script.say(ask("ACK", to_tag=script.response().to.tag, branch="z9hG4bKack", body=ANSWER))
    assert script.take(Established).sdp == ANSWER


def test_an_offer_inside_a_multipart_is_found() -> None:
    inner = b"--b\r\nContent-Type: application/sdp\r\n\r\n" + SDP + b"\r\n--b--\r\n"
    outer = b'--a\r\nContent-Type: multipart/alternative;boundary="b"\r\n\r\n' + inner + b"\r\n--a--\r\n"
    script = Script()
    script.say(invite(body=outer, kind="multipart/mixed; boundary=a"))
    assert script.take(IncomingCall).offer == SDP


def test_a_body_nested_deeper_is_not_looked_for() -> None:
    body, kind = SDP, "application/sdp"
    for boundary in "abcd":
        part = f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode()
        body, kind = part + body + f"\r\n--{boundary}--\r\n".encode(), f"multipart/mixed;boundary={boundary}"
    assert Script().say(invite(body=body, kind=kind)) == ["415 Unsupported Media Type"]


def test_options_tell_what_we_can() -> None:
    script = Script()
    assert script.say(ask("OPTIONS")) == ["200 OK"]
    response = script.response()
    assert response.headers.first("Accept") == "application/sdp"
    assert response.headers.first("Allow").startswith("INVITE, ACK")
    assert script.core.calls == 0


def test_a_phone_behind_nat_is_reached_where_it_comes_from() -> None:
    public = Addr("8.8.4.4", 31337)
    script = Script(addr=public)
    script.say(invite("Contact: <sip:ann@10.0.0.7:5060>", via="SIP/2.0/UDP 10.0.0.7:5060;rport"))
    script.core.answer(script.take(IncomingCall).call, ANSWER, script.now)
    script.collect()
    assert script.arrived[-1][2] == public
    script.say(ask("ACK", to_tag=script.response().to.tag, branch="z9hG4bKack"))
    script.core.hangup(script.take(Established).call, script.now)
    script.collect()
    assert script.request().uri == "sip:ann@10.0.0.7:5060"
    assert script.arrived[-1][2] == public


def test_an_answer_goes_to_the_port_of_the_via_when_rport_is_not_asked_for() -> None:
    script = Script(addr=Addr("192.0.2.99", 40000))
    script.say(ask("OPTIONS", via="SIP/2.0/UDP 203.0.113.5:5090"))
    assert script.arrived[-1][2] == Addr("192.0.2.99", 5090)
    assert script.response().via.param("received") == "192.0.2.99"


def test_a_connection_is_used_again() -> None:
    tcp = Addr("192.0.2.99", 40000, "tcp")
    script = Script(addr=tcp)
    script.say(invite("Contact: <sip:ann@192.0.2.99:5070;transport=tcp>", via="SIP/2.0/TCP 192.0.2.99:5070"))
    script.core.answer(script.take(IncomingCall).call, ANSWER, script.now)
    script.collect()
    script.say(ask("ACK", to_tag=script.response().to.tag, branch="z9hG4bKack", via="SIP/2.0/TCP 192.0.2.99:5070"))
    script.core.hangup(script.take(Established).call, script.now)
    script.collect()
    assert script.arrived[-1][2] == tcp
    assert script.request().via.transport == "TCP"


def test_a_peer_without_transport_in_its_contact_means_that_of_its_connection() -> None:
    for contact, hop in (
        ("<sip:ann@192.0.2.99:5070>", Addr("192.0.2.99", 40000, "tcp")),
        ("<sip:ann@pbx.example.com>", Addr("pbx.example.com", 5060, "tcp")),
        ("<sip:ann@pbx.example.com;transport=udp>", Addr("pbx.example.com", 5060, "udp")),
        ("<sip:ann@pbx.example.com;transport=sctp>", Addr("192.0.2.99", 40000, "tcp")),
        ("<tel:+4412>", Addr("192.0.2.99", 40000, "tcp")),
    ):
        script, call, tag = answered(f"Contact: {contact}", addr=Addr("192.0.2.99", 40000, "tcp"))
        script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack"))
        script.core.hangup(call, script.now)
        script.collect()
        assert script.arrived[-1][2] == hop, contact


def test_a_contact_of_a_transport_that_we_do_not_have_is_not_followed() -> None:
    script, call, _ = talking("Contact: <sip:ann@192.0.2.99;transport=tls>", addresses={"udp": ("192.0.2.1", 5060)})
    script.core.hangup(call, script.now)
    assert script.collect() == ["BYE sip:ann@192.0.2.99;transport=tls"]
    assert script.arrived[-1][2] == PEER


def test_a_password_is_asked_for_once_and_nothing_is_kept() -> None:
    """RFC 3261, section 26.3.2.4: a forged INVITE must not make us repeat ourselves at its victim."""
    script = Script(users={"ann": "secret"}, trusted=lambda addr: False)
    assert script.say(invite()) == ["401 Unauthorized"]
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)
    first = script.response()
    assert script.say(invite()) == ["401 Unauthorized"]
    assert script.response().to.tag == first.to.tag != ""
    assert script.say(invite(call_id="c2")) == ["401 Unauthorized"]
    assert script.response().to.tag != first.to.tag
    assert script.say(ask("ACK", to_tag=first.to.tag, branch="z9hG4bKINVITE1")) == []
    assert script.run(64.0) == []


def test_an_answer_whose_connection_is_gone_goes_where_the_peer_listens() -> None:
    """Section 18.2.2: the address the request came from, the port of its Via."""
    stream = Addr("192.0.2.99", 40_123, "tcp")
    script = Script(addr=stream)
    script.say(invite(via="SIP/2.0/TCP 192.0.2.99:5070"))
    script.core.answer(script.take(IncomingCall).call, ANSWER, script.now)
    script.collect()
    assert script.arrived[-1][2] == stream
    script.core.undeliverable(stream, script.now)
    assert script.collect() == ["200 OK"]
    assert script.arrived[-1][2] == Addr("192.0.2.99", 5070, "tcp")
    script.core.undeliverable(Addr("192.0.2.99", 5070, "tcp"), script.now)
    assert script.collect() == []


@pytest.mark.parametrize("field", ["Contact: <sip:[::1>", "Record-Route: <sip:[::1>"])
def test_where_a_contact_says_nothing_it_is_not_read(field: str) -> None:
    """An ACK and a BYE neither make a dialog nor refresh one (RFC 3261, section 20.10)."""
    script, call, tag = answered()
    assert script.say(ask("ACK", field, to_tag=tag, branch="z9hG4bKack")) == []
    assert script.take(Established).call is call
    assert script.say(ask("UPDATE", field, to_tag=tag, cseq=2, body=SDP)) == ["400 Bad Request"]
    assert script.say(ask("BYE", field, to_tag=tag, cseq=3)) == ["200 OK"]
    assert script.take(Terminated).reason is Ended.BYE
