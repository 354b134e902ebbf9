"""Words that leave the floor to the agent, that ask for it, and that finish a turn."""

from __future__ import annotations

import pytest

from model.rehearsal.backchannel import Ending, asks_for_floor, ending, is_backchannel


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
    ("text", "left"),
    [
        ("What is going on?", Ending.QUESTION),
        ("That is what I asked for.", Ending.SHORT),
        ("That is what I asked for", Ending.OPEN),
        ("I would like to book an.", Ending.OPEN),
        ("It was declined and,", Ending.OPEN),
        ("My number is 4 1 1 1.", Ending.OPEN),
        ("My name is David Cohen", Ending.SHORT),
        ("Hi, my card was just declined at a Home Depot in Miami.", Ending.STATEMENT),
        ("My card was declined at a Home Depot. It was twelve hundred dollars.", Ending.STATEMENT),
        ("No, that is all I needed to know from you today. Thank you, bye.", Ending.SHORT),
        ("Well...", Ending.OPEN),
        ("", Ending.OPEN),
    ],
)
def test_how_a_turn_has_ended(text: str, left: Ending) -> None:
    assert ending(text) is left
