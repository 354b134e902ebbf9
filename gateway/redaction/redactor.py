"""The redactor of one call: utterances in as they grow, out once nothing in them can be redacted any more.

Owns what is held back and for how long. Time is the call's seconds, given with each update. What is not
decidable yet (figures that may go on in the next turn, words still being recognised) is held; the rest
of the same utterance is not. Pure: no clock, no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from gateway.redaction.findings import Judgement, judge, may_go_on
from gateway.redaction.lines import Finding, Line
from gateway.redaction.rules import Rules
from gateway.redaction.word_times import BEYOND
from gateway.transcript import Speaker, Utterance, word_seconds

SETTLE_SECONDS = 2.0
"""After a word, in which the same utterance may go on or be taken back."""
ARRIVAL_SECONDS = 10.0
"""From the beginning of what somebody says until its text is here: as long as they speak, and the recognition."""
LONGEST_TURN_SECONDS = 45.0
"""A turn whose text comes later than this after it began finds its sound committed already."""
DECIDED_BEFORE_SAFE = 5.0
"""So long before sound is called safe, what has no text by then counts as not recognised."""
REMEMBERED_SECONDS = 90.0
"""How long an utterance that was shown whole still tells what the next ones are about."""
UNSETTLED_SECONDS = 30.0
"""An utterance that goes on for longer is shown in parts, whatever patterns may still match."""


LONG_SOUND_SECONDS = 5.0
LEAST_SPOKEN = 0.4
"""Of a long sound, the share that its words take to say at least, by their letters; else words were lost."""


@dataclass(frozen=True, slots=True)
class Mute:
    """Sound of one side that must not be kept: seconds of the call."""

    speaker: Speaker
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Redacted:
    """What an update brought."""

    utterances: tuple[Utterance, ...]
    """New or changed: each replaces what was shown under its number, an empty text removes it. While a part is
    held back, `final` is false and the text ends before that part."""
    mutes: tuple[Mute, ...]
    safe_until: float
    """Seconds of the call before which no more sound will be muted."""


@dataclass(slots=True)
class _Held:
    """An utterance that may still change, and what was shown of it."""

    line: Line
    shown: Utterance | None = None
    muted: list[tuple[float, float]] = field(default_factory=list)
    whole: bool = False


class Redactor:
    """One call's. Without rules everything passes at once."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._held: dict[int, _Held] = {}
        self._pending: dict[int, Utterance] = {}
        """Still being recognised."""
        self._now = 0.0
        self._finished = False
        self._unheard_until = 0.0
        self._judgement: Judgement | None = None
        """Of what is held now; None: something has changed since. Time alone changes no judgement."""
        self._safe = 0.0
        self._card_sound: set[tuple[float, float]] = set()

    @property
    def remembered(self) -> int:
        """How many utterances it still knows."""
        return len(self._held) + len(self._pending)

    def update(self, utterances: Iterable[Utterance], now: float) -> Redacted:
        """Take in what is new or changed, as `Transcript.add` gives it, or nothing, to let time pass.

        `now`: seconds of the call; it may stand still, but going back counts as standing still.
        """
        self._now = max(self._now, now)
        if not self._rules:
            return Redacted(tuple(utterances), (), self._now)
        removed = [gone for utterance in utterances if (gone := self._take(utterance)) is not None]
        return self._decide(removed)

    def finish(self) -> Redacted:
        """The call is over: decide what is left. Everything is safe after this."""
        self._finished = True
        for utterance in list(self._pending.values()):
            self._take(replace(utterance, final=True))
        done = self._decide([])
        return replace(done, safe_until=float("inf"))

    def _take(self, utterance: Utterance) -> Utterance | None:
        """Note an utterance; returns its removal if it was shown and is taken back."""
        held = self._held.get(utterance.number)
        if not utterance.final:
            self._pending[utterance.number] = utterance
            return None
        self._pending.pop(utterance.number, None)
        if not utterance.text:
            self._held.pop(utterance.number, None)
            self._judgement = None
            return utterance if held and held.shown else None
        if held is None:
            self._held[utterance.number] = _Held(Line(utterance))
            self._judgement = None
        elif held.line.utterance != utterance:
            held.line = Line(utterance)
            held.whole = False
            self._judgement = None
        return None

    def _decide(self, removed: Sequence[Utterance]) -> Redacted:
        order = sorted(self._held.values(), key=lambda held: (held.line.utterance.start, held.line.number))
        if self._judgement is None:
            self._judgement = judge([held.line for held in order], self._rules)
        judgement = self._judgement
        closed = {} if self._finished else self._held_from(judgement, order)
        shown: list[Utterance] = list(removed)
        mutes: list[Mute] = []
        for held in order:
            findings = _merged([one for one in judgement.findings if one.number == held.line.number])
            mutes += _new_mutes(held, findings)
            until = closed.get(held.line.number, len(held.line.text))
            view = _view(held.line.utterance, findings, until)
            held.whole = until >= len(held.line.text)
            if view.text and view != held.shown:
                held.shown = view
                shown.append(view)
        mutes += self._card_mutes(judgement)
        mutes += self._unheard_mutes(order)
        self._safe = max(self._safe, self._safe_until(order, closed))
        self._forget()
        return Redacted(tuple(shown), tuple(mutes), self._safe)

    def _card_mutes(self, judgement: Judgement) -> list[Mute]:
        new = [span for span in judgement.card_sound if span not in self._card_sound]
        self._card_sound.update(new)
        return [Mute("caller", max(start, self._safe), end) for start, end in new if end > self._safe]

    def _unheard_mutes(self, order: Sequence[_Held]) -> list[Mute]:
        """What the caller said and no text has come of cannot be judged, so its sound is not kept.

        Silence loses nothing by being muted. Decided when texts can hardly come any more.
        """
        decided = self._now + (LONGEST_TURN_SECONDS if self._finished else DECIDED_BEFORE_SAFE - LONGEST_TURN_SECONDS)
        found: list[Mute] = []
        at = self._unheard_until
        for held in order:
            utterance = held.line.utterance
            if held.line.channel != "caller" or utterance.end + BEYOND <= at or _lacks_words(utterance):
                continue
            if (begins := min(utterance.start - BEYOND, decided)) > at:
                found.append(Mute("caller", at, begins))
            at = max(at, min(utterance.end + BEYOND, decided))
        if at < decided:
            found.append(Mute("caller", at, decided))
        self._unheard_until = max(self._unheard_until, decided)
        return found

    def _held_from(self, judgement: Judgement, order: Sequence[_Held]) -> dict[int, int]:
        """From which place on the text of an utterance cannot be shown yet; those not in it can be, wholly."""
        places: dict[int, int] = {}

        def hold(line: Line, place: int) -> None:
            places[line.number] = min(place, places.get(line.number, place))

        for held in order:
            if (place := self._unsettled(held.line)) is not None:
                hold(held.line, place)
        for undecided in judgement.open:
            row = undecided.row
            last = row.figures[-1].line
            waits = may_go_on(row) and self._now < undecided.until + ARRIVAL_SECONDS
            if waits or (last.number in places and places[last.number] < len(last.text)):
                for line, start, _ in row.pieces():
                    hold(line, start)
        return places

    def _unsettled(self, line: Line) -> int | None:
        """The place of the first word after which not enough time has passed; None if there is none."""
        end = line.utterance.end
        if self._now >= end + SETTLE_SECONDS:
            return None
        if self._rules.custom and self._now < line.utterance.start + UNSETTLED_SECONDS:
            return 0
        return line.times.first_after(self._now - SETTLE_SECONDS)

    def _safe_until(self, order: Sequence[_Held], closed: dict[int, int]) -> float:
        if self._finished:
            return float("inf")
        until = self._now - LONGEST_TURN_SECONDS
        for held in order:
            if (place := closed.get(held.line.number)) is not None:
                until = min(until, held.line.times.muted(place, len(held.line.text))[0])
        return max(0.0, until)

    def _forget(self) -> None:
        """Let go of what was shown whole and is too old to matter."""
        for number, held in list(self._held.items()):
            if held.whole and held.line.utterance.end < self._now - REMEMBERED_SECONDS:
                del self._held[number]
                self._judgement = None


