"""What is said to a turn that the script has no answer to: small talk, stray numbers, not knowing.

Owns these replies. They do nothing and end nothing; what the conversation is about stays as it is.
"""

from __future__ import annotations

from model.rehearsal import lines
from model.rehearsal.heard_text import digit_runs
from model.rehearsal.intents import Turn
from model.rehearsal.slots import is_secret
from model.rehearsal.speech_text import digit_by_digit
from model.wire import Script


class SmallTalk:
    """Replies beside one script."""

    def __init__(self, script: Script, prompt: str) -> None:
        self._script = script
        self._prompt = prompt

    def offer_person(self) -> list[str]:
        """The question whether the caller wants a person; nothing if there is nobody."""
        return [lines.person_offer(self._script.unknown)] if self._script.person else []

    def reply(self, turn: Turn, offer: lines.Offer, *, served: bool, asking: bool = False) -> list[str]:
        """Small talk; empty if the turn is none, [""] if silence is the reply.

        `offer`: what the agent offered last. `served`: something was answered before in this call.
        `asking`: the agent asks its own question after this, so nothing here invites the caller to speak.
        """
        if "hum" in turn.intents:
            return [""]
        if "complaint" in turn.intents:
            return [lines.SORRY_TROUBLE, *([] if asking else self.offer_person() or [lines.WHAT_ELSE])]
        if line := lines.small_talk(turn, self._prompt):
            if asking or (offer == "more" and "thanks" in turn.intents):
                return [line]
            return [line, lines.ANYTHING_ELSE if served else lines.HOW_HELP]
        if "help" in turn.intents:
            return [lines.GO_AHEAD]
        if "acknowledge" in turn.intents or turn.bare:
            return self._acknowledged(turn, offer, served, asking)
        return []

    def stray_number(self, turn: Turn) -> list[str]:
        """A number nobody asked for is read back, unless it is a secret."""
        number = max(digit_runs(turn.text), key=len, default="")
        if len(number) < 3:
            return []
        if is_secret(turn.text):
            return [lines.KEEP_SECRET]
        return [lines.HEARD_NUMBER.format(number=digit_by_digit(number)), *self.offer_person()]

    def not_known(self, again: bool) -> list[str]:
        """Says plainly that it does not know. `again`: for the second time in a row."""
        if again:
            return [lines.UNKNOWN_AGAIN, *(self.offer_person() or [lines.WHAT_ELSE])]
        return [lines.without_offer(self._script.unknown), *(self.offer_person() or [lines.WHAT_ELSE])]

    def not_understood(self, times: int) -> list[str]:
        """There was speech, but no words: for the `times`th time in a row, from 1."""
        if times >= 2 and self._script.person:
            return [lines.STILL_UNCLEAR, *self.offer_person()]
        return [lines.UNCLEAR[(times - 1) % len(lines.UNCLEAR)]]

    def _acknowledged(self, turn: Turn, offer: lines.Offer, served: bool, asking: bool) -> list[str]:
        """To an "okay", or a yes or no to nothing in particular."""
        if turn.polarity > 0 and offer == "more":
            return [lines.GO_AHEAD]
        if offer == "more" or not served:
            return [""]
        return [*([lines.ALL_RIGHT] if turn.polarity < 0 else []), *([] if asking else [lines.ANYTHING_ELSE])]
