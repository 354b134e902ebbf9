"""Our transfers, and what the peer tells of them; keys sent by INFO."""

from __future__ import annotations

import pytest

from gateway.sip.call import CallState, SipCall
from gateway.sip.events import Ended, Established, IncomingCall, Terminated, Transferred
from gateway.sip.uri import parse_uri
from tests.gateway.sip.pair import ANSWER
from tests.gateway.sip.script import Script, ask, invite

DESK = parse_uri("sip:desk@example.com")


def talking() -> tuple[Script, SipCall, str]:
    script = Script()
    script.say(invite())
    call = script.take(IncomingCall).call
    script.core.answer(call, ANSWER, script.now)
    script.collect()
    tag = script.response().to.tag
    script.say(ask("ACK", to_tag=tag, branch="z9hG4bKack"))
    script.take(Established)
    return script, call, tag


def notify(tag: str, line: str, cseq: int, state: str = "active;expires=60", event: str = "refer") -> bytes:
    fields = (f"Event: {event}", f"Subscription-State: {state}")
    return ask("NOTIFY", *fields, to_tag=tag, cseq=cseq, body=f"SIP/2.0 {line}\r\n".encode(), kind="message/sipfrag")


def referred() -> tuple[Script, SipCall, str]:
    script, call, tag = talking()
    assert script.core.refer(call, DESK, script.now)
    assert script.collect() == ["REFER sip:ann@192.0.2.99:5070"]
    return script, call, tag


def test_a_transfer_is_told_of_until_it_is_done() -> None:
    script, call, tag = referred()
    refer = script.request()
    assert refer.headers.first("Refer-To") == "<sip:desk@example.com>"
    assert refer.headers.first("Referred-By") == "<sip:agent@192.0.2.1>"
    assert not script.core.refer(call, DESK, script.now)
    script.answer(202)
    assert script.say(notify(tag, "100 Trying", 2)) == ["200 OK"]
    assert script.take(Transferred) == Transferred(call, 100, "Trying", final=False)
    assert script.say(notify(tag, "200 OK", 3, "terminated;reason=noresource")) == ["200 OK"]
    assert script.take(Transferred) == Transferred(call, 200, "OK", final=True)
    assert script.say(notify(tag, "200 OK", 4)) == ["481 Subscription Does Not Exist"]
    assert script.run(100.0) == []
    assert call.state is CallState.ESTABLISHED


def test_a_notify_may_come_before_the_answer_to_the_refer() -> None:
    script, call, tag = referred()
    refer = script.request()
    assert script.say(notify(tag, "180 Ringing", 2)) == ["200 OK"]
    script.answer(202, to=refer)
    script.say(notify(tag, "486 Busy Here", 3))
    script.take(Transferred)
    assert script.take(Transferred) == Transferred(call, 486, "Busy Here", final=True)


@pytest.mark.parametrize("code", [405, 501, 603])
def test_a_transfer_refused_leaves_the_call_as_it_was(code: int) -> None:
    script, call, _ = referred()
    script.answer(code)
    assert script.take(Transferred) == Transferred(call, code, "Because", final=True)
    assert call.state is CallState.ESTABLISHED
    assert script.core.refer(call, DESK, script.now)


def test_a_peer_that_does_not_know_the_call_any_more() -> None:
    script, _, _ = referred()
    script.answer(481)
    assert script.take(Transferred).final
    assert script.take(Terminated).reason is Ended.LOST


def test_a_transfer_that_falls_silent_is_given_up() -> None:
    script, call, tag = referred()
    script.answer(202)
    script.run(4.0)
    script.say(notify(tag, "100 Trying", 2))
    script.run(59.0)
    script.take(Transferred)
    assert script.events == []
    script.run(2.0)
    assert script.take(Transferred) == Transferred(call, 408, "Request Timeout", final=True)


def test_a_peer_that_accepts_a_transfer_and_never_reports_is_not_waited_for() -> None:
    script, call, _ = referred()
    script.answer(202)
    script.run(4.9)
    assert script.events == []
    script.run(0.2)
    assert script.take(Transferred) == Transferred(call, 408, "Request Timeout", final=True)
    assert call.state is CallState.ESTABLISHED


