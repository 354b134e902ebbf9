"""`callplex bench redaction`: how much of spoken card numbers is gone from text and sound, and false alarms.

Owns the calls and the figures. Callers are synthesised with known times of their digits, speak at the pace
of a call to a real worker with the shipped recogniser, and what it hears goes through the redactor.
Sound counts as muted only if the redactor said so before it called that sound safe to keep.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gateway.audio import SILENCE, Upsampler, level
from gateway.bench.card_callers import CardCaller, Turn, card_callers, voices
from gateway.engine import EngineError, Session
from gateway.personas import load_personas, session_request
from gateway.phone.script import CALLERS
from gateway.phone.sound import read_wav
from gateway.pool import WorkerPool
from gateway.redaction.beside_card import is_pronoun
from gateway.redaction.figures import read
from gateway.redaction.redactor import Mute, Redacted, Redactor
from gateway.redaction.rules import KINDS, Rules
from gateway.settings import Settings
from gateway.transcript import Transcript, Utterance
from model.wire import (
    FRAME_SECONDS,
    AgentFrame,
    AgentText,
    Answer,
    CallerText,
    Done,
    Flush,
    Question,
    Script,
    SessionRequest,
)

PERSONAS = Path(__file__).parents[2] / "personas"
ORDINARY = (
    ("bank-declined", "first-neuron-bank"),
    ("bank-hours", "first-neuron-bank"),
    ("bank-barge-in", "first-neuron-bank"),
    ("clinic-appointment", "riverside-clinic"),
    ("clinic-refill", "greenfield-pharmacy"),
)
"""Recorded callers who say no card number, and whom they call."""
EVERYTHING = Rules.of([kind for kind in KINDS if kind != "card_but_last_four"])
CARD = Rules.of(["card"])
_LINE_BYTES = 1280
"""80 ms at 8 kHz."""
_LOUD = 300
_QUIET_SECONDS = 1.0
"""Of the agent, before the caller goes on."""
_ANSWER_SECONDS = 5.0
"""So long the caller waits for an answer at most."""
_LAST_SECONDS = 10.0
"""The same after the last word, so that recognition can catch up."""


class NoVoices(Exception):
    """There is nothing to make callers with; the message says what to install."""


@dataclass(slots=True)
class Heard:
    """What came of one call, redacted."""

    caller: CardCaller | None
    raw: list[Utterance] = field(default_factory=list)
    shown: dict[int, Utterance] = field(default_factory=dict)
    mutes: list[Mute] = field(default_factory=list)
    spans: list[tuple[float, float, str]] = field(default_factory=list)
    """From, to (seconds of the call) and digits of what the caller said."""

    @property
    def leaked(self) -> str:
        """Figures that can still be read, of both sides."""
        texts = (one.text for one in self.shown.values())
        return "".join(
            figure.digits
            for text in texts
            for figure in read(text).figures
            if not is_pronoun(text, figure.start, figure.end)
        )

    @property
    def recognised(self) -> str:
        """Figures that recognition wrote of the caller's words."""
        texts = (one.text for one in self.raw if one.speaker == "caller")
        return "".join(figure.digits for text in texts for figure in read(text).figures)

    @property
    def masks(self) -> int:
        return sum(one.text.count("[") - one.text.count("[keypad") for one in self.shown.values())

    def muted(self, start: float, end: float) -> float:
        """Seconds of the caller's sound between two times that are muted."""
        total, at = 0.0, start
        for mute in sorted((one for one in self.mutes if one.speaker == "caller"), key=lambda one: one.start):
            first, last = max(at, mute.start), min(end, mute.end)
            if last > first:
                total, at = total + last - first, last
        return total


@dataclass(frozen=True, slots=True)
class Share:
    """Figures of one part of the calls."""

    calls: int
    digits: int
    """Said by the callers."""
    digits_heard: int
    """Figures that recognition wrote, of the callers' words."""
    digits_shown: int
    """That can still be read in what is shown of both sides."""
    text_gone: float
    audio_seconds: float
    """Of callers' digits."""
    audio_gone: float
    calls_clean: int
    """Without a digit shown and with 0.99 of the digits' sound muted."""


@dataclass(frozen=True, slots=True)
class Found:
    """The whole measurement."""

    voices: int
    phrasings_tuned_on: Share
    phrasings_held_out: Share
    ordinary_calls: int
    ordinary_masks_card_rule: int
    ordinary_masks_all_rules: int
    script_exchanges: int
    script_masks_card_rule: int
    script_masks_all_rules: int


def bench_redaction(calls: int, at_once: int, settings: Settings, *, verbose: bool, json_output: bool) -> int:
    """Measure and print the figures. Returns the exit status: 0 if at least 0.99 is gone from text and sound."""
    try:
        found = asyncio.run(measure(calls, at_once, settings, verbose=verbose))
    except (EngineError, NoVoices) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write((json.dumps(asdict(found)) if json_output else as_text(found)) + "\n")
    shares = [one for one in (found.phrasings_tuned_on, found.phrasings_held_out) if one.calls]
    return 0 if all(min(one.text_gone, one.audio_gone) >= 0.99 for one in shares) else 1


