"""What the agent has learnt from the caller: which questions are answered, and with what.

Owns reading a reply as the answer to a question, and putting answers into what is said. Knows no order
of conversation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from model.rehearsal.heard_text import digit_runs, read_date, read_digits, read_name, read_words
from model.rehearsal.intents import Turn
from model.rehearsal.matcher import stem, words
from model.rehearsal.speech_text import digit_by_digit, sentences
from model.wire import Question

_SECRET = re.compile(r"\b(?:pin|cvv|cvc|password|passcode|security code|code on the back|verification code)\b", re.I)
_LAST_FOUR = re.compile(r"\blast (?:four|4)\b", re.I)


class Slots:
    """The questions of one script and the answers given in one call."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = {question.name: question for question in questions}
        self._values: dict[str, str] = {}

    def copy(self) -> Slots:
        """The same answers, unmoved by what is filled in from now on."""
        same = Slots(tuple(self._questions.values()))
        same._values = dict(self._values)
        return same

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def fill(self, question: Question, value: str) -> None:
        self._values[question.name] = value

    def forget(self, name: str) -> Question:
        """Drop an answer that was wrong; returns its question, to be asked again."""
        self._values.pop(name, None)
        return self._questions[name]

    def missing(self, needs: Sequence[str]) -> list[Question]:
        """Questions of `needs` without an answer, in their order; unknown names are passed over."""
        return [self._questions[name] for name in needs if name in self._questions and name not in self._values]

    def volunteered(self, turn: Turn) -> dict[str, str]:
        """Answers found in a turn without having been asked for, by question."""
        found: dict[str, str] = {}
        for question in self._questions.values():
            if question.kind == "name":
                value = "" if _not_the_caller(question) else read_name(turn.text, asked=False)
            elif question.kind == "digits":
                value = _named_number(question, turn)
            elif question.kind == "date" and question.name not in self._values:
                value = read_date(turn.text, question.name + " " + question.ask, asked=False)
            else:
                value = ""
            if value and value != self._values.get(question.name):
                found[question.name] = value
        return found

    def fill_in(self, text: str) -> str:
        """Text with `{name}` replaced by what the caller said; numbers are read digit by digit."""

        def value(match: re.Match[str]) -> str:
            question = self._questions.get(match[1])
            given = self._values.get(match[1], "")
            return digit_by_digit(given) if question and question.kind == "digits" else given

        text = re.sub(r"\{(\w+)\}", value, text)
        return re.sub(r"\s+([,.!?])", r"\1", re.sub(r",\s*(?=[,.!?])", "", text)).strip()


def read_answer(question: Question, turn: Turn) -> str:
    """A reply to a question that was just asked, or "" if it is none."""
    if question.kind == "name":
        return read_name(turn.text, asked=True)
    if question.kind == "digits":
        return _shortened(question, read_digits(turn.text))
    if question.kind == "date":
        return read_date(turn.text, question.name + " " + question.ask)
    return read_words(turn.text)


def is_secret(text: str) -> bool:
    """Whether it is about a code that must not be said aloud."""
    return bool(_SECRET.search(text.replace("_", " ")))


def just_asked(question: Question) -> str:
    """The asking sentence of a question, without the sympathy before it."""
    return sentences(question.ask)[-1] if question.ask else f"Could you tell me your {question.name.replace('_', ' ')}?"


def _shortened(question: Question, digits: str) -> str:
    return digits[-4:] if _LAST_FOUR.search(question.ask) else digits


def _not_the_caller(question: Question) -> bool:
    return bool(re.search(r"doctor|provider|merchant|company|patient", question.name))


def _named_number(question: Question, turn: Turn) -> str:
    """A number said together with the words of its question: "my account number is 1234"."""
    topic = {stem(word) for word in words(question.name.replace("_", " "))} - {stem("number"), stem("ending")}
    if not topic & {stem(token) for token in turn.tokens}:
        return ""
    return _shortened(question, max((run for run in digit_runs(turn.text) if len(run) >= 3), key=len, default=""))
