"""Thousands of calls over a line that loses, doubles and reorders: both sides agree in the end, and nothing is left.

Each run is a seed: what the two people do, when, and what the line does to each message, all follow from it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from gateway.sip.agent import UserAgentCore
from gateway.sip.call import CallState, SipCall
from gateway.sip.events import (
    Ended,
    Established,
    IncomingCall,
    Reoffer,
    Terminated,
    Transferred,
)
from gateway.sip.uri import Transport, parse_uri
from tests.gateway.sip.pair import ANSWER, HOLD, SDP, Line, Pair

RUNS = 3000
BATCH = 250
WORST = 0.2
"""Of loss, doubling and reordering, each."""


UDP_MOSTLY: tuple[Transport, ...] = ("udp", "udp", "udp", "tcp")


class Run:
    """Two people on one line, each doing something every now and then."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        draw = self.chance.uniform
        line = Line(draw(0, WORST), draw(0, WORST), draw(0, WORST), draw(0.001, 0.1))
        transport: Transport = self.chance.choice(UDP_MOSTLY)
        if transport == "tcp":
            line.loss = line.doubled = line.shuffled = 0.0
        brief: dict[str, object] = {"session_expires": self.chance.choice((0, 90, 1800))}
        self.pair = Pair(seed, line, transport, brief, dict(brief))
        self.calls: dict[UserAgentCore, SipCall] = {}
        self.answered = False
        self.seen: dict[UserAgentCore, int] = {self.pair.left: 0, self.pair.right: 0}
        self.given_up = False

    def play(self) -> None:
        pair = self.pair
        self.calls[pair.left] = pair.call()
        for _ in range(self.chance.randrange(2, 40)):
            pair.run(self.chance.choice((0.0, 0.02, 0.3, 2.0, 20.0)))
            self.react()
            self.chance.choice(ACTIONS)(self)
        self.wind_up()

    def wind_up(self) -> None:
        """Everybody hangs up what is left, and time passes until nothing is waited for."""
        for _ in range(200):
            self.react()
            for core, call in list(self.calls.items()):
                core.hangup(call, self.pair.now)
            self.pair.run(5.0)
            if self.pair.at_rest():
                self.react()
                return
        raise AssertionError(f"left: {self.pair.left.calls, self.pair.right.calls}, {self.pair.next_time()}")

    def react(self) -> None:
        """Take note of new calls, and answer changes of the session."""
        for core in (self.pair.left, self.pair.right):
            events = self.pair.events[core]
            for event in events[self.seen[core] :]:
                if isinstance(event, IncomingCall):
                    assert core is self.pair.right
                    assert core not in self.calls, "one call came twice"
                    self.calls[core] = event.call
                elif isinstance(event, Reoffer):
                    if self.chance.random() < 0.8:
                        core.answer(event.call, ANSWER, self.pair.now)
                    else:
                        core.reject(event.call, 488, self.pair.now)
            self.seen[core] = len(events)

    def anyone(self) -> tuple[UserAgentCore, SipCall]:
        core = self.chance.choice(list(self.calls))
        return core, self.calls[core]

    def callee(self) -> SipCall | None:
        return self.calls.get(self.pair.right)


def _ring(run: Run) -> None:
    call = run.callee()
    if call is not None:
        run.pair.right.ringing(call, run.pair.now)


def _answer(run: Run) -> None:
    call = run.callee()
    if call is not None:
        run.answered = run.answered or call.state is CallState.INCOMING
        run.pair.right.answer(call, ANSWER, run.pair.now)


def _reject(run: Run) -> None:
    call = run.callee()
    if call is not None and call.state is CallState.INCOMING:
        run.pair.right.reject(call, 486, run.pair.now, retry_after=5)


def _hang_up(run: Run) -> None:
    core, call = run.anyone()
    if run.chance.random() < 0.3:
        run.given_up = run.given_up or (core is run.pair.left and call.state is CallState.CALLING)
        core.hangup(call, run.pair.now)


def _change(run: Run) -> None:
    core, call = run.anyone()
    core.reinvite(call, run.chance.choice((SDP, HOLD, ANSWER)), run.pair.now)


def _both_change(run: Run) -> None:
    for core, call in run.calls.items():
        core.reinvite(call, run.chance.choice((SDP, HOLD, ANSWER)), run.pair.now)


def _press(run: Run) -> None:
    core, call = run.anyone()
    core.info_dtmf(call, "5", run.pair.now)


def _transfer(run: Run) -> None:
    core, call = run.anyone()
    core.refer(call, parse_uri("sip:desk@192.0.2.9"), run.pair.now)


def _wait(run: Run) -> None:
    run.pair.run(run.chance.choice((1.0, 40.0, 100.0)))


