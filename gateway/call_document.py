"""A call that is over -> the document it leaves behind: `transcript.json`, and `data` of `call.ended`. Pure.

Owns the document's fields and their rounding. Where utterances come from is `gateway.transcript`'s affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.transcript import Utterance


@dataclass(frozen=True, slots=True)
class CallMetrics:
    """What a call measured of itself. What is None was not counted, as in calls of older versions, and is left out."""

    answer_ms: float = 0.0
    """Milliseconds from the open line to the agent's first sound, as the line is given it; 0 if there was none.

    What the line has in hand, 20 ms unless sound was held up, is heard first and not in it, nor in `response_ms`.
    """
    response_ms: Sequence[float] = ()
    """Milliseconds from the end of the caller's speech to the agent's next sound, for each turn."""
    frames_in: int = 0
    """80 ms frames of the caller's that the engine was given."""
    frames_out: int = 0
    """80 ms frames of the agent's that the line was given."""
    frames_lost: int = 0
    """20 ms frames of the caller's that never came, came too late, or were left out to catch up."""
    agent_frames_lost: int | None = None
    """20 ms of the agent's for which the line was silent, as they came too late, or that were left out to catch up.

    Pauses that were shortened to catch up are no loss.
    """
    agent_frames_late: int | None = None
    """80 ms frames that the engine says it answered more than 80 ms after they came, or were due, and those that waited
    for longer when the call ended.

    Of those that were answered none where it does not say: echo, rehearsal, a worker of an older version.
    """
    deadline_misses: int = 0
    """Ticks of the call's clock, of 80 ms, that were over 20 ms late."""
    caller_unheard_after: float | None = None
    """Seconds of the call from which on its caller may not be written down, for the worker was lost; None: all was."""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """All that `transcript.json` and the `call.ended` webhook say of a call."""

    call_id: str
    persona: str
    persona_version: str
    engine: str
    from_number: str
    to_number: str
    started_at: datetime
    ended_at: datetime
    end_reason: str
    utterances: Sequence[Utterance] = ()
    metrics: CallMetrics = field(default_factory=CallMetrics)


def to_document(record: CallRecord) -> dict[str, Any]:
    """The JSON object of `transcript.json`. Dates must know their zone; they are written in UTC."""
    return {
        "call_id": record.call_id,
        "persona": record.persona,
        "persona_version": record.persona_version,
        "engine": record.engine,
        "from": record.from_number,
        "to": record.to_number,
        "started_at": _timestamp(record.started_at),
        "ended_at": _timestamp(record.ended_at),
        "end_reason": record.end_reason,
        "utterances": [_utterance(one) for one in record.utterances],
        "metrics": _metrics(record.metrics),
    }


def _metrics(measured: CallMetrics) -> dict[str, Any]:
    return {
        **{name: value for name, value in asdict(measured).items() if value is not None},
        "answer_ms": round(measured.answer_ms, 1),
        "response_ms": [round(value, 1) for value in measured.response_ms],
    }


def _utterance(one: Utterance) -> dict[str, Any]:
    """One of `utterances` in that object; `unsaid` and `confidence` are there only where there is something to say."""
    document = {
        "speaker": one.speaker,
        "text": one.text,
        "start": round(one.start, 2),
        "end": round(one.end, 2),
        "interrupted": one.interrupted,
    }
    if one.unsaid:
        document["unsaid"] = one.unsaid
    if one.confidence is not None:
        document["confidence"] = round(one.confidence, 2)
    return document


def _timestamp(moment: datetime) -> str:
    if moment.tzinfo is None:
        raise ValueError("started_at and ended_at must know their time zone")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