async def measure(calls: int, at_once: int, settings: Settings, *, verbose: bool = False) -> Found:
    """Start a worker, place the calls, at most `at_once` at a time. Raises EngineError, NoVoices."""
    said_by = voices()
    if not said_by:
        raise NoVoices("There is no voice to make callers with: pip install hibari-tts, or apt install flite.")
    callers = card_callers(calls, said_by)
    pool = WorkerPool(settings.model_copy(update={"engine": "rehearsal", "worker_capacity": at_once}))
    gate = asyncio.Semaphore(at_once)

    async def one(request: SessionRequest, turns: Sequence[Turn], caller: CardCaller | None, rules: Rules) -> Heard:
        async with gate:
            heard = await _Call(await pool.open(request), turns, caller, rules).run()
        if verbose:
            _tell(heard)
        return heard

    await pool.start()
    try:
        card_calls = [one(_request(caller), caller.turns, caller, CARD) for caller in callers]
        personas = load_personas(PERSONAS)
        ordinary = []
        for name, persona in ORDINARY:
            request = session_request(personas[persona], name, {}, 0)
            turn = Turn(read_wav(CALLERS / f"{name}.wav"), name, ())
            ordinary.append(one(request, [turn], None, EVERYTHING))
        results = await asyncio.gather(*card_calls, *ordinary)
    finally:
        await pool.stop()
    carded, rest = results[: len(callers)], results[len(callers) :]
    scripts = list(_exchanges())
    return Found(
        voices=len(said_by),
        phrasings_tuned_on=share([heard for heard in carded if heard.caller and not heard.caller.held_out]),
        phrasings_held_out=share([heard for heard in carded if heard.caller and heard.caller.held_out]),
        ordinary_calls=len(rest),
        ordinary_masks_card_rule=sum(_masks(heard.raw, CARD) for heard in rest),
        ordinary_masks_all_rules=sum(heard.masks for heard in rest),
        script_exchanges=len(scripts),
        script_masks_card_rule=sum(_masks(exchange, CARD) for exchange in scripts),
        script_masks_all_rules=sum(_masks(exchange, EVERYTHING) for exchange in scripts),
    )


def share(calls: Sequence[Heard]) -> Share:
    """Put together what came of some calls."""
    spans = [(heard, *span) for heard in calls for span in heard.spans]
    said = sum(len(digits) for _, _, _, digits in spans)
    shown = sum(len(heard.leaked) for heard in calls)
    heard_digits = sum(len(heard.recognised) for heard in calls)
    seconds = sum(end - start for _, start, end, _ in spans)
    muted = sum(heard.muted(start, end) for heard, start, end, _ in spans)
    return Share(
        calls=len(calls),
        digits=said,
        digits_heard=heard_digits,
        digits_shown=shown,
        text_gone=round(1 - shown / said, 4) if said else 1.0,
        audio_seconds=round(seconds, 1),
        audio_gone=round(muted / seconds, 4) if seconds else 1.0,
        calls_clean=sum(not heard.leaked and _silent(heard) for heard in calls),
    )


def _silent(heard: Heard) -> bool:
    return all(heard.muted(start, end) >= 0.99 * (end - start) for start, end, _ in heard.spans)


def as_text(found: Found) -> str:
    """The figures in a few lines."""
    lines = [f"{found.voices} voices, 8 kHz mu-law with line noise, through the rehearsal engine's recogniser"]
    for name, one in (("tuned on", found.phrasings_tuned_on), ("held out", found.phrasings_held_out)):
        lines.append(
            f"  phrasings {name}: {one.calls} calls, {one.digits} digits, {one.digits_heard} heard: "
            f"{one.text_gone:.2%} gone from text, "
            f"{one.audio_gone:.2%} of {one.audio_seconds:.0f} s muted; {one.calls_clean} calls without a trace"
        )
    lines += [
        f"  false alarms: {found.ordinary_masks_card_rule} by the card rule, {found.ordinary_masks_all_rules} by all "
        f"rules, in {found.ordinary_calls} ordinary calls",
        f"  and {found.script_masks_card_rule} by the card rule, {found.script_masks_all_rules} by all rules, in "
        f"{found.script_exchanges} exchanges of the personas' scripts",
    ]
    return "\n".join(lines)


def _request(caller: CardCaller) -> SessionRequest:
    """An agent that asks, or does not, and that reads back what it was told, or does not."""
    greeting = "Could I have your card number, please?" if caller.asked else "Hello, how can I help?"
    if not caller.reads_back:
        return SessionRequest("bench", greeting=greeting, script=Script(unknown="Okay, go on."))
    answer = Answer("read", "So that is {number}. Thank you.", when=("My card number is", "It is"), needs=("number",))
    question = Question("number", "digits", "Could you say the whole number again?")
    return SessionRequest("bench", greeting=greeting, script=Script((answer,), (question,), unknown="Okay, go on."))