def _lacks_words(utterance: Utterance) -> bool:
    """Whether recognition wrote so few words for so long a sound that it must have lost some."""
    seconds = utterance.end - utterance.start
    spoken = sum(word_seconds(word) for word in utterance.text.split())
    return seconds >= LONG_SOUND_SECONDS and spoken < LEAST_SPOKEN * seconds


def _merged(findings: Sequence[Finding]) -> list[Finding]:
    """In order and without overlaps: of two that overlap the first one's label stands for both."""
    merged: list[Finding] = []
    for one in sorted(findings, key=lambda finding: (finding.start, -finding.end)):
        if merged and one.start < merged[-1].end:
            merged[-1] = replace(merged[-1], end=max(merged[-1].end, one.end))
        else:
            merged.append(one)
    return merged


def _view(utterance: Utterance, findings: Sequence[Finding], until: int) -> Utterance:
    """The utterance as it may be seen: masked, and cut off at `until`."""
    parts: list[str] = []
    place = 0
    for one in findings:
        if one.start >= until:
            break
        parts += [utterance.text[place : one.start], f"[{one.label}]"]
        place = one.end
    parts.append(utterance.text[place:until])
    text = "".join(parts).rstrip()
    return replace(utterance, text=text, final=utterance.final and until >= len(utterance.text), onsets=())


def _new_mutes(held: _Held, findings: Sequence[Finding]) -> list[Mute]:
    new = []
    for one in findings:
        start, end = held.line.times.muted(one.start, one.end)
        if not any(known[0] <= start and end <= known[1] for known in held.muted):
            held.muted.append((start, end))
            new.append(Mute(held.line.utterance.speaker, start, end))
    return new