ACTIONS: tuple[Callable[[Run], None], ...] = (
    _ring,
    _answer,
    _answer,
    _answer,
    _reject,
    _hang_up,
    _change,
    _both_change,
    _press,
    _transfer,
    _wait,
)


def check(run: Run) -> str:
    """Both sides tell the same story; gives its name."""
    left, right = run.pair.events[run.pair.left], run.pair.events[run.pair.right]
    ends = [[event for event in events if isinstance(event, Terminated)] for events in (left, right)]
    ups = [sum(isinstance(event, Established) for event in events) for events in (left, right)]
    assert len(ends[0]) == 1
    assert len(ends[1]) == (run.pair.right in run.calls)
    assert max(ups) <= 1
    assert all(call.ended for call in run.calls.values())
    ours = ends[0][0]
    for event in left + right:
        assert not (isinstance(event, Transferred) and event.final and event.code < 300), "nobody transferred"
    if not ends[1]:
        assert ours.reason in (Ended.NO_ANSWER, Ended.HANGUP)
        return "unheard"
    theirs = ends[1][0]
    if ups[0]:
        assert run.answered
        assert theirs.reason in (Ended.HANGUP, Ended.BYE, Ended.NO_ACK, Ended.EXPIRED, Ended.LOST)
        assert ours.reason in (Ended.HANGUP, Ended.BYE, Ended.EXPIRED, Ended.LOST)
        return "talked"
    if ups[1]:
        assert ours.reason in (Ended.HANGUP, Ended.NO_ANSWER), "the callee heard an ACK that nobody sent"
        return "given up while answered"
    if theirs.reason is Ended.REJECTED and ours.reason is Ended.REJECTED:
        assert ours.code == theirs.code
        return "rejected"
    assert ours.reason in (Ended.HANGUP, Ended.NO_ANSWER, Ended.BYE)
    return f"{ours.reason.value} against {theirs.reason.value}"


@pytest.mark.parametrize("batch", range(RUNS // BATCH))
def test_every_call_ends_in_agreement_and_leaves_nothing(batch: int) -> None:
    stories: Counter[str] = Counter()
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        run = Run(seed)
        try:
            run.play()
            stories[check(run)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert stories["talked"] > BATCH / 4
    assert stories["rejected"] > 0


def test_the_line_is_as_bad_as_it_says() -> None:
    pair = Pair(7, Line(WORST, WORST, WORST))
    for _ in range(100):
        ours = pair.call()
        pair.run(1.0)
        pair.left.hangup(ours, pair.now)
        pair.run(100.0)
    sent = len(pair.sent)
    assert sent > 500
    for count in (pair.lost, pair.doubled, pair.shuffled):
        assert 0.12 < count / sent < 0.28


def patient(seed: int) -> str:
    """Nobody gives up: whatever the line does, each step reaches the other side before the next one begins."""
    chance = random.Random(seed)
    pair = Pair(seed, Line(WORST, WORST, WORST, 0.02))
    ours = pair.call()
    pair.run(15.0)
    theirs = pair.incoming()
    if chance.random() < 0.3:
        pair.right.reject(theirs, 486, pair.now)
        pair.run(30.0)
        ended = pair.take(pair.left, Terminated)
        assert (ended.reason, ended.code) == (Ended.REJECTED, 486)
        return "rejected"
    pair.right.answer(theirs, ANSWER, pair.now)
    pair.run(30.0)
    assert ours.state is theirs.state is CallState.ESTABLISHED
    assert (pair.take(pair.left, Established).sdp, pair.take(pair.right, Established).sdp) == (ANSWER, None)
    caller_changes = chance.random() < 0.5
    if caller_changes:
        assert pair.left.reinvite(ours, HOLD, pair.now)
        pair.run(30.0)
        pair.right.answer(pair.take(pair.right, Reoffer).call, ANSWER, pair.now)
        pair.run(30.0)
        assert theirs.on_hold
        assert ours.local_sdp == HOLD
        assert ours.offering is None
        assert theirs.unacknowledged is None
    ending, ended_by, other = chance.choice(((pair.left, ours, pair.right), (pair.right, theirs, pair.left)))
    ending.hangup(ended_by, pair.now)
    pair.run(30.0)
    assert pair.take(ending, Terminated).reason is Ended.HANGUP
    assert pair.take(other, Terminated).reason is Ended.BYE
    pair.run(100.0)
    assert pair.at_rest()
    return "held" if caller_changes else "talked"


def test_patient_people_always_reach_each_other() -> None:
    stories: Counter[str] = Counter()
    for seed in range(1000):
        try:
            stories[patient(seed)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
    assert min(stories.values()) > 200
    assert len(stories) == 3
