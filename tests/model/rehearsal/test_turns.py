"""The turn-taking core, window by window."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from model.rehearsal.turns import (
    Action,
    Agent,
    Pause,
    Recognise,
    Reply,
    Said,
    StillThere,
    Timing,
    Turns,
)

TIMING = Timing()


def hear(turns: Turns, windows: int, speech: bool, late: bool = False) -> list[Action]:
    return [action for _ in range(windows) for action in turns.hear(speech, late)]


def talk(turns: Turns, text: str, windows: int = 20, *, confidence: float = 0.0, late: bool = False) -> list[Action]:
    """The caller says `text` and falls silent for a second; it is recognised as soon as that is asked for."""
    actions = hear(turns, windows, speech=True, late=late)
    for _ in range(31):
        for action in turns.hear(False):
            actions.append(action)
            if isinstance(action, Recognise):
                actions += turns.recognised(action.attempt, text, confidence)
    return actions


def kinds(actions: Iterable[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def speaking() -> Turns:
    turns = Turns()
    turns.agent_thinks()
    assert turns.agent_speaks()
    hear(turns, 60, speech=False)
    return turns


def test_an_utterance_is_recognised_at_its_pause_and_answered_at_its_end() -> None:
    turns = Turns()
    hear(turns, 10, speech=False)
    assert hear(turns, 20, speech=True) == []
    assert hear(turns, TIMING.quick - 1, speech=False) == []
    (recognise,) = turns.hear(False)
    assert recognise == Recognise(1, 10 - TIMING.lead, 10 + 20 + TIMING.quick)
    assert turns.recognised(1, "What time is it?") == []
    assert hear(turns, TIMING.end_question - TIMING.quick - 1, speech=False) == []
    assert turns.hear(False) == [Said(10, 30, "What time is it?"), Reply("What time is it?")]
    assert turns.agent is Agent.THINKING


def test_a_recognition_later_than_the_end_answers_when_it_comes() -> None:
    turns = Turns()
    hear(turns, 20, speech=True)
    hear(turns, 40, speech=False)
    assert kinds(turns.recognised(1, "Hello.")) == ["Said", "Reply"]


def test_the_end_of_the_call_ends_an_utterance_that_nobody_answers() -> None:
    turns = Turns()
    assert turns.end() == []
    turns = Turns()
    hear(turns, 20, speech=True)
    (recognise,) = turns.end()
    assert recognise == Recognise(1, 0, 20)
    assert turns.wants(1)
    assert turns.recognised(1, "Bye.") == [Said(0, 20, "Bye.")]
    assert turns.end() == []


def test_what_was_recognised_at_a_pause_is_said_when_the_call_ends_in_it() -> None:
    turns = Turns()
    hear(turns, 20, speech=True)
    hear(turns, TIMING.quick, speech=False)
    turns.recognised(1, "My number is")
    assert turns.end() == [Said(0, 20, "My number is")]
    waiting = Turns()
    hear(waiting, 20, speech=True)
    hear(waiting, TIMING.quick, speech=False)
    assert waiting.end() == []
    assert waiting.recognised(1, "My number is") == [Said(0, 20, "My number is")]


def test_a_click_at_the_end_of_the_call_is_not_recognised() -> None:
    turns = Turns()
    hear(turns, TIMING.onset, speech=True)
    assert turns.end() == []


def test_a_pause_inside_a_sentence_does_not_end_it() -> None:
    turns = Turns()
    hear(turns, 20, speech=True)
    assert kinds(hear(turns, TIMING.quick, speech=False)) == ["Recognise"]
    assert turns.recognised(1, "My number is") == []
    assert hear(turns, TIMING.end_open - TIMING.quick - 1, speech=False) == []
    assert turns.wants(1)
    hear(turns, 10, speech=True)
    assert not turns.wants(1)
    assert turns.recognised(1, "My number is") == []
    (again,) = hear(turns, TIMING.quick, speech=False)
    assert isinstance(again, Recognise)
    assert (again.attempt, again.start) == (2, 0)


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("Is that all?", TIMING.end_question),
        ("That is all.", TIMING.end),
        ("My card was declined at a Home Depot in Miami.", TIMING.end_statement),
        ("That is all and", TIMING.end_open),
        ("It is 4 1 1", TIMING.end_open),
        ("Well...", TIMING.end_open),
        ("", TIMING.end_noise),
    ],
)
def test_how_long_silence_ends_a_turn_depends_on_its_words(text: str, wait: int) -> None:
    turns = Turns()
    hear(turns, 20, speech=True)
    hear(turns, TIMING.quick, speech=False)
    turns.recognised(1, text)
    waited = TIMING.quick
    while turns.caller_talks:
        turns.hear(False)
        waited += 1
    assert waited == wait


def test_the_agent_pauses_after_200_ms_of_speech_and_a_real_interruption_is_answered() -> None:
    turns = speaking()
    assert hear(turns, TIMING.barge_in - 1, speech=True) == []
    assert turns.hear(True) == [Pause()]
    assert turns.agent.name == "HELD"
    assert kinds(talk(turns, "I want a person.")) == ["Recognise", "Said", "Reply"]
    assert turns.agent is Agent.THINKING


@pytest.mark.parametrize("text", ["Mm-hm.", "Right.", "Okay.", "Uh-huh.", "Yeah, okay.", "I see.", ""])
def test_a_backchannel_lets_the_agent_go_on(text: str) -> None:
    turns = speaking()
    said = ["Said"] if text else []
    assert kinds(talk(turns, text, 10)) == ["Pause", "Recognise", *said, "Resume"]
    assert turns.agent is Agent.SPEAKING


@pytest.mark.parametrize("text", ["No.", "Stop.", "Wait a second.", "Okay, but what does it cost?", "Goodbye."])
def test_words_that_ask_for_the_floor_get_it_even_when_short_and_unsure(text: str) -> None:
    actions = talk(speaking(), text, 8, confidence=-1.4)
    assert kinds(actions) == ["Pause", "Recognise", "Said", "Reply"]
    assert actions[-1] == Reply(text)


def test_a_hum_that_becomes_a_guess_lets_the_agent_go_on_but_a_clear_sentence_does_not() -> None:
    assert kinds(talk(speaking(), "Mama.", 12, confidence=-0.8))[-1] == "Resume"
    assert kinds(talk(speaking(), "David Cohen.", 12, confidence=-0.1))[-1] == "Reply"
    assert kinds(talk(speaking(), "It is lisinopril.", 40, confidence=-1.2))[-1] == "Reply"


def test_yeah_in_the_last_second_of_a_question_is_its_answer() -> None:
    assert kinds(talk(speaking(), "Yeah.", 10, late=True))[-1] == "Reply"
    assert kinds(talk(speaking(), "", 10, late=True))[-1] == "Resume"


def test_a_click_neither_pauses_nor_is_recognised() -> None:
    turns = speaking()
    assert hear(turns, TIMING.onset, speech=True) + hear(turns, 30, speech=False) == []
    idle = Turns()
    assert hear(idle, TIMING.onset, speech=True) + hear(idle, 30, speech=False) == []


def test_who_goes_on_before_the_reply_is_heard_gets_one_answer_to_both() -> None:
    turns = Turns()
    assert kinds(talk(turns, "I want to book a visit."))[-1] == "Reply"
    hear(turns, 10, speech=True)
    assert not turns.agent_speaks(), "the caller is talking: hold the reply"
    assert talk(turns, "For Tuesday.")[-1] == Reply("I want to book a visit. For Tuesday.", instead=True)


def cut_in_on(turns: Turns) -> list[Action]:
    """The caller says one thing, the agent begins to answer, and the caller says another."""
    talk(turns, "My card was just declined at a Home Depot.")
    turns.agent_speaks()
    hear(turns, TIMING.unheard - 10, speech=False)
    return talk(turns, "What is going on?")


def test_an_agent_that_cut_in_starts_again_with_all_that_was_said() -> None:
    actions = cut_in_on(Turns())
    assert kinds(actions) == ["Pause", "Recognise", "Said", "Reply"]
    assert actions[-1] == Reply("My card was just declined at a Home Depot. What is going on?", instead=True)


def silence_that_ends(turns: Turns, text: str) -> int:
    hear(turns, 20, speech=True)
    hear(turns, TIMING.quick, speech=False)
    turns.recognised(turns.attempts, text)
    waited = TIMING.quick
    while turns.caller_talks:
        turns.hear(False)
        waited += 1
    return waited


def test_having_cut_in_the_agent_waits_longer_but_not_for_ever() -> None:
    turns = Turns()
    for times in range(5):
        cut_in_on(turns)
        turns.agent_finished()
        assert silence_that_ends(turns, "That is all.") == min(
            TIMING.end + (times + 1) * TIMING.cut_in, TIMING.end_open
        )
        turns.agent_finished()


def test_a_caller_who_pauses_long_within_a_turn_is_given_longer_after_a_statement() -> None:
    turns = Turns()
    hear(turns, 20, speech=True)
    hear(turns, TIMING.end_statement - 3, speech=False)
    told = silence_that_ends(turns, "My card was declined at a Home Depot in Miami.")
    assert told == TIMING.end_statement - 3 + TIMING.beyond
    turns.agent_finished()
    assert silence_that_ends(turns, "Is that all?") == TIMING.end_question


def test_a_backchannel_while_the_reply_is_prepared_keeps_the_reply() -> None:
    turns = Turns()
    talk(turns, "I want to book a visit.")
    hear(turns, 6, speech=True)
    assert not turns.agent_speaks()
    assert kinds(talk(turns, "Okay.", 2))[-1] == "Resume"


def test_after_the_agent_has_been_heard_an_interruption_stands_alone() -> None:
    turns = Turns()
    talk(turns, "I want to book a visit.")
    turns.agent_speaks()
    hear(turns, 60, speech=False)
    assert talk(turns, "For Tuesday.")[-1] == Reply("For Tuesday.")


def test_thanks_bye_does_not_stop_a_goodbye_but_one_more_thing_does() -> None:
    turns = speaking()
    turns.closing = True
    assert kinds(talk(turns, "Thank you, bye."))[-1] == "Resume"
    assert kinds(talk(turns, "Oh, one more thing."))[-1] == "Reply"
    assert not turns.closing


def test_a_long_silence_is_asked_about_once_until_the_agent_has_asked() -> None:
    turns = speaking()
    assert hear(turns, 2 * TIMING.patience, speech=False) == []
    turns.agent_finished()
    actions = hear(turns, 2 * TIMING.patience, speech=False)
    assert actions == [StillThere()]
    turns.agent_speaks()
    turns.agent_finished()
    assert hear(turns, TIMING.patience + 1, speech=False) == [StillThere()]


def test_a_very_long_turn_is_recognised_in_pieces_and_answered_whole() -> None:
    turns = Turns()
    actions = hear(turns, TIMING.longest + 50, speech=True)
    assert kinds(actions) == ["Recognise"]
    (rest,) = hear(turns, TIMING.quick, speech=False)
    assert isinstance(rest, Recognise)
    hear(turns, TIMING.end_open, speech=False)
    assert turns.recognised(rest.attempt, "and that is all.") == [], "the first piece is still missing"
    assert turns.recognised(1, "It all began")[-1] == Reply("It all began and that is all.")


def test_at_a_pause_in_a_long_turn_what_was_recognised_is_kept() -> None:
    turns = Turns()
    hear(turns, TIMING.piece + 20, speech=True)
    (first,) = hear(turns, TIMING.quick, speech=False)
    assert isinstance(first, Recognise)
    turns.recognised(first.attempt, "It all began")
    hear(turns, 20, speech=True)
    (second,) = hear(turns, TIMING.quick, speech=False)
    assert isinstance(second, Recognise)
    assert second.end - second.start < 50
    turns.recognised(second.attempt, "on Monday.")
    assert hear(turns, TIMING.end, speech=False)[-1] == Reply("It all began on Monday.")


def test_an_utterance_in_pieces_is_as_sure_as_the_least_sure_of_them() -> None:
    turns = Turns()
    hear(turns, TIMING.piece + 20, speech=True)
    (first,) = hear(turns, TIMING.quick, speech=False)
    assert isinstance(first, Recognise)
    turns.recognised(first.attempt, "It all began", -0.5)
    hear(turns, 20, speech=True)
    (second,) = hear(turns, TIMING.quick, speech=False)
    assert isinstance(second, Recognise)
    turns.recognised(second.attempt, "on Monday.", -0.1)
    said = hear(turns, TIMING.end, speech=False)[-2]
    assert isinstance(said, Said)
    assert said.confidence == -0.5
