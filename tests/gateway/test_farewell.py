"""When a farewell has been said: by its words, through pauses, interruptions and the loss of a worker."""

from __future__ import annotations

from gateway.farewell import LAST_WORDS, LOST_THREAD, SPOKEN, Farewell
from model.wire import FRAME_SECONDS

TEXT = "I am sorry, I have to end the call here. Goodbye."
LOUD, QUIET = 2_000, 20


def play(farewell: Farewell, seconds: float, level: int = QUIET, *, column: bool = True) -> None:
    for _ in range(round(seconds / FRAME_SECONDS)):
        farewell.played(level, column=column)


def asked(*, speaks: bool = False, writes: bool = True, column: bool = True) -> Farewell:
    farewell = Farewell(TEXT)
    if writes:
        farewell.spoke(" Your appointment")
    play(farewell, 2.0, LOUD if speaks else QUIET, column=column)
    farewell.ask()
    return farewell


def say(farewell: Farewell, text: str) -> None:
    """Each word two frames of sound."""
    for word in text.split():
        farewell.spoke(f" {word}")
        play(farewell, 2 * FRAME_SECONDS, LOUD)


def is_over_after(farewell: Farewell, seconds: float) -> None:
    """Of silence, and not sooner."""
    play(farewell, seconds - FRAME_SECONDS)
    assert not farewell.over
    play(farewell, FRAME_SECONDS)
    assert farewell.over


def test_it_is_over_a_moment_after_its_last_word() -> None:
    farewell = asked()
    say(farewell, TEXT)
    is_over_after(farewell, SPOKEN)


def test_an_agent_that_ends_its_sentence_and_pauses_has_not_said_it() -> None:
    farewell = asked(speaks=True)
    play(farewell, 0.16, LOUD)
    say(farewell, "is at ten.")
    play(farewell, 2.0)
    assert not farewell.over
    say(farewell, TEXT)
    is_over_after(farewell, SPOKEN)


def test_a_pause_between_two_of_its_words_does_not_end_it() -> None:
    farewell = asked()
    say(farewell, "I am sorry,")
    play(farewell, 1.6)
    assert not farewell.over
    say(farewell, "I have to end the call here.")
    play(farewell, 1.6)
    assert not farewell.over
    for piece in (" Good", "bye", "."):
        farewell.spoke(piece)
    is_over_after(farewell, SPOKEN)


def test_its_last_word_is_waited_for_though_the_agent_was_silent_before_it() -> None:
    farewell = asked()
    say(farewell, TEXT.removesuffix(" Goodbye."))
    play(farewell, 1.6)
    farewell.spoke(" Goodbye.")
    assert not farewell.over
    is_over_after(farewell, SPOKEN)


def test_what_nobody_answered_is_no_silence_of_the_agents() -> None:
    farewell = asked()
    say(farewell, "I am sorry, I")
    farewell.spoke(" ha")
    play(farewell, 12.0, column=False)
    assert not farewell.over
    say(farewell, "have to end the call here. Goodbye.")
    play(farewell, 12.0, column=False)
    assert not farewell.over
    is_over_after(farewell, SPOKEN)


def test_a_rest_that_never_comes_is_not_waited_for_long() -> None:
    farewell = asked()
    say(farewell, "I am sorry, I have Yes?")
    is_over_after(farewell, LOST_THREAD)


def test_an_agent_that_never_begins_has_its_time() -> None:
    is_over_after(asked(), LAST_WORDS)
    talkative = asked(speaks=True)
    play(talkative, LAST_WORDS - FRAME_SECONDS, LOUD)
    assert not talkative.over
    play(talkative, FRAME_SECONDS, LOUD)
    assert talkative.over


def test_of_an_engine_that_writes_nothing_down_new_sound_is_the_farewell() -> None:
    silent = asked(writes=False, column=False)
    play(silent, 1.6)
    play(silent, 1.6, LOUD)
    is_over_after(silent, SPOKEN)
    speaking = asked(writes=False, column=False, speaks=True)
    play(speaking, 0.16, LOUD)
    play(speaking, 1.6)
    assert not speaking.over, "that was the sentence before"
    play(speaking, 1.6, LOUD)
    is_over_after(speaking, SPOKEN)
