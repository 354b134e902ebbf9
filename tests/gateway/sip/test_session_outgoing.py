"""A call of ours that is up: changing it, keeping it alive, and noticing that it has died."""

from __future__ import annotations

import pytest

from gateway.sip.call import CallState
from gateway.sip.events import (
    Credentials,
    Ended,
    Held,
    Reanswer,
    ReofferRefused,
    Terminated,
)
from tests.gateway.sip.pair import ANSWER, HOLD, SDP, Pair
from tests.gateway.sip.test_outgoing import CHALLENGE, CONTACT, calling, talking


def test_our_change_of_the_session() -> None:
    script, call = talking()
    assert script.core.reinvite(call, HOLD, script.now)
    assert script.collect() == ["INVITE sip:bob@192.0.2.99:5070"]
    assert script.request().to.tag == "peer"
    assert not script.core.reinvite(call, SDP, script.now)
    held = ANSWER + b"a=inactive\r\n"
    assert script.answer(200, "Contact: <sip:moved@192.0.2.99>", body=held) == ["ACK sip:moved@192.0.2.99"]
    assert script.take(Reanswer).sdp == held
    assert script.take(Held).call is call
    assert call.local_sdp == HOLD
    assert script.core.reinvite(call, SDP, script.now)
    script.collect()
    script.answer(488)
    assert script.take(ReofferRefused).code == 488
    assert call.local_sdp == HOLD
    assert call.state is CallState.ESTABLISHED


def test_a_change_that_met_another_is_tried_again() -> None:
    script, call = talking()
    script.core.reinvite(call, HOLD, script.now)
    script.collect()
    assert script.answer(491) == ["ACK sip:bob@192.0.2.99:5070"]
    came = script.run(4.0)
    assert 2.1 <= came[0][0] <= 4.0
    assert came[0][1] == "INVITE sip:bob@192.0.2.99:5070"
    assert script.request().body == HOLD


@pytest.mark.parametrize(("code", "lines"), [(481, []), (408, ["BYE sip:bob@192.0.2.99:5070"])])
def test_a_peer_that_forgot_the_call_has_ended_it(code: int, lines: list[str]) -> None:
    script, call = talking()
    script.core.reinvite(call, HOLD, script.now)
    script.collect()
    assert script.answer(code)[1:] == lines
    assert script.take(Terminated).reason is Ended.LOST


def test_a_peer_that_is_silent_is_lost() -> None:
    script, call = talking()
    script.core.reinvite(call, HOLD, script.now)
    script.collect()
    script.answer(100)
    came = script.run(60.0)
    assert came[0] == (37.0, "BYE sip:bob@192.0.2.99:5070")
    assert script.take(Terminated).reason is Ended.LOST
    script.run(60.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_we_refresh_the_session_by_update_when_the_peer_knows_it() -> None:
    script, call = talking("Session-Expires: 200;refresher=uac", "Require: timer", "Allow: INVITE, UPDATE")
    assert script.run(101.0)[0] == (100.0, "UPDATE sip:bob@192.0.2.99:5070")
    assert script.request().headers.first("Session-Expires") == "200"
    assert script.request().body == b""
    script.answer(200, CONTACT, "Session-Expires: 200;refresher=uac")
    assert script.run(100.5)[0][1].startswith("UPDATE")
    script.answer(200, CONTACT, "Session-Expires: 200;refresher=uas")
    assert call.state is CallState.ESTABLISHED
    assert script.run(200.0)[0] == (201.5 + 200 - 32, "BYE sip:bob@192.0.2.99:5070")


def test_we_refresh_by_reinvite_when_it_does_not() -> None:
    script, call = talking("Session-Expires: 200;refresher=uac", "Allow: INVITE")
    assert script.run(100.0) == [(100.0, "INVITE sip:bob@192.0.2.99:5070")]
    assert script.request().body == SDP
    script.answer(200, CONTACT, "Session-Expires: 200;refresher=uac", body=ANSWER)
    assert script.events == []
    assert not call.ended


def test_a_refresh_that_is_refused_is_tried_again_before_the_peer_gives_us_up() -> None:
    script, call = talking("Session-Expires: 200;refresher=uac", "Allow: INVITE, UPDATE")
    script.run(100.0)
    script.answer(500)
    assert script.run(10.0) == [(110.0, "UPDATE sip:bob@192.0.2.99:5070")]
    script.answer(200, CONTACT, "Session-Expires: 200;refresher=uac")
    assert script.run(100.0)[0][0] == 210.0
    assert not call.ended


@pytest.mark.parametrize("allow", ["INVITE, UPDATE", "INVITE"])
def test_a_refresh_asks_for_the_interval_that_the_peer_wants(allow: str) -> None:
    """RFC 4028, section 7.4: a 422 names it."""
    script, call = talking("Session-Expires: 200;refresher=uac", f"Allow: {allow}")
    script.run(100.0)
    before = script.request()
    again = script.answer(422, "Min-SE: 600")
    assert again[-1] == before.start_line.removesuffix(" SIP/2.0")
    assert script.request().headers.first("Session-Expires") == "600"
    script.answer(200, CONTACT, "Session-Expires: 600;refresher=uac", body=ANSWER if allow == "INVITE" else b"")
    assert script.run(300.0)[-1][0] == 400.0
    assert not call.ended


def test_an_ack_carries_the_password_of_its_invite() -> None:
    """RFC 3261, section 22.1: the same credentials, since an ACK cannot be challenged."""
    script, call = calling(credentials=Credentials("us", "secret"))
    script.answer(401, CHALLENGE)
    invited = script.request()
    script.answer(200, CONTACT, body=ANSWER)
    proof = invited.headers.all("Authorization")
    assert (script.request().method, script.request().headers.all("Authorization")) == ("ACK", proof)
    script.core.reinvite(call, HOLD, script.now)
    script.collect()
    changed = script.request().headers.all("Authorization")
    assert changed != proof
    script.answer(200, CONTACT, body=ANSWER)
    assert (script.request().method, script.request().headers.all("Authorization")) == ("ACK", changed)


def test_a_peer_that_should_refresh_and_does_not_is_gone() -> None:
    script, _ = talking("Session-Expires: 90;refresher=uas")
    assert script.run(61.0)[0] == (60.0, "BYE sip:bob@192.0.2.99:5070")
    assert script.take(Terminated).reason is Ended.EXPIRED


def test_two_of_us_keep_a_call_alive_for_hours() -> None:
    pair = Pair(left_config={"session_expires": 90}, right_config={"session_expires": 90})
    ours, theirs = pair.established()
    sent = len(pair.sent)
    pair.run(2 * 3600)
    assert ours.state is theirs.state is CallState.ESTABLISHED
    refreshes = [line for line in pair.starts(sent) if line.startswith("UPDATE")]
    assert len(refreshes) == pytest.approx(2 * 3600 / 45, abs=2)
    pair.drop = lambda data: True
    pair.run(120)
    assert pair.take(pair.left, Terminated).reason is Ended.LOST
    assert pair.take(pair.right, Terminated).reason is Ended.EXPIRED
