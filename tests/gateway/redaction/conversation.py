"""A conversation for tests: what both sides say, one after the other, fed to a redactor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gateway.redaction.findings import LONG_SECONDS
from gateway.redaction.lines import GAP_SECONDS
from gateway.redaction.redactor import ARRIVAL_SECONDS, SETTLE_SECONDS, Mute, Redacted, Redactor
from gateway.redaction.rules import KINDS, Rules
from gateway.transcript import Speaker, Utterance

ALL = Rules.of([kind for kind in KINDS if kind != "card_but_last_four"])
CARD = Rules.of(["card"])
PAUSE = 1.0


def said(*turns: tuple[Speaker, str], start: float = 1.0) -> list[Utterance]:
    """Utterances one after the other, as long as they take to say."""
    result, at = [], start
    for number, (speaker, text) in enumerate(turns, 1):
        end = at + max(0.4, 0.09 * len(text) + 0.25 * sum(char.isdigit() for char in text))
        result.append(Utterance(number, speaker, text, at, end))
        at = end + PAUSE
    return result


class Watcher:
    """Whoever sees what the redactor lets through."""

    def __init__(self) -> None:
        self.seen: dict[int, Utterance] = {}
        self.mutes: list[Mute] = []
        self.ever: list[str] = []
        self.safe_until = 0.0

    def see(self, redacted: Redacted) -> Redacted:
        for utterance in redacted.utterances:
            self.ever.append(utterance.text)
            if utterance.text:
                self.seen[utterance.number] = utterance
            else:
                del self.seen[utterance.number]
        for mute in redacted.mutes:
            assert mute.start >= self.safe_until, "sound was called safe, and muted after that"
        self.mutes += redacted.mutes
        assert redacted.safe_until >= self.safe_until
        self.safe_until = redacted.safe_until
        return redacted

    def texts(self) -> list[str]:
        return [one.text for one in sorted(self.seen.values(), key=lambda one: (one.start, one.number))]


def redacted(utterances: Sequence[Utterance], rules: Rules = ALL, lag: float = 0.7) -> Watcher:
    """Each utterance comes `lag` seconds after it was said; then the call ends."""
    redactor, watcher = Redactor(rules), Watcher()
    for utterance in utterances:
        watcher.see(redactor.update([utterance], utterance.end + lag))
    watcher.see(redactor.finish())
    return watcher


def texts(*turns: tuple[Speaker, str], rules: Rules = ALL) -> list[str]:
    return redacted(said(*turns), rules).texts()


def is_muted(mutes: Iterable[Mute], speaker: Speaker, start: float, end: float) -> bool:
    """Whether every moment of a span is."""
    at = start
    for mute in sorted((one for one in mutes if one.speaker == speaker), key=lambda one: one.start):
        if mute.start <= at:
            at = max(at, mute.end)
    return at >= end


LONGEST_HOLD = LONG_SECONDS + GAP_SECONDS + ARRIVAL_SECONDS + SETTLE_SECONDS
