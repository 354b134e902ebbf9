"""Nothing is kept before the caller has heard the line to its end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.recording.consent import SAY_AGAIN_AFTER, TIMES, Consent
from model.wire import (
    FRAME_SECONDS,
    AgentText,
    CallerText,
    Flush,
    Output,
)

LINE = "This call is recorded and written down."


def spoken(text: str, at: int = 0, step: int = 4) -> list[AgentText]:
    """A word every `step` frames, from frame `at` on."""
    return [AgentText(at + step * place, f" {word}") for place, word in enumerate(text.split())]


def feed(consent: Consent, outputs: Sequence[AgentText | CallerText | Flush]) -> list[Output]:
    return [kept for output in outputs for kept in consent.admit(output)]


def played(consent: Consent, frame: int) -> bool:
    """So many frames were handed to a line that plays them at once; whether the consent line was then heard."""
    return consent.handed_over(frame) and consent.played(frame)


def heard_at(consent: Consent, frames: int) -> int | None:
    """The frame with which the line had been heard; all outputs came before."""
    return next((frame for frame in range(frames) if played(consent, frame)), None)


def test_the_line_is_heard_when_its_last_word_has_been_played() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    assert feed(consent, spoken(LINE, at=10)) == []
    # The last word begins with frame 34, and takes four letters' time; 0.1 s may still wait in the line.
    frame = heard_at(consent, 100)
    assert frame is not None
    assert 34 * 0.08 + 0.32 + 0.1 <= frame * 0.08 < 34 * 0.08 + 0.32 + 0.2
    assert consent.heard_at == pytest.approx(frame * 0.08)
    assert not consent.handed_over(frame + 1), "it is told once"


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


@pytest.mark.parametrize("until", [28, 32])
def test_a_flush_that_drops_the_last_word_from_the_line_leaves_it_unheard(until: int) -> None:
    """It ends at 2.16 s. At 2.24 s it may have been handed over just now; at 2.56 s the line has not told yet."""
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken(LINE), AgentText(27, " Hello")])
    asked = [frame for frame in range(until) if consent.handed_over(frame)]
    feed(consent, [Flush(until - 1)])
    assert asked == ([29] if until == 32 else [])
    consent.not_played()
    assert heard_at(consent, 100) is None
    assert consent.released() == []
    feed(consent, spoken(LINE, at=110))
    assert heard_at(consent, 200) is not None


def lose(consent: Consent, first: int, frames: int) -> None:
    """Nobody answers so many frames from `first` on: the caller hears silence."""
    for frame in range(first, first + frames):
        consent.lost(frame)
        assert not consent.handed_over(frame + 1)


@pytest.mark.parametrize("place", range(7))
def test_a_line_whose_word_was_lost_with_its_worker_was_not_heard(place: int) -> None:
    """Of each word only the first frame was played; the next worker, or none, goes on after it."""
    words = spoken(LINE)
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, words[: place + 1])
    lost = words[place].index + 1
    lose(consent, lost, 40)
    feed(consent, [AgentText(word.index + 40, word.text) for word in words[place + 1 :]])
    feed(consent, spoken("How can I help?", at=90))
    assert heard_at(consent, 300) is None


@pytest.mark.parametrize("place", range(7))
def test_a_line_whose_lost_word_is_said_again_by_the_next_worker_was_heard(place: int) -> None:
    words = spoken(LINE)
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, words[: place + 1])
    lose(consent, words[place].index + 1, 40)
    rest = [AgentText(word.index + 41, word.text) for word in words[place:]]
    feed(consent, rest)
    frame = heard_at(consent, 300)
    assert frame is not None
    assert frame * 0.08 >= rest[-1].index * 0.08 + 0.32 + 0.1
    assert consent.released() == []


@pytest.mark.parametrize("first", [[" re"], [" re", "cord"], [" re", "cord", "ed"]])
def test_a_word_that_was_lost_and_is_said_again_may_come_in_pieces(first: list[str]) -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken("This call is"), *(AgentText(12 + place, text) for place, text in enumerate(first))])
    lose(consent, 12 + len(first), 20)
    again = [AgentText(40 + place, text) for place, text in enumerate([" re", "cord", "ed"])]
    feed(consent, [*again, *spoken("and written down.", at=48)])
    assert heard_at(consent, 300) is not None


def test_a_line_whose_worker_is_lost_between_two_words_goes_on() -> None:
    words = spoken(LINE, step=12)
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, words[:4])
    lose(consent, words[3].index + 9, 30)
    feed(consent, [AgentText(word.index + 30, word.text) for word in words[4:]])
    assert heard_at(consent, 300) is not None


def test_of_a_line_that_was_lost_with_its_last_word_nothing_is_kept() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken(LINE), AgentText(25, ".")])
    lose(consent, 26, 10)
    feed(consent, spoken(LINE, at=60))
    assert heard_at(consent, 200) is not None
    assert consent.released() == []


def test_a_worker_lost_after_the_line_takes_nothing_back_and_interrupts_nobody() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken(LINE), AgentText(28, " Hello")])
    consent.lost(29)
    assert heard_at(consent, 100) is not None
    assert consent.released() == [AgentText(28, " Hello")]
    consent.lost(60)
    assert consent.heard


@pytest.mark.parametrize("place", range(7))
@pytest.mark.parametrize("after", [0, 2])
def test_a_line_of_whose_word_the_phone_line_left_out_a_part_was_not_heard(place: int, after: int) -> None:
    """Known five frames later: of a burst it takes the newest."""
    words = spoken(LINE)
    consent = Consent(LINE, FRAME_SECONDS)
    left_out = words[place].index + after
    feed(consent, [word for word in words if word.index <= left_out + 5])
    consent.left_out(left_out)
    feed(consent, [word for word in words if word.index > left_out + 5])
    assert heard_at(consent, 26) is None
    assert not any(consent.handed_over(frame) for frame in range(26, 120))
    assert consent.say_again(120)
    feed(consent, spoken(LINE, at=121))
    assert heard_at(consent, 200) is not None


@pytest.mark.parametrize("left_out", [9, 34, 40])
def test_what_the_phone_line_left_out_beside_the_line_does_no_harm(left_out: int) -> None:
    """The line's words begin with frames 10 to 28, and the last one takes four."""
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, spoken(LINE, at=10, step=3))
    consent.left_out(left_out)
    assert heard_at(consent, 100) is not None