def test_reports_of_a_transfer_given_up_decide_nothing_about_the_next() -> None:
    """RFC 3515, section 2.4.6: from the second REFER on they name its CSeq."""
    script, call, tag = referred()
    first = script.request().cseq.number
    script.answer(202)
    script.run(5.1)
    script.take(Transferred)
    assert script.core.refer(call, DESK, script.now)
    script.collect()
    second = script.request().cseq.number
    script.answer(202)
    for cseq, event in ((2, f"refer;id={first}"), (3, "refer")):
        assert script.say(notify(tag, "200 OK", cseq, "terminated", event)) == ["481 Subscription Does Not Exist"]
    assert not any(isinstance(event, Transferred) for event in script.events)
    assert script.say(notify(tag, "486 Busy Here", 4, "terminated", f"refer;id={second}")) == ["200 OK"]
    assert script.take(Transferred) == Transferred(call, 486, "Busy Here", final=True)


@pytest.mark.parametrize("meanwhile", [True, False], ids=["during-the-next", "before-the-next"])
def test_once_the_last_report_of_a_transfer_given_up_has_come_one_without_a_name_means_the_next(
    meanwhile: bool,
) -> None:
    script, call, tag = referred()
    script.answer(202)
    script.run(5.1)
    script.take(Transferred)
    late = notify(tag, "503 Service Unavailable", 2, "terminated")
    if not meanwhile:
        assert script.say(late) == ["481 Subscription Does Not Exist"]
    assert script.core.refer(call, DESK, script.now)
    script.collect()
    script.answer(202)
    if meanwhile:
        assert script.say(late) == ["481 Subscription Does Not Exist"]
    assert not any(isinstance(event, Transferred) for event in script.events)
    assert script.say(notify(tag, "486 Busy Here", 3, "terminated")) == ["200 OK"]
    assert script.take(Transferred) == Transferred(call, 486, "Busy Here", final=True)


def test_a_peer_that_names_no_transfer_means_the_only_one_left() -> None:
    script, call, tag = referred()
    first = script.request().cseq.number
    script.say(notify(tag, "486 Busy Here", 2, "active"))
    script.take(Transferred)
    assert script.core.refer(call, DESK, script.now)
    script.collect()
    late = notify(tag, "486 Busy Here", 3, "terminated", f"refer;id={first}")
    assert script.say(late) == ["481 Subscription Does Not Exist"]
    assert not any(isinstance(event, Transferred) for event in script.events)
    assert script.say(notify(tag, "200 OK", 4, "terminated")) == ["200 OK"]
    assert script.take(Transferred) == Transferred(call, 200, "OK", final=True)


def test_a_report_before_the_answer_to_the_refer_or_without_a_status_counts_as_a_word() -> None:
    script, _, tag = referred()
    refer = script.request()
    script.say(notify(tag, "nonsense", 2))
    script.answer(202, to=refer)
    script.run(59.0)
    assert script.events == []


def test_a_subscription_that_ends_without_a_result_is_a_failure() -> None:
    script, call, tag = referred()
    script.say(notify(tag, "100 Trying", 2, "terminated;reason=giveup"))
    assert script.take(Transferred) == Transferred(call, 480, "the transfer ended without a result", final=True)


def test_a_caller_that_hangs_up_while_it_is_transferred_leaves_no_timer() -> None:
    script, _, tag = referred()
    script.answer(202)
    script.say(ask("BYE", to_tag=tag, cseq=2))
    assert script.take(Terminated).reason is Ended.BYE
    script.run(40.0)
    assert (script.core.calls, script.core.transactions, script.core.timers) == (0, 0, 0)


def test_notifies_of_other_things_are_refused() -> None:
    script, _, tag = referred()
    assert script.say(notify(tag, "200 OK", 2, event="presence")) == ["489 Bad Event"]
    assert script.response().headers.first("Allow-Events") == "refer"


def test_keys_are_sent_by_info() -> None:
    script, call, _ = talking()
    assert script.core.info_dtmf(call, "#", script.now, 200)
    assert script.collect() == ["INFO sip:ann@192.0.2.99:5070"]
    assert script.request().content_type == "application/dtmf-relay"
    assert script.request().body == b"Signal=#\r\nDuration=200\r\n"
    with pytest.raises(ValueError, match="is no key"):
        script.core.info_dtmf(call, "x", script.now)
    script.core.hangup(call, script.now)
    assert not script.core.info_dtmf(call, "1", script.now)
    assert not script.core.refer(call, DESK, script.now)
