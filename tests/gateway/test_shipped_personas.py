"""The personas that come with Callplex: valid, easy to say, and fit for what they are for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.persona_model import Persona, schema_text
from gateway.personas import check_personas, load_personas, session_request
from model.wire import decode_open, encode_open

SHIPPED = Path(__file__).parents[2] / "personas"


def test_the_schema_is_current() -> None:
    command = [sys.executable, "-m", "gateway.persona_model"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, cwd=SHIPPED.parent).stdout
    assert made == schema_text()
    assert (SHIPPED / "schema.json").read_text() == made, "run: python -m gateway.persona_model > personas/schema.json"


def test_shipped_personas_and_routing_are_valid() -> None:
    assert check_personas(SHIPPED) == []


def shipped() -> list[Persona]:
    return list(load_personas(SHIPPED).values())


@pytest.mark.parametrize("persona", shipped(), ids=lambda p: p.id)
def test_a_shipped_persona_speaks_in_short_sentences(persona: Persona) -> None:
    request = session_request(persona, "c", {}, 0)
    assert decode_open(encode_open(request)) == request
    assert persona.greeting
    assert 5 <= len(persona.greeting.split()) <= 20
    for answer in request.script.answers:
        for sentence in re.split(r"(?<=[.?!])\s", answer.say):
            assert len(sentence.split()) <= 24, sentence
        if not answer.urgent:
            assert not re.search(
                r"\b(i have|i've|it is|it's) (approved|booked|blocked|cancelled|refilled)", answer.say.lower()
            )


@pytest.mark.parametrize("name", ["riverside-clinic", "greenfield-pharmacy"])
def test_healthcare_personas_know_the_words_of_an_emergency(name: str) -> None:
    script = session_request(load_personas(SHIPPED)[name], "c", {}, 0).script
    said = {phrase: answer.say for answer in script.answers if answer.urgent for phrase in answer.when}
    for phrase in ("chest pain", "can't breathe", "stroke", "overdose", "bleeding", "heart attack"):
        assert "911" in said[phrase]
    for phrase in ("not breathing", "passed out", "whole bottle of pills", "seizure"):
        assert "911" in said[phrase]
    for phrase in ("suicidal", "kill myself", "want to die"):
        assert "988" in said[phrase]


def test_the_fees_answer_is_long_enough_to_be_interrupted() -> None:
    script = session_request(load_personas(SHIPPED)["first-neuron-bank"], "c", {}, 0).script
    fees = next(answer.say for answer in script.answers if answer.id == "card-fees")
    assert len(fees.split()) >= 30, "about three words a second: ten seconds of speech"
