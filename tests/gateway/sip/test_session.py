"""A call that is up, message by message: changes and their collisions, hold, keys, session timers."""

from __future__ import annotations

import pytest

from gateway.sip.call import CallState
from gateway.sip.events import (
    Ended,
    Established,
    Held,
    IncomingCall,
    InfoDigits,
    Reanswer,
    Reoffer,
    Resumed,
    Terminated,
)
from gateway.sip.uri import Addr
from tests.gateway.sip.pair import ANSWER, HOLD, SDP
from tests.gateway.sip.script import Script, ask, invite, talking


def test_a_refer_is_refused() -> None:
    script, call, tag = talking()
    refer = ask("REFER", "Refer-To: <sip:premium@example.com>", to_tag=tag, cseq=2)
    assert script.say(refer) == ["405 Method Not Allowed"]
    assert not call.ended


@pytest.mark.parametrize(
    ("kind", "body", "digits", "milliseconds"),
    [
        ("application/dtmf-relay", b"Signal=5\r\nDuration=160\r\n", "5", 160),
        ("application/dtmf-relay", b"Signal= *\nDuration= 250\n", "*", 250),
        ("application/dtmf-relay", b"signal=11\r\n", "#", 0),
        ("application/dtmf", b"7", "7", 0),
        ("application/dtmf", b"12#\r\n", "12#", 0),
    ],
)
def test_keys_come_by_info(kind: str, body: bytes, digits: str, milliseconds: int) -> None:
    script, call, tag = talking()
    assert script.say(ask("INFO", to_tag=tag, cseq=2, body=body, kind=kind)) == ["200 OK"]
    assert script.take(InfoDigits) == InfoDigits(call, digits, milliseconds)


def test_a_hook_flash_is_no_key() -> None:
    script, _, tag = talking()
    flash = ask("INFO", to_tag=tag, cseq=2, body=b"Signal=16\r\nDuration=160\r\n", kind="application/dtmf-relay")
    assert script.say(flash) == ["200 OK"]
    assert script.events == []


def test_other_infos_are_refused_and_empty_ones_are_fine() -> None:
    script, _, tag = talking()
    other = ask("INFO", to_tag=tag, cseq=2, body=b"<xml/>", kind="application/media_control+xml")
    assert script.say(other) == ["415 Unsupported Media Type"]
    assert script.say(ask("INFO", to_tag=tag, cseq=3)) == ["200 OK"]
    assert script.say(ask("INFO", to_tag=tag, cseq=4, body=b"Signal=x", kind="application/dtmf-relay")) == [
        "415 Unsupported Media Type"
    ]
    package = ask("INFO", "Info-Package: conference", to_tag=tag, cseq=5, body=b"x", kind="text/plain")
    assert script.say(package) == ["469 Bad Info Package"]


def test_a_hang_up_with_a_reason_that_cannot_be_read_ends_the_call() -> None:
    script, call, tag = talking()
    assert script.say(ask("BYE", "Reason: SIP" + ";" * 201, to_tag=tag, cseq=2)) == ["200 OK"]
    assert script.take(Terminated) == Terminated(call, Ended.BYE)


def test_an_old_request_is_not_served() -> None:
    script, call, tag = talking()
    assert script.say(ask("INFO", to_tag=tag, cseq=7)) == ["200 OK"]
    assert script.say(ask("BYE", to_tag=tag, cseq=5)) == ["500 Server Internal Error"]
    assert not call.ended


def test_hold_and_resume() -> None:
    script, call, tag = talking()
    assert script.say(invite(to_tag=tag, cseq=2, body=HOLD)) == ["100 Trying"]
    assert script.take(Held).call.on_hold
    assert script.take(Reoffer).offer == HOLD
    script.core.answer(call, ANSWER + b"a=recvonly\r\n", script.now)
    assert script.collect() == ["200 OK"]
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKack2"))
    script.say(invite(to_tag=tag, cseq=3))
    assert not script.take(Resumed).call.on_hold
    script.core.answer(call, ANSWER, script.now)
    assert script.collect() == ["200 OK"]


def test_a_reinvite_that_changes_nothing_is_answered_at_once() -> None:
    script, _, tag = talking()
    assert script.say(invite(to_tag=tag, cseq=2)) == ["100 Trying", "200 OK"]
    assert script.response().body == ANSWER
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKack2"))
    assert script.events == []


def test_a_reinvite_without_an_offer_ends_a_hold() -> None:
    """Ours is a new offer of all that we can do (RFC 6337, section 5.2.5), not our half of the hold once more."""
    script, call, tag = talking()
    script.say(invite(to_tag=tag, cseq=2, body=HOLD))
    held = ANSWER + b"a=recvonly\r\n"
    script.core.answer(call, held, script.now)
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKack2"))
    script.events.clear()
    assert script.say(invite(to_tag=tag, cseq=3, body=b"")) == ["100 Trying"]
    assert script.take(Reoffer).offer is None
    script.core.answer(call, ANSWER, script.now)
    assert script.collect() == ["200 OK"]
    assert script.response().body == ANSWER
    script.say(ask("ACK", to_tag=tag, cseq=3, branch="z9hG4bKack3", body=SDP))
    assert script.take(Reanswer).sdp == SDP
    assert not script.take(Resumed).call.on_hold


def test_a_change_can_be_refused_and_the_call_goes_on() -> None:
    script, call, tag = talking()
    script.say(invite(to_tag=tag, cseq=2, body=HOLD))
    script.core.reject(call, 488, script.now)
    assert script.collect() == ["488 Not Acceptable Here"]
    assert call.state is CallState.ESTABLISHED


