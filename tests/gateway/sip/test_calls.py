"""Calls between two agents on a good line: set-up, change, end, and what each side is told."""

from __future__ import annotations

from gateway.sip.call import CallState
from gateway.sip.events import Ended, Established, Terminated
from tests.gateway.sip.pair import ANSWER, Pair


def test_a_call_comes_up_and_the_caller_hangs_up() -> None:
    pair = Pair()
    ours, theirs = pair.established()
    assert ours.state is theirs.state is CallState.ESTABLISHED
    assert pair.take(pair.left, Established).sdp == ANSWER
    assert pair.take(pair.right, Established).sdp is None
    assert pair.starts() == [
        "INVITE sip:agent@192.0.2.2:5060 SIP/2.0",
        "SIP/2.0 100 Trying",
        "SIP/2.0 200 OK",
        "ACK sip:agent@192.0.2.2:5060 SIP/2.0",
    ]
    pair.left.hangup(ours, pair.now)
    pair.run(100)
    assert pair.take(pair.left, Terminated).reason is Ended.HANGUP
    assert pair.take(pair.right, Terminated).reason is Ended.BYE
    assert pair.at_rest()


def test_the_callee_hangs_up() -> None:
    pair = Pair()
    _, theirs = pair.established()
    pair.right.hangup(theirs, pair.now)
    pair.run(100)
    assert pair.take(pair.left, Terminated).reason is Ended.BYE
    assert pair.take(pair.right, Terminated).reason is Ended.HANGUP
    assert pair.at_rest()
