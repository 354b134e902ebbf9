"""Calling, message by message: retransmission, passwords, redirections, forks, giving up, and session timers."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.sip.call import CallState, SipCall
from gateway.sip.digest import Proof, parse_auth
from gateway.sip.errors import SipError
from gateway.sip.events import (
    Credentials,
    Ended,
    Established,
    Probed,
    Progress,
    Terminated,
)
from gateway.sip.message import parse_message
from gateway.sip.registration import Trunk
from gateway.sip.uri import Addr, parse_uri
from tests.gateway.sip.pair import ANSWER, SDP
from tests.gateway.sip.script import PEER, Script, ask, invite

CONTACT = "Contact: <sip:bob@192.0.2.99:5070>"
CHALLENGE = 'WWW-Authenticate: Digest realm="trunk", nonce="n1", qop="auth", algorithm=MD5'


def calling(
    target: str = "sip:bob@192.0.2.99:5070", config: dict[str, Any] | None = None, **how: Any
) -> tuple[Script, SipCall]:
    script = Script(**(config or {}))
    call = script.core.invite(parse_uri(target), SDP, script.now, **how)
    assert script.collect()[-1].startswith("INVITE ")
    return script, call


def talking(*fields: str, config: dict[str, Any] | None = None, **how: Any) -> tuple[Script, SipCall]:
    script, call = calling(config=config, **how)
    script.answer(200, CONTACT, *fields, body=ANSWER)
    script.take(Established)
    return script, call


def test_an_invite_says_who_we_are() -> None:
    script, call = calling()
    request = script.request()
    assert request.uri == "sip:bob@192.0.2.99:5070"
    assert script.arrived[-1][2] == PEER
    assert request.headers.first("Contact") == "<sip:callplex@192.0.2.1:5060>"
    assert request.from_.tag
    assert not request.to.tag
    assert request.headers.first("Supported") == "timer"
    assert request.headers.first("Session-Expires") == "1800"
    assert request.via.param("rport") == ""
    assert request.body == SDP
    assert call.state is CallState.CALLING


def test_an_invite_is_repeated_at_doubling_intervals_and_then_given_up() -> None:
    script, _ = calling()
    times = [time for time, line in script.run(40.0) if line.startswith("INVITE")]
    assert times == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    ended = script.take(Terminated)
    assert (ended.reason, ended.code) == (Ended.NO_ANSWER, 408)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_over_tcp_nothing_is_repeated() -> None:
    script, _ = calling("sip:bob@192.0.2.99;transport=tcp")
    assert script.arrived[-1][2] == Addr("192.0.2.99", 5060, "tcp")
    assert script.run(40.0) == []
    assert script.take(Terminated).reason is Ended.NO_ANSWER


def test_a_provisional_response_ends_the_repetition() -> None:
    script, call = calling()
    script.answer(180)
    assert script.take(Progress) == Progress(call, 180, None)
    script.answer(183, body=ANSWER)
    assert script.take(Progress) == Progress(call, 183, ANSWER)
    assert script.run(100.0) == []


def test_an_answer_is_acknowledged_as_often_as_it_comes() -> None:
    script, call = calling()
    routes = "Record-Route: <sip:p2.example.com;lr>, <sip:p1.example.com;lr>"
    assert script.answer(200, CONTACT, routes, body=ANSWER) == ["ACK sip:bob@192.0.2.99:5070"]
    ack = script.request()
    assert ack.headers.all("Route") == ["<sip:p1.example.com;lr>", "<sip:p2.example.com;lr>"]
    assert script.arrived[-1][2].host == "p1.example.com"
    assert str(ack.cseq) == "1 ACK"
    assert ack.via.branch != script.request(0).via.branch
    again = script.answer(200, CONTACT, routes, body=ANSWER, to=script.request(0))
    assert again == ["ACK sip:bob@192.0.2.99:5070"]
    assert bytes(script.request()) == bytes(ack)
    assert script.take(Established).sdp == ANSWER
    assert call.remote.tag == "peer"
    assert not [event for event in script.events if isinstance(event, Established)]


def test_a_strict_router_gets_the_request_as_rfc_2543_had_it() -> None:
    script, call = talking("Record-Route: <sip:p2.example.com>, <sip:p1.example.com>")
    script.core.hangup(call, script.now)
    script.collect()
    bye = script.request()
    assert bye.uri == "sip:p1.example.com"
    assert bye.headers.all("Route") == ["<sip:p2.example.com>", "<sip:bob@192.0.2.99:5070>"]


@pytest.mark.parametrize("name", ["Session-Expires", "Allow", "Supported"])
def test_an_answer_with_an_unreadable_field_that_says_nothing_vital_is_taken(name: str) -> None:
    script, call = calling()
    assert script.answer(200, CONTACT, f"{name}: 1800{';x' * 201}{',x' * 201}", body=ANSWER) == [
        "ACK sip:bob@192.0.2.99:5070"
    ]
    assert script.take(Established).call is call
    assert any("UPDATE" in line or "INVITE" in line for _, line in script.run(900.0)), "the session is refreshed"


def test_a_refusal_is_acknowledged_on_the_same_way() -> None:
    script, _ = calling()
    assert script.answer(486) == ["ACK sip:bob@192.0.2.99:5070"]
    ack = script.request()
    assert ack.via.branch == script.request(0).via.branch
    assert ack.to.tag == "peer"
    ended = script.take(Terminated)
    assert (ended.reason, ended.code, ended.text) == (Ended.REJECTED, 486, "Because")
    assert script.answer(486, to=script.request(0)) == ["ACK sip:bob@192.0.2.99:5070"]
    script.run(100.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_a_cancel_waits_for_a_provisional_response() -> None:
    script, call = calling()
    script.core.hangup(call, script.now)
    assert script.collect() == []
    assert script.take(Terminated).reason is Ended.HANGUP
    assert script.answer(100) == ["CANCEL sip:bob@192.0.2.99:5070"]
    cancel, original = script.request(), script.request(0)
    assert cancel.via.branch == original.via.branch
    assert cancel.headers.first("From") == original.headers.first("From")
    assert cancel.body == b""
    assert "Contact" not in cancel.headers
    script.answer(200)
    assert script.answer(487, to=original) == ["ACK sip:bob@192.0.2.99:5070"]
    script.run(100.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_a_cancelled_call_that_is_answered_all_the_same_is_ended() -> None:
    script, call = calling()
    script.answer(180)
    script.core.hangup(call, script.now)
    assert script.collect() == ["CANCEL sip:bob@192.0.2.99:5070"]
    came = script.answer(200, CONTACT, body=ANSWER, to=script.request(0))
    assert came == ["ACK sip:bob@192.0.2.99:5070", "BYE sip:bob@192.0.2.99:5070"]
    assert not [event for event in script.events if isinstance(event, Established)]


def test_a_cancel_that_nobody_heeds_is_not_waited_for_for_ever() -> None:
    script, call = calling()
    script.answer(180)
    script.core.hangup(call, script.now)
    script.collect()
    script.run(33.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_a_phone_that_rings_for_ever_is_given_up() -> None:
    script, _ = calling(config={"ring_seconds": 60.0})
    script.answer(180)
    assert script.run(61.0)[0] == (60.0, "CANCEL sip:bob@192.0.2.99:5070")
    assert script.take(Terminated).reason is Ended.NO_ANSWER


def test_a_second_phone_that_answers_is_hung_up_on() -> None:
    script, call = calling()
    script.answer(200, CONTACT, body=ANSWER)
    other = script.answer(200, "Contact: <sip:other@192.0.2.98>", body=ANSWER, to=script.request(0), tag="other")
    assert other == ["ACK sip:other@192.0.2.98", "BYE sip:other@192.0.2.98"]
    assert script.request().to.tag == "other"
    assert call.state is CallState.ESTABLISHED


@pytest.mark.parametrize(("code", "asked", "proof"), [(401, "WWW", ""), (407, "Proxy", "Proxy-")])
def test_a_password_is_given_once_when_it_is_asked_for(code: int, asked: str, proof: str) -> None:
    script, _ = calling(credentials=Credentials("us", "secret"))
    challenge = CHALLENGE.replace("WWW", asked)
    assert script.answer(code, challenge) == ["ACK sip:bob@192.0.2.99:5070", "INVITE sip:bob@192.0.2.99:5070"]
    request = script.request()
    assert str(request.cseq) == "2 INVITE"
    assert request.call_id == script.request(0).call_id
    assert request.via.branch != script.request(0).via.branch
    fields = parse_auth(request.headers.first(f"{proof}Authorization"))
    assert (fields["username"], fields["nc"], fields["uri"]) == ("us", "00000001", request.uri)
    expected = Proof("MD5", "us", "trunk", "secret", "n1", "INVITE", request.uri, "auth", "00000001", fields["cnonce"])
    assert fields["response"] == expected.response()
    assert script.answer(code, challenge.replace("n1", "n2")) == ["ACK sip:bob@192.0.2.99:5070"]
    assert script.take(Terminated).code == code


def test_a_stale_nonce_is_replaced_and_a_good_one_used_on() -> None:
    script, call = calling(credentials=Credentials("us", "secret"))
    script.answer(401, CHALLENGE)
    script.answer(401, CHALLENGE.replace("n1", "n2") + ", stale=true")
    assert parse_auth(script.request().headers.first("Authorization"))["nonce"] == "n2"
    script.answer(200, CONTACT, body=ANSWER)
    script.core.hangup(call, script.now)
    assert script.collect() == ["BYE sip:bob@192.0.2.99:5070"]
    fields = parse_auth(script.request().headers.first("Authorization"))
    assert (fields["nonce"], int(fields["nc"], 16)) == ("n2", 2)
    assert script.answer(401, CHALLENGE.replace("n1", "n3")) == ["BYE sip:bob@192.0.2.99:5070"]
    assert parse_auth(script.request().headers.first("Authorization"))["nonce"] == "n3"
    script.answer(200)
    assert script.core.calls == 0


def test_nobody_without_a_password_answers_a_challenge() -> None:
    script, _ = calling()
    assert script.answer(401, CHALLENGE) == ["ACK sip:bob@192.0.2.99:5070"]
    assert script.take(Terminated).code == 401


def test_a_longer_session_interval_is_agreed_to() -> None:
    script, _ = calling(config={"session_expires": 300})
    assert script.answer(422, "Min-SE: 900")[-1] == "INVITE sip:bob@192.0.2.99:5070"
    assert script.request().headers.first("Session-Expires") == "900"
    assert script.answer(422, "Min-SE: 900") == ["ACK sip:bob@192.0.2.99:5070"]
    assert script.take(Terminated).code == 422


def test_a_redirection_is_followed_to_the_same_host_in_order() -> None:
    script, _ = calling()
    contacts = "Contact: <sip:low@192.0.2.99>;q=0.1, <sip:high@192.0.2.99>;q=0.9, <sip:premium@evil.example.com>"
    assert script.answer(302, contacts)[-1] == "INVITE sip:high@192.0.2.99"
    assert script.request().headers.first("To") == "<sip:bob@192.0.2.99:5070>"
    assert script.answer(404)[-1] == "INVITE sip:low@192.0.2.99"
    assert script.answer(404) == ["ACK sip:low@192.0.2.99"]
    assert script.take(Terminated).code == 404


def test_a_redirection_elsewhere_needs_our_leave() -> None:
    script, _ = calling()
    assert script.answer(302, "Contact: <sip:premium@evil.example.com>") == ["ACK sip:bob@192.0.2.99:5070"]
    assert script.take(Terminated).code == 302
    script, _ = calling(may_redirect=lambda uri: uri.host == "good.example.com")
    assert script.answer(302, "Contact: <sip:desk@good.example.com>")[-1] == "INVITE sip:desk@good.example.com"
    assert script.arrived[-1][2].host == "good.example.com"


def test_what_a_redirection_names_badly_is_passed_over() -> None:
    contacts = (
        "Contact: <mailto:a@b>, <sip:x@192.0.2.99>;q=high, <sip:s@192.0.2.99;transport=sctp>, <sip:ok@192.0.2.99>"
    )
    script, _ = calling()
    assert script.answer(302, contacts)[-1] == "INVITE sip:ok@192.0.2.99"
    for unreadable in ("<sip:[::1>", "<sip:" + "," * 201):
        script, _ = calling()
        assert script.answer(302, f"Contact: {unreadable}", "Contact: <sip:ok@192.0.2.99>")[-1] == (
            "INVITE sip:ok@192.0.2.99"
        )


def test_redirections_do_not_go_round() -> None:
    script, _ = calling(may_redirect=lambda uri: True)
    assert script.answer(302, "Contact: <sip:bob@192.0.2.99:5070>") == ["ACK sip:bob@192.0.2.99:5070"]
    assert script.take(Terminated).code == 302
    script, _ = calling(may_redirect=lambda uri: True)
    invites = 0
    while script.answer(302, f"Contact: <sip:{invites}@192.0.2.99>", tag=f"t{invites}")[-1].startswith("INVITE"):
        invites += 1
    assert invites == 5


def test_a_target_that_cannot_be_called_is_our_own_error() -> None:
    script = Script()
    for target in ("tel:+4412", "mailto:a@b", "sip:a@b;transport=sctp"):
        with pytest.raises(SipError):
            script.core.invite(parse_uri(target), SDP, 0.0)
    assert script.core.calls == 0
    only_udp = Script(addresses={"udp": ("192.0.2.1", 5060)})
    with pytest.raises(SipError, match="not spoken here"):
        only_udp.core.invite(parse_uri("sips:a@b"), SDP, 0.0)
    with pytest.raises(SipError, match="not spoken here"):
        only_udp.core.probe(parse_uri("sips:a@b"), 0.0)
    with pytest.raises(SipError, match="not spoken here"):
        only_udp.core.register(Trunk("t", parse_uri("sips:a"), "us"), 0.0)
    assert only_udp.collect() == []


def test_an_address_that_cannot_be_reached_fails_at_once() -> None:
    script, _ = calling("sip:bob@192.0.2.99;transport=tcp")
    script.core.undeliverable(Addr("192.0.2.99", 5060, "tcp"), script.now)
    script.collect()
    ended = script.take(Terminated)
    assert (ended.reason, ended.code) == (Ended.LOST, 503)
    assert script.core.timers == 0


def test_a_trunk_carries_a_call_to_any_number() -> None:
    script = Script()
    trunk = Trunk(
        "main", parse_uri("sip:trunk.example.com"), "us", Credentials("us", "secret"), Addr("192.0.2.99", 5070)
    )
    script.core.add_trunk(trunk)
    call = script.core.invite(parse_uri("sip:+4412@trunk.example.com"), SDP, 0.0, trunk="main")
    script.collect()
    request = script.request()
    assert script.arrived[-1][2] == PEER
    assert request.uri == "sip:+4412@trunk.example.com"
    assert str(request.from_.uri) == "sip:us@trunk.example.com"
    assert request.headers.first("Contact") == "<sip:us@192.0.2.1:5060>"
    assert script.answer(407, CHALLENGE.replace("WWW", "Proxy"))[-1] == "INVITE sip:+4412@trunk.example.com"
    assert call.state is CallState.CALLING


def test_a_bye_that_overtakes_the_answer_ends_the_call() -> None:
    script, call = calling()
    script.answer(180)
    request = script.request(0)
    tag = request.from_.tag
    bye = ask("BYE", to_tag=tag, from_tag="peer", call_id=request.call_id)
    assert script.say(bye) == ["200 OK"]
    assert call.ended
    assert script.take(Terminated).reason is Ended.BYE
    assert script.answer(200, CONTACT, body=ANSWER, to=request) == [
        "ACK sip:bob@192.0.2.99:5070",
        "BYE sip:bob@192.0.2.99:5070",
    ]
    script.answer(481)
    script.run(100.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_a_probe_tells_whether_a_peer_lives() -> None:
    script = Script()
    script.core.probe(parse_uri("sip:192.0.2.99:5070"), script.now)
    assert script.collect() == ["OPTIONS sip:192.0.2.99:5070"]
    script.answer(404)
    assert script.take(Probed) == Probed("sip:192.0.2.99:5070", 404)
    script.core.probe(parse_uri("sip:192.0.2.99:5070"), script.now)
    script.collect()
    times = [time for time, _ in script.run(40.0)]
    assert times == [0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]
    assert script.take(Probed).code == 408


def test_over_tls_our_contact_is_secure_for_a_secure_address() -> None:
    script, _ = calling("sips:bob@192.0.2.99")
    assert script.arrived[-1][2] == Addr("192.0.2.99", 5061, "tls")
    assert script.request().headers.first("Contact") == "<sips:callplex@192.0.2.1:5061>"
    assert script.request().via.transport == "TLS"


def test_what_answers_nothing_of_ours_is_dropped() -> None:
    script, _ = calling()
    stray = bytes(script.request()).replace(b"INVITE sip:bob@192.0.2.99:5070 SIP/2.0", b"SIP/2.0 200 OK", 1)
    assert script.say(stray.replace(script.request().via.branch.encode(), b"z9hG4bKnone")) == []
    assert script.core.dropped == {"a response answers no request of ours": 1}
    assert parse_message(stray).call_id == script.request().call_id
    assert script.say(invite(call_id="x")) == ["100 Trying"]
