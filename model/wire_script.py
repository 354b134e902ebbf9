"""What an open request says to the rehearsal engine: its answers, its questions, and its sentences.

Part of `model.wire`, which hands these names on. The duplex model works from the prompt and reads none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Question:
    """Something the agent must learn from the caller, and the sentence that asks for it."""

    name: str
    """What it is called in `Answer.needs` and as `{name}` in what the agent says."""
    kind: Literal["name", "digits", "date", "words"] = "words"
    """How the caller's reply is read: a person's name, a number, a date, or whatever was said."""
    ask: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One scripted answer of the rehearsal engine, matched by meaning against what the caller says."""

    id: str
    say: str
    when: tuple[str, ...] = ()
    """Examples of what a caller says. May be empty if the answer is only reached by `after`."""
    needs: tuple[str, ...] = ()
    """Questions whose answers must be known first; the agent asks them, then returns to this."""
    after: tuple[str, ...] = ()
    """Ids of answers that this one directly replies to; empty: it may come at any time."""
    then: Literal["", "hangup", "transfer"] = ""
    target: str = ""
    """Name of the persona's transfer target, when `then` is `transfer`."""
    urgent: bool = False
    """An emergency: said at once when any phrase of `when` occurs, whatever else is going on."""


@dataclass(frozen=True, slots=True)
class Script:
    """What the rehearsal engine says. The duplex model works from the prompt and ignores it."""

    answers: tuple[Answer, ...] = ()
    questions: tuple[Question, ...] = ()
    unknown: str = "I'm sorry, I don't know that. Would you like to speak to a person?"
    goodbye: str = "Thank you for calling. Goodbye."
    person: str = ""
    """Name of the transfer target offered with `unknown`; empty: there is nobody to offer."""
    transferring: str = "One moment, I am connecting you to a colleague."
    closed: str = "I'm sorry, nobody is available to take the call right now."
    """Said instead of transferring, when the caller wants a person and `person` is empty."""
