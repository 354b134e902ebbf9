"""Words that leave the floor to the agent, that ask for it, and that finish a turn."""

from __future__ import annotations

import pytest

from model.rehearsal.backchannel import asks_for_floor, is_backchannel, sounds_finished


@pytest.mark.parametrize(
    "text", ["Mm-hm.", "Uh-huh.", "right", "Okay, okay.", "I see.", "Oh, great, thank you.", "Got it"]
)
def test_listening(text: str) -> None:
    assert is_backchannel(text)
    assert not asks_for_floor(text)


@pytest.mark.parametrize("text", ["", "I", "It", "Okay, but why?", "No.", "You", "Right now I want a person", "Bye."])
def test_not_listening(text: str) -> None:
    assert not is_backchannel(text)


def test_farewells_count_only_when_the_agent_takes_its_leave() -> None:
    assert is_backchannel("Thank you, have a nice day, bye.", farewell=True) is False, "too long: worth an answer"
    assert is_backchannel("Thanks, goodbye.", farewell=True)
    assert not is_backchannel("Thanks, goodbye.")


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("What is going on?", True),
        ("That is what I asked for.", True),
        ("That is what I asked for", False),
        ("I would like to book an.", False),
        ("It was declined and,", False),
        ("My number is 4 1 1 1.", False),
        ("My name is David Cohen", True),
        ("Well...", False),
        ("", False),
    ],
)
def test_whether_a_turn_sounds_finished(text: str, finished: bool) -> None:
    assert sounds_finished(text) is finished
