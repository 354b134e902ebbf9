"""What was said in one call, by whom, and how much of the agent's last reply was heard.

Owns the record that replies are based on. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.rehearsal import lines
from model.rehearsal.chat import Message
from model.rehearsal.matcher import words

REMEMBERED = 40
"""Turns of both sides that are kept for the chat endpoint."""


class Memory:
    """The conversation so far."""

    def __init__(self) -> None:
        self.said: list[str] = []
        """The sentences of the agent's last reply."""
        self.unheard: list[str] = []
        """Those of them that the caller cut off, from the one not heard to its end on."""
        self.offer: lines.Offer = ""
        """What a yes or no would be about, besides the script: a person, or anything else."""
        self.history: list[Message] = []

    def copy(self) -> Memory:
        """The same, unmoved by what is said from now on."""
        same = Memory()
        same.said, same.unheard, same.offer = list(self.said), list(self.unheard), self.offer
        same.history = list(self.history)
        return same

    @property
    def asked(self) -> bool:
        """Whether the agent's last sentence was a question."""
        return bool(self.said) and self.said[-1].endswith("?")

    @property
    def offered_more(self) -> bool:
        return bool(self.said) and lines.offer_in(self.said[-1]) == "more"

    def caller(self, text: str) -> None:
        if text:
            self._keep(Message("user", text))

    def agent_begins(self) -> None:
        """A new reply; what is left of an older one is forgotten."""
        self.said = []
        self.unheard = []

    def agent(self, sentences: Sequence[str], aside: bool | None = None) -> None:
        """Sentences said by the agent: a whole reply, an aside that replaces none, or one more (None)."""
        if not sentences:
            return
        if aside is None and self.said:
            self.history.pop()
            sentences = [*self.said, *sentences]
        if aside is False:
            self.agent_begins()
        self._keep(Message("assistant", " ".join(sentences)))
        self.offer = lines.offer_in(sentences[-1]) or self.offer
        if not aside:
            self.said = list(sentences)

    def spoken(self, text: str, complete: bool) -> None:
        """How much of the last reply was heard. A sentence whose last words were cut counts as unheard."""
        self.unheard = []
        if complete:
            return
        left = len(words(text))
        for index, sentence in enumerate(self.said):
            left -= len(words(sentence))
            if left < 0:
                self.unheard = self.said[index:]
                break
        if self.unheard and self.history and self.history[-1].role == "assistant":
            self.history[-1] = Message("assistant", f"{text.strip()} ... (the caller interrupted here)".strip())

    def _keep(self, message: Message) -> None:
        self.history.append(message)
        del self.history[:-REMEMBERED]
