"""The recorded callers' words, answered by the shipped personas."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.personas import load_personas, session_request
from model.rehearsal.dialogue import Dialogue
from model.rehearsal.matcher import Matcher
from tests.model.rehearsal.conversation import DECLINED, Call

PERSONAS = Path(__file__).parents[3] / "personas"
SHIPPED = [
    (
        "first-neuron-bank",
        [
            (DECLINED, "full name"),
            ("My name is David Cohen.", "Was that you?"),
            ("Yes, that was me. Please approve the transaction.", "can't approve"),
            ("Okay, thank you. Goodbye.", "Goodbye. <goodbye>"),
        ],
    ),
    (
        "first-neuron-bank",
        [("Hello, what time does the branch close on Saturday?", "one"), ("Great, thanks, bye.", "<goodbye>")],
    ),
    (
        "first-neuron-bank",
        [
            ("Can you tell me about your credit card fees please?", "annual fee"),
            ("Wait, stop. I want to talk to a real person.", "<transfer representative>"),
        ],
    ),
    (
        "riverside-clinic",
        [
            ("Hi, I would like to book an appointment with Doctor Johnson for next Tuesday.", "Doctor Johnson has ten"),
            ("Ten in the morning works for me.", "ten on Tuesday morning"),
            ("No, that is all. Thank you.", "<goodbye>"),
        ],
    ),
    (
        "greenfield-pharmacy",
        [
            ("Good morning, I need a refill of my blood pressure medication.", "Which medicine"),
            ("It is lisinopril, ten milligrams.", "lisinopril, ten milligrams"),
            ("Bye.", "<goodbye>"),
        ],
    ),
]


@pytest.mark.parametrize(("persona", "turns"), SHIPPED)
def test_recorded_callers_are_served_by_the_shipped_personas(
    matcher: Matcher, persona: str, turns: list[tuple[str, str]]
) -> None:
    request = session_request(load_personas(PERSONAS)[persona], "call", {}, seed=0)
    call = Call(Dialogue(request, matcher))
    for heard, expected in turns:
        assert expected in call.say(heard)
