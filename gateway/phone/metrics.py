"""How a call felt at the caller's end, measured from the sound alone. Pure.

Input is what the caller said and what the caller heard, on one time line: int16 at 8 kHz, sample 0
of both is the start of the stream. Knows nothing of engines, transcripts or sockets. Latencies are
those of Full-Duplex-Bench's idea: reference minus first sound, from audio at the caller's end.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

FRAME_SECONDS = 0.02
FRAME_SAMPLES = 160
SOUND_LEVEL = 100
"""RMS of int16 from which 20 ms count as sound: -50 dBFS, below soft speech, above G.711's idle noise."""
JOIN = 0.3
"""Seconds: shorter gaps lie within speech (stops, between words)."""
SHORTEST = 0.06
"""Seconds: shorter sounds are clicks."""


@dataclass(frozen=True, slots=True)
class Span:
    """Seconds on the call's time line."""

    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing the caller said: where its clip lies in the call, and its words if known."""

    start: float
    end: float
    text: str = ""


@dataclass(slots=True)
class Metrics:
    """Milliseconds, and 20 ms frames."""

    connect_ms: float | None = None
    """From the request for TwiML to the open stream."""
    answer_ms: float | None = None
    """From the request for TwiML to the agent's first sound at the caller's ear."""
    response_ms: list[float | None] = field(default_factory=list)
    """For each caller turn, from the caller's last sound to the agent's first after it; null: no answer to it."""
    response_median_ms: float | None = None
    response_worst_ms: float | None = None
    interruption_ms: list[float] = field(default_factory=list)
    """For each time the caller began while the agent spoke: until the agent was silent."""
    frames_sent: int = 0
    frames_received: int = 0
    frames_lost: int = 0
    """Silence heard where the agent's sound came too late."""
    frames_cleared: int = 0
    underruns: int = 0
    unheard_ms: float = 0.0
    """Still queued when the gateway closed the stream: the caller never heard it."""


def sound_spans(pcm: bytes) -> list[Span]:
    """Where there is sound, to 20 ms."""
    samples = np.frombuffer(pcm, np.int16)
    count = len(samples) // FRAME_SAMPLES
    frames = samples[: count * FRAME_SAMPLES].reshape(count, FRAME_SAMPLES).astype(np.float64)
    loud = np.flatnonzero((frames**2).mean(axis=1) >= SOUND_LEVEL**2) if count else np.array([], int)
    spans: list[list[int]] = []
    for index in loud.tolist():
        if spans and (index - spans[-1][1]) * FRAME_SECONDS <= JOIN:
            spans[-1][1] = index + 1
        else:
            spans.append([index, index + 1])
    found = [Span(round(start * FRAME_SECONDS, 2), round(end * FRAME_SECONDS, 2)) for start, end in spans]
    return [span for span in found if span.end - span.start >= SHORTEST - 1e-9]


def caller_turns(caller: bytes, known: Sequence[Turn]) -> list[Turn]:
    """The caller's turns without the silence around them; from the sound alone when none are known."""
    spans = sound_spans(caller)
    if not known:
        return [Turn(span.start, span.end) for span in spans]
    turns: list[Turn] = []
    for turn in known:
        inside = [span for span in spans if span.end > turn.start and span.start < turn.end]
        if inside:
            start, end = max(inside[0].start, turn.start), min(inside[-1].end, turn.end)
            turns.append(Turn(start, end, turn.text))
    return turns


def response(turns: Sequence[Turn], agent: Sequence[Span]) -> list[float | None]:
    """Milliseconds from each turn's end to the agent's next beginning, within the time before the next turn.

    0 when the agent began during the turn and went on (it took over early); speech that was under
    way before the turn began answers something else and does not count.
    """
    answers: list[float | None] = []
    for index, turn in enumerate(turns):
        until = turns[index + 1].start if index + 1 < len(turns) else float("inf")
        begun = [span for span in agent if span.start > turn.start and span.end > turn.end and span.start < until]
        answers.append(_ms(max(0.0, begun[0].start - turn.end)) if begun else None)
    return answers


def interruptions(turns: Sequence[Turn], agent: Sequence[Span]) -> list[float]:
    """Milliseconds from each turn that began while the agent spoke to the agent's silence."""
    return [_ms(span.end - turn.start) for turn in turns for span in agent if span.start < turn.start < span.end]


def measure(caller: bytes, agent: bytes, known: Sequence[Turn], stream_after: float | None) -> Metrics:
    """Everything that the sound tells. `stream_after`: seconds from the request for TwiML to the stream's start."""
    spans = sound_spans(agent)
    turns = caller_turns(caller, known)
    metrics = Metrics(response_ms=response(turns, spans), interruption_ms=interruptions(turns, spans))
    if stream_after is not None:
        metrics.connect_ms = _ms(stream_after)
        if spans:
            metrics.answer_ms = _ms(stream_after + spans[0].start)
    answered = [value for value in metrics.response_ms if value is not None]
    if answered:
        metrics.response_median_ms = statistics.median(answered)
        metrics.response_worst_ms = max(answered)
    return metrics


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