class _Call:
    """One caller and one session, at the pace of a call."""

    def __init__(self, session: Session, turns: Sequence[Turn], caller: CardCaller | None, rules: Rules) -> None:
        self._session = session
        self._turns = turns
        self._heard = Heard(caller)
        self._redactor = Redactor(rules)
        self._transcript = Transcript(FRAME_SECONDS)
        self._frames = 0
        self._agent_spoke = -1.0
        self._over = asyncio.Event()
        self._committed = 0.0

    async def run(self) -> Heard:
        """Returns when the caller has hung up, or the agent has."""
        listening = asyncio.create_task(self._listen())
        loop = asyncio.get_running_loop()
        began, up = loop.time(), Upsampler()
        try:
            async for pcm in self._caller():
                await self._session.send(up(pcm), pcm)
                self._frames += 1
                self._show(self._redactor.update([], self._now))
                await asyncio.sleep(max(0.0, began + self._frames * FRAME_SECONDS - loop.time()))
                if self._over.is_set():
                    break
        finally:
            await self._session.close()
            listening.cancel()
            await asyncio.wait([listening])
        self._heard.raw = self._transcript.utterances()
        self._show(self._redactor.finish())
        return self._heard

    @property
    def _now(self) -> float:
        return self._frames * FRAME_SECONDS

    async def _caller(self) -> AsyncIterator[bytes]:
        for turn in self._turns:
            for frame in self._waiting():
                yield frame
            start = self._now
            self._heard.spans += [(start + first, start + last, digits) for first, last, digits in turn.digits]
            for place in range(0, len(turn.pcm), _LINE_BYTES):
                yield turn.pcm[place : place + _LINE_BYTES].ljust(_LINE_BYTES, b"\0")
        for frame in self._waiting(_LAST_SECONDS):
            yield frame

    def _waiting(self, longest: float = _ANSWER_SECONDS) -> Iterator[bytes]:
        """Silence until the agent has answered, or does not."""
        since = self._now
        while self._now - since < longest:
            answered = self._agent_spoke > since
            if answered and self._now - self._agent_spoke >= _QUIET_SECONDS:
                return
            yield SILENCE * (_LINE_BYTES // len(SILENCE))

    async def _listen(self) -> None:
        try:
            async for output in self._session.outputs():
                match output:
                    case AgentFrame():
                        if level(output.pcm) > _LOUD:
                            self._agent_spoke = self._now
                    case AgentText() | CallerText() | Flush():
                        self._show(self._redactor.update(self._transcript.add(output), self._now))
                    case Done():
                        return
        finally:
            self._over.set()

    def _show(self, redacted: Redacted) -> None:
        for utterance in redacted.utterances:
            self._heard.shown[utterance.number] = utterance
        for mute in redacted.mutes:
            # What was called safe is written already.
            if mute.end > self._committed:
                self._heard.mutes.append(Mute(mute.speaker, max(mute.start, self._committed), mute.end))
        self._committed = max(self._committed, redacted.safe_until)


def _exchanges() -> Iterator[list[Utterance]]:
    """What callers may say to the shipped personas, and what those answer: ordinary talk, as text."""
    for persona in load_personas(PERSONAS).values():
        request = session_request(persona, "bench", {}, 0)
        for answer in request.script.answers:
            for phrase in answer.when or ("Yes.",):
                yield [
                    Utterance(1, "agent", request.greeting or "Hello.", 0.5, 4.0),
                    Utterance(2, "caller", phrase, 5.0, 8.0),
                    Utterance(3, "agent", answer.say, 9.0, 9.0 + 0.07 * len(answer.say)),
                ]


def _masks(utterances: Sequence[Utterance], rules: Rules) -> int:
    redactor = Redactor(rules)
    shown = {one.number: one.text for one in utterances}
    for redacted in (redactor.update(utterances, utterances[-1].end if utterances else 0.0), redactor.finish()):
        shown.update({one.number: one.text for one in redacted.utterances})
    return sum(text.count("[") for text in shown.values()) - sum(one.text.count("[") for one in utterances)


def _tell(heard: Heard) -> None:
    """One call on standard error, for whoever tunes the rules."""
    parts = [f"{one.speaker[0]} {one.text!r}" for one in heard.raw]
    lost = [round(end - start - heard.muted(start, end), 2) for start, end, _ in heard.spans]
    name = heard.caller.name if heard.caller else "ordinary"
    bad = "LEAK" if heard.spans and (heard.leaked or not _silent(heard)) else "ok"
    shown = " / ".join(one.text for one in heard.shown.values())
    sys.stderr.write(f"{bad} {name}: {' | '.join(parts)} => {shown} unmuted {lost} leaked {heard.leaked!r}\n")
