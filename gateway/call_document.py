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
    """What a call measured of itself: milliseconds, and counts of 80 ms frames."""

    answer_ms: float = 0.0
    response_ms: Sequence[float] = ()
    frames_in: int = 0
    frames_out: int = 0
    frames_lost: int = 0
    """20 ms frames of the caller's, and the next of the agent's: they never came, came too late, or were left out."""
    agent_frames_lost: int = 0
    agent_frames_late: int = 0
    """Frames that the engine says it answered more than 80 ms after they came, or were due."""
    deadline_misses: int = 0


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
        "metrics": {
            **asdict(record.metrics),
            "answer_ms": round(record.metrics.answer_ms, 1),
            "response_ms": [round(value, 1) for value in record.metrics.response_ms],
        },
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