@pytest.mark.parametrize("withdrawn", [False, True], ids=["refused", "withdrawn"])
def test_a_change_that_came_to_nothing_leaves_all_as_it_was(withdrawn: bool) -> None:
    """Asked for again it is decided again, and a caller who was not let go on hold is none on hold."""
    script, call, tag = talking()
    for cseq in (2, 3):
        assert script.say(invite(to_tag=tag, cseq=cseq, body=HOLD)) == ["100 Trying"]
        assert script.take(Reoffer).offer == HOLD
        if withdrawn:
            script.say(ask("CANCEL", to_tag=tag, cseq=cseq, branch=f"z9hG4bKINVITE{cseq}"))
        else:
            script.core.reject(call, 488, script.now)
        script.collect()
        script.say(ask("ACK", to_tag=tag, cseq=cseq, branch=f"z9hG4bKINVITE{cseq}"))
        assert (call.on_hold, call.remote_sdp) == (False, SDP)
        assert isinstance(script.events[-1], Resumed)
    assert script.say(invite(to_tag=tag, cseq=4)) == ["100 Trying", "200 OK"]


def test_a_change_withdrawn_lets_the_session_timer_go_on() -> None:
    script, _, tag = talking(session_expires=200)
    script.say(invite(to_tag=tag, cseq=2, body=HOLD))
    script.say(ask("CANCEL", to_tag=tag, cseq=2, branch="z9hG4bKINVITE2"))
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKINVITE2"))
    assert script.run(100.0) == [(100.0, "INVITE sip:ann@192.0.2.99:5070")]


def test_changes_that_collide() -> None:
    script, call, tag = talking()
    script.say(invite(to_tag=tag, cseq=2, body=HOLD))
    assert script.say(invite(to_tag=tag, cseq=3, branch="z9hG4bKx")) == ["500 Server Internal Error"]
    assert 0 <= int(script.response().headers.first("Retry-After")) <= 10
    assert not script.core.reinvite(call, SDP, script.now)
    script.core.answer(call, ANSWER, script.now)
    script.collect()
    assert script.say(invite(to_tag=tag, cseq=4, branch="z9hG4bKy")) == ["491 Request Pending"]
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKack2"))
    assert script.core.reinvite(call, SDP, script.now)
    script.collect()
    assert script.say(invite(to_tag=tag, cseq=5, branch="z9hG4bKz")) == ["491 Request Pending"]


def test_a_change_withdrawn() -> None:
    script, call, tag = talking()
    script.say(invite(to_tag=tag, cseq=2, body=HOLD))
    cancel = ask("CANCEL", to_tag=tag, cseq=2, branch="z9hG4bKINVITE2")
    assert script.say(cancel) == ["200 OK", "487 Request Terminated"]
    assert call.state is CallState.ESTABLISHED
    script.core.answer(call, ANSWER, script.now)
    assert script.collect() == []
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKINVITE2"))
    assert script.say(ask("BYE", to_tag=tag, cseq=3)) == ["200 OK"]


def test_an_update_refreshes_or_changes() -> None:
    script, call, tag = talking()
    assert script.say(ask("UPDATE", "Contact: <sip:ann@192.0.2.98>", to_tag=tag, cseq=2)) == ["200 OK"]
    assert script.response().body == b""
    script.say(ask("UPDATE", to_tag=tag, cseq=3, body=HOLD))
    assert script.take(Reoffer).offer == HOLD
    script.core.answer(call, ANSWER, script.now)
    assert script.collect() == ["200 OK"]
    assert script.run(40.0) == []


def test_a_hang_up_while_the_peer_waits_for_a_change_leaves_nothing_open() -> None:
    script, call, tag = talking()
    script.say(invite(to_tag=tag, cseq=2, body=HOLD))
    script.core.hangup(call, script.now)
    assert script.collect() == ["487 Request Terminated", "BYE sip:ann@192.0.2.99:5070"]


def test_a_reinvite_moves_the_peer() -> None:
    script, call, tag = talking()
    moved = Addr("192.0.2.97", 5060)
    script.say(invite("Contact: <sip:ann@192.0.2.97>", to_tag=tag, cseq=2, via="SIP/2.0/UDP 192.0.2.97"), moved)
    script.say(ask("ACK", to_tag=tag, cseq=2, branch="z9hG4bKack2"))
    script.core.hangup(call, script.now)
    script.collect()
    assert script.request().uri == "sip:ann@192.0.2.97"
    assert script.arrived[-1][2] == moved


def test_a_call_that_begins_on_hold_is_told_so() -> None:
    script = Script()
    script.say(invite(body=HOLD))
    script.core.answer(script.take(IncomingCall).call, ANSWER, script.now)
    script.collect()
    script.say(ask("ACK", to_tag=script.response().to.tag, branch="z9hG4bKack"))
    script.take(Established)
    assert script.take(Held).call.on_hold


def test_without_session_timers_of_our_own_none_is_asked_for() -> None:
    script, _, _ = talking(session_expires=0)
    assert "Session-Expires" not in script.response().headers
    assert script.run(100_000.0) == []


def test_a_caller_without_session_timers_is_refreshed_by_us() -> None:
    script, _, _ = talking(session_expires=200)
    assert script.response().headers.first("Session-Expires") == "200;refresher=uas"
    assert "Require" not in script.response().headers
    assert script.run(100.0) == [(100.0, "INVITE sip:ann@192.0.2.99:5070")]
