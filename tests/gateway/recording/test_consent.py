"""Nothing is kept before the caller has heard the line to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.call import Call, CallPlan
from gateway.recording.consent import SAY_AGAIN_AFTER, TIMES, Consent
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.transcript import Utterance
from model.wire import FRAME_SECONDS, AgentText, CallerText, Flush, Output, SessionRequest
from tests import virtual_time
from tests.gateway.memory_line import MemoryLeg, ScriptedEngine
from tests.gateway.recording.sound import samples
from tests.gateway.told import Told

LINE = "This call is recorded and written down."


def spoken(text: str, at: int = 0, step: int = 4) -> list[AgentText]:
    """A word every `step` frames, from frame `at` on."""
    return [AgentText(at + step * place, f" {word}") for place, word in enumerate(text.split())]


def feed(consent: Consent, outputs: Sequence[AgentText | CallerText | Flush]) -> list[Output]:
    return [kept for output in outputs for kept in consent.admit(output)]


def heard_at(consent: Consent, frames: int) -> int | None:
    """The frame with which the line had been heard; all outputs came before."""
    return next((frame for frame in range(frames) if consent.played(frame)), None)


def test_the_line_is_heard_when_its_last_word_has_been_played() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    assert feed(consent, spoken(LINE, at=10)) == []
    # The last word begins with frame 34, and takes four letters' time; 0.1 s may still wait in the line.
    frame = heard_at(consent, 100)
    assert frame is not None
    assert 34 * 0.08 + 0.32 + 0.1 <= frame * 0.08 < 34 * 0.08 + 0.32 + 0.2
    assert consent.heard_at == pytest.approx(frame * 0.08)
    assert not consent.played(frame + 1), "it is told once"


def test_pieces_of_words_and_other_punctuation_are_the_same_line() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    pieces = [" this", " Call", " is", " re", "cord", "ed", " -", " and", " writ", "ten", " down"]
    feed(consent, [AgentText(3 * place, text) for place, text in enumerate(pieces)])
    assert heard_at(consent, 60) is not None


def test_what_the_agent_goes_on_to_say_is_kept_and_what_the_caller_said_before_is_not() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [CallerText(0, 10, "before the line"), *spoken(LINE)])
    greeting = spoken("Hello there", at=27)
    assert feed(consent, greeting) == []
    frame = heard_at(consent, 100)
    assert frame is not None
    assert consent.released() == greeting
    assert consent.released() == []
    assert feed(consent, [CallerText(20, frame + 9, "begun before it was heard")]) == []
    later: list[AgentText | CallerText | Flush] = [
        CallerText(frame + 1, frame + 9, "hi"),
        AgentText(frame + 2, " Yes"),
        Flush(frame + 3),
    ]
    assert feed(consent, later) == later


@pytest.mark.parametrize("missing", range(7))
def test_a_line_with_a_word_left_out_was_not_heard(missing: int) -> None:
    words = LINE.split()
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, spoken(" ".join(words[:missing] + words[missing + 1 :])))
    feed(consent, spoken("How can I help?", at=60))
    assert heard_at(consent, 300) is None


@pytest.mark.parametrize("cut", range(1, 27))
def test_a_line_that_was_cut_off_was_not_heard_wherever_that_was(cut: int) -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    said = [word for word in spoken(LINE) if word.index <= cut]
    feed(consent, [*said, Flush(cut), *spoken("Sorry, go on.", at=cut + 20)])
    assert heard_at(consent, 300) is None


@pytest.mark.parametrize("cut", [5, 9, 14, 25])
def test_a_line_that_goes_on_after_a_pause_was_heard(cut: int) -> None:
    """An "okay" pauses the agent; it goes on from the start of the word that was cut."""
    words = LINE.split()
    consent = Consent(LINE, FRAME_SECONDS)
    begun = [word for word in spoken(LINE) if word.index <= cut]
    rest = spoken(" ".join(words[len(begun) - 1 :]), at=cut + 15)
    feed(consent, [*begun, Flush(cut), *rest])
    frame = heard_at(consent, 300)
    assert frame is not None
    assert frame > rest[-1].index


def test_a_flush_after_the_line_takes_nothing_back() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken(LINE), AgentText(30, " Hello"), AgentText(34, " unheard"), Flush(31)])
    assert heard_at(consent, 100) is not None
    assert consent.released() == [AgentText(30, " Hello"), Flush(31)]


def test_a_line_that_was_not_heard_is_said_again_when_the_agent_is_silent_and_not_for_ever() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken(LINE)[:4], Flush(14), *spoken("Go on.", at=40)])
    asked = [frame for frame in range(45, 1_000) if consent.say_again(frame)]
    assert len(asked) == TIMES - 1
    assert asked[0] == pytest.approx(44 + SAY_AGAIN_AFTER / 0.08, abs=1)
    assert consent.said == TIMES
    feed(consent, spoken(LINE, at=1_000))
    assert heard_at(consent, 1_100) is not None
    assert not consent.say_again(9_999)


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["text", "flush"])), max_size=40))
@example([(0, "text"), (1, "text"), (2, "text"), (6, "text"), (1, "text")])
def test_the_line_is_never_heard_before_its_last_word_was_played(steps: list[tuple[int, str]]) -> None:
    """Whatever is cut where: when it counts as heard, its words were said in order and played to their end."""
    consent = Consent("one two three", FRAME_SECONDS)
    frame = 0
    words = [" one", " two", " three", " four"]
    for wait, what in steps:
        for _ in range(wait):
            frame += 1
            if consent.played(frame):
                said = [word.text for word in consent._words]
                place = next(place for place in range(len(said)) if said[place : place + 3] == words[:3])
                whole = consent._words[place : place + 3]
                assert not any(word.cut for word in whole)
                assert frame * FRAME_SECONDS > whole[-1].onset * FRAME_SECONDS + 0.1
                return
        if what == "text":
            consent.admit(AgentText(frame, words[wait % 4]))
        else:
            consent.admit(Flush(frame))


def held_call(script: dict[int, list[Output]], folder: Path, seconds: float = 8.0) -> tuple[Call, list[Utterance]]:
    """A call with a consent line on a line that also presses keys at 0.5 s and 6 s."""
    told: list[Utterance] = []
    leg = MemoryLeg(seconds=seconds)
    plan = CallPlan("bank", "abc123", SessionRequest("c1"), consent=LINE)
    engine = ScriptedEngine(script)

    async def run() -> Call:
        recorder = Recorder(RecordingPlan(folder, after_consent=True))
        call = Call(leg, engine, plan, recorder, Told(told))
        for at in (0.5, 6.0):
            asyncio.get_running_loop().call_later(at, lambda: leg.on_digit and leg.on_digit("5"))
        await call.run()
        return call

    call = virtual_time.run(run())
    assert engine.session.said == [] or "cut" in str(folder)
    return call, told


def test_a_call_is_kept_from_the_moment_the_line_was_heard(tmp_path: Path) -> None:
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)}
    script |= {word.index: [word] for word in spoken("How can I help?", at=36)}
    script[34] = [CallerText(2, 20, "my number is four one one one")]
    script[60] = [CallerText(50, 58, "What are your hours?")]
    call, told = held_call(script, tmp_path)
    texts = [utterance.text for utterance in call.transcript.utterances()]
    assert texts == ["How can I help?", "What are your hours?", "[keypad 5]"]
    assert not [utterance for utterance in told if "four" in utterance.text or "recorded" in utterance.text]
    left, right = samples(tmp_path / "call.wav")
    assert len(left) == call.counters.frames_in * 640
    start = int(np.argmax(np.abs(left) > 0)) / 8_000
    # The last word begins with frame 29, at 2.32 s, and takes 0.32 s.
    assert 2.32 + 0.32 + 0.1 <= start < 2.9
    assert not right[: int(start * 8_000)].any()
    assert np.abs(left[int(start * 8_000) + 10 :]).min() > 0


def test_a_call_whose_line_is_cut_off_leaves_nothing_and_asks_for_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cut"
    script: dict[int, list[Output]] = {word.index: [word] for word in spoken(LINE, at=5)[:4]}
    script[18] = [Flush(18), CallerText(2, 17, "I want to speak to a person")]
    call, told = held_call(script, folder, seconds=16)
    assert call.transcript.utterances() == []
    assert told == []
    assert not folder.exists()
    assert "never heard, so nothing was kept" in caplog.text
