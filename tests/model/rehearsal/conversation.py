"""A caller who talks with the dialogue in text, and reads what it would say."""

from __future__ import annotations

from collections.abc import Iterator

from model.rehearsal.dialogue import Dialogue
from model.rehearsal.pieces import End, Sentence

DECLINED = "Hi, my card was just declined at a Home Depot in Miami. It was twelve hundred dollars. What is going on?"
GOODBYE = "Thank you for calling. Goodbye. <goodbye>"
TO_PERSON = "One moment, I am connecting you to a colleague. <transfer representative>"


class Call:
    """A dialogue, with each reply as one string; ends are in angle brackets."""

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.greeting = read(dialogue.greeting())

    def say(self, *turns: str) -> str:
        """The reply to the last of these turns."""
        return [read(self.dialogue.reply(turn)) for turn in turns][-1]

    def interrupted(self, *, after: str) -> None:
        self.dialogue.spoken(after, complete=False)


def read(pieces: Iterator[Sentence | End]) -> str:
    parts = [p.text if isinstance(p, Sentence) else f"<{p.reason} {p.target}>".replace(" >", ">") for p in pieces]
    return " ".join(parts)
