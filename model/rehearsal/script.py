"""Which of a script's answers a turn asks for, given what the agent said last.

Owns the candidates, their thresholds and the place in the script. Says nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.rehearsal import lines
from model.rehearsal.intents import Turn, polarity
from model.rehearsal.matcher import CERTAIN, Candidate, Matcher, occurs, words
from model.wire import Answer, Script

REPLY_BONUS = 0.1
"""Added to the score of an answer that directly replies to what the agent said last."""
URGENT_PENALTY = -0.2
"""Added to an emergency's score by meaning: its short phrases are near to any talk of medicine."""
_AGREED = frozenset(
    ("okay", "ok", "alright", "all right", "fine", "right", "good", "great", "perfect", "okay please", "please")
)


class ScriptPlace:
    """One script and where in it one conversation is."""

    def __init__(self, script: Script, matcher: Matcher) -> None:
        self._answers = {answer.id: answer for answer in script.answers}
        self._matcher = matcher
        self.last: Answer | None = None
        """The answer said last; small talk does not move it."""

    def prepare(self) -> None:
        self._matcher.prepare([phrase for answer in self._answers.values() for phrase in answer.when])

    def urgent(self, turn: Turn) -> Answer | None:
        """The emergency that a turn speaks of: by its words, so that none is missed; meaning is `meant`'s."""
        urgent = [answer for answer in self._answers.values() if answer.urgent]
        return next((a for a in urgent if any(occurs(phrase, turn.text) for phrase in a.when)), None)

    def meant(self, turn: Turn, asked: bool) -> list[Answer]:
        """The answers that a turn asks for, at most two, the likeliest first. `asked`: the agent had a question."""
        if reply := self.yes_or_no(turn, asked):
            return [reply]
        if "hum" in turn.intents:
            return []
        found = self._found(turn)
        start = polarity(turn.tokens[:1])
        if not found and asked and start:
            return [a for a in self._answers.values() if self._follows(a) and lines.side(a) == start][:1]
        best = sorted(found, key=lambda name: -found[name])[:2]
        sure = [name for name in best[1:] if found[name] >= self._matcher.threshold + CERTAIN]
        answers = [self._answers[name] for name in [*best[:1], *sure]]
        related = {name for answer in answers for name in answer.after}
        return [answer for answer in answers if answer.id not in related or answer is answers[0]]

    def transfer(self, turn: Turn) -> Answer | None:
        """The answer that transfers to just the person asked for, if there is one."""
        transfers = [c for c in self._candidates(turn) if self._answers[c.id].then == "transfer"]
        ranked = self._matcher.rank(turn.text, transfers)
        sure = ranked and ranked[0].score >= self._matcher.threshold + CERTAIN
        return self._answers[ranked[0].id] if sure else None

    def awaits_reply(self) -> bool:
        """Whether the script has answers to what the caller may reply to the last one."""
        return any(self._follows(answer) for answer in self._answers.values())

    def yes_or_no(self, turn: Turn, asked: bool) -> Answer | None:
        """What a bare yes or no means after the last answer. `asked`: the agent's last sentence was a question."""
        agreed = turn.polarity if turn.bare else 0
        if asked and not agreed and ("mm-hm" in turn.intents or " ".join(turn.tokens) in _AGREED):
            agreed = 1
        if not agreed:
            return None
        return next((a for a in self._answers.values() if self._follows(a) and lines.side(a) == agreed), None)

    def any_reply(self) -> Answer | None:
        """The answer to whatever the caller says to the last one, if the script has one without examples."""
        return next((a for a in self._answers.values() if self._follows(a) and not a.when), None)

    def _found(self, turn: Turn) -> dict[str, float]:
        """Scores of the best answer to the whole turn and to each of its sentences, where in scope."""
        candidates = self._candidates(turn)
        texts = dict.fromkeys([lines.without_opening(turn.text), *map(lines.without_opening, turn.parts)])
        found: dict[str, float] = {}
        for text in texts:
            if len(words(text)) < 2 and len(texts) > 1:
                continue
            ranked = self._matcher.rank(text, candidates)
            if ranked and ranked[0].score >= self._matcher.threshold:
                found[ranked[0].id] = max(found.get(ranked[0].id, 0.0), ranked[0].score)
        return found

    def _candidates(self, turn: Turn) -> Sequence[Candidate]:
        """What may be meant now: answers for any time, and those that reply to the last one."""
        found = []
        for answer in self._answers.values():
            follows = self._follows(answer)
            if not answer.when or (answer.after and not follows):
                continue
            # Sentence vectors hardly tell a denial from its opposite.
            if follows and turn.polarity and lines.side(answer) == -turn.polarity:
                continue
            bonus = URGENT_PENALTY if answer.urgent else REPLY_BONUS if follows else 0.0
            found.append(Candidate(answer.id, answer.when, bonus))
        return found

    def _follows(self, answer: Answer) -> bool:
        return self.last is not None and self.last.id in answer.after