def test_a_word_that_came_in_pieces_was_not_heard_if_what_was_left_out_lay_between_them() -> None:
    consent = Consent("now recorded", FRAME_SECONDS)
    feed(consent, [AgentText(0, " now"), AgentText(5, " re")])
    consent.left_out(9)
    feed(consent, [AgentText(14, "corded")])
    assert heard_at(consent, 100) is None


def test_what_was_left_out_while_the_phone_line_holds_the_last_word_leaves_it_unheard() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, [*spoken(LINE), AgentText(27, " Hello")])
    assert [frame for frame in range(32) if consent.handed_over(frame)] == [29]
    consent.left_out(25)
    assert not consent.played(33)
    assert consent.released() == []


def test_the_gap_between_two_workers_is_no_silence_after_which_the_line_is_said_again() -> None:
    consent = Consent(LINE, FRAME_SECONDS)
    feed(consent, spoken(LINE)[:4])
    lose(consent, 13, 100)
    assert not any(consent.say_again(frame) for frame in range(113, 113 + round(SAY_AGAIN_AFTER / 0.08) - 1))
    assert consent.say_again(113 + round(SAY_AGAIN_AFTER / 0.08))


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


@given(st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["text", "flush", "lost"])), max_size=40))
@example([(0, "text"), (1, "text"), (2, "text"), (6, "text"), (1, "text")])
def test_the_line_is_never_heard_before_its_last_word_was_played(steps: list[tuple[int, str]]) -> None:
    """Whatever is cut where: when it counts as heard, its words were said in order and played to their end."""
    consent = Consent("one two three", FRAME_SECONDS)
    frame = 0
    words = [" one", " two", " three", " four"]
    for wait, what in steps:
        for _ in range(wait):
            frame += 1
            if played(consent, frame):
                said = [word.text for word in consent._words]
                place = next(place for place in range(len(said)) if said[place : place + 3] == words[:3])
                whole = consent._words[place : place + 3]
                assert not any(word.cut for word in whole)
                assert frame * FRAME_SECONDS > whole[-1].onset * FRAME_SECONDS + 0.1
                return
        if what == "text":
            consent.admit(AgentText(frame, words[wait % 4]))
        elif what == "lost":
            consent.lost(frame)
        else:
            consent.admit(Flush(frame))
