"""What endpoints are told, each kind with its JSON Schema in `schemas/`. Pure.

Owns the kinds of events, their JSON and their identity. An event has one identity however often it is
stored: a call that two gateways close at once, or that is closed again after a crash, still ends once.
Knows nothing of endpoints, databases or HTTP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from gateway.transcript import Utterance

VERSION = 1
"""Of every schema. A field may be added without a new version; one that changes or goes makes version 2."""

STARTED = "call.started"
TRANSCRIPT_UPDATED = "call.transcript.updated"
ENDED = "call.ended"
TRANSFERRED = "call.transferred"
FAILED = "call.failed"
KINDS = (STARTED, TRANSCRIPT_UPDATED, ENDED, TRANSFERRED, FAILED)
OPT_IN = frozenset({TRANSCRIPT_UPDATED})
"""Kinds that an endpoint gets only if it names them."""
TEST = "callplex.test"
"""What `callplex webhooks test` sends; no call makes it."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a call, for whoever wants to know."""

    kind: str
    call_id: str
    persona: str
    at: float
    """When, seconds since 1970."""
    data: Mapping[str, Any]
    """As the kind's schema says."""

    @property
    def identity(self) -> str:
        """The same for the same event, however often it is told: most kinds happen once in a call."""
        number = f"#{self.data['number']}" if self.kind == TRANSCRIPT_UPDATED else ""
        return f"{self.call_id}\n{self.kind}{number}"

    def body(self) -> str:
        """The event as it is stored and posted: `type`, `version`, `timestamp` and `data`."""
        envelope = {"type": self.kind, "version": VERSION, "timestamp": timestamp(self.at), "data": dict(self.data)}
        return orjson.dumps(envelope).decode()

    def webhook_id(self, endpoint: str) -> str:
        """The `webhook-id` at one endpoint, for ever."""
        digest = hashlib.sha256("\n".join((self.identity, endpoint)).encode()).hexdigest()
        return f"msg_{digest[:32]}"


class EventUnreadable(LookupError):
    """A stored event is not what we store."""


def stored(body: str) -> dict[str, Any]:
    """The event that `Event.body` wrote. Raises EventUnreadable."""
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("data"), dict):
        raise EventUnreadable
    return event


def timestamp(at: float) -> str:
    """Seconds since 1970 as `2026-01-31T12:00:00.000Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def started(
    call_id: str,
    persona: str,
    at: float,
    *,
    persona_version: str,
    carrier: str,
    direction: str,
    from_number: str,
    to_number: str,
) -> Event:
    """A call was answered."""
    data = {
        "call_id": call_id,
        "persona": persona,
        "persona_version": persona_version,
        "carrier": carrier,
        "direction": direction,
        "from": from_number,
        "to": to_number,
        "started_at": timestamp(at),
    }
    return Event(STARTED, call_id, persona, at, data)


def transcript_updated(call_id: str, persona: str, at: float, number: int, changed: Iterable[Utterance]) -> Event:
    """What was said since the last such event; `number` counts those of the call, from 1.

    Each utterance replaces what was told before under its number, and an empty text takes it back.
    """
    utterances = [
        {
            "number": one.number,
            "speaker": one.speaker,
            "text": one.text,
            "start": round(one.start, 2),
            "end": round(one.end, 2),
            "interrupted": one.interrupted,
            "final": one.final,
        }
        for one in changed
    ]
    data = {"call_id": call_id, "persona": persona, "number": number, "utterances": utterances}
    return Event(TRANSCRIPT_UPDATED, call_id, persona, at, data)


def ended(document: Mapping[str, Any], at: float) -> Event:
    """A call is over; `document` is its transcript.json."""
    return Event(ENDED, str(document["call_id"]), str(document["persona"]), at, document)


def transferred(call_id: str, persona: str, at: float, *, from_number: str, to_number: str, target: str) -> Event:
    """The caller was connected to somebody else: `target`, a number or address."""
    data = {
        "call_id": call_id,
        "persona": persona,
        "from": from_number,
        "to": to_number,
        "target": target,
        "transferred_at": timestamp(at),
    }
    return Event(TRANSFERRED, call_id, persona, at, data)


def failed(
    call_id: str, persona: str, at: float, *, from_number: str, to_number: str, reason: str, fallback: str = ""
) -> Event:
    """The agent could not serve the caller: `reason` is the call's end reason, such as `worker_lost` or `lost`."""
    data = {
        "call_id": call_id,
        "persona": persona,
        "from": from_number,
        "to": to_number,
        "reason": reason,
        "fallback": fallback,
        "failed_at": timestamp(at),
    }
    return Event(FAILED, call_id, persona, at, data)


def sample(kind: str, at: float) -> Event:
    """An event of made-up data that its schema allows: for tests of endpoints and of templates."""
    call_id, persona, caller, us = "call_sample", "first-neuron-bank", "+15550199", "+15550100"
    words = [
        Utterance(1, "agent", "Thank you for calling. How can I help?", 0.4, 2.9),
        Utterance(2, "caller", 'What are your "hours"?\nToday, I mean.', 3.4, 4.8),
        Utterance(3, "agent", "We are open until", 5.2, 6.0, interrupted=True),
    ]
    if kind == STARTED:
        return started(
            call_id,
            persona,
            at,
            persona_version="0123456789ab",
            carrier="test",
            direction="inbound",
            from_number=caller,
            to_number=us,
        )
    if kind == TRANSCRIPT_UPDATED:
        return transcript_updated(call_id, persona, at, 1, words)
    if kind == TRANSFERRED:
        return transferred(call_id, persona, at, from_number=caller, to_number=us, target="+15550142")
    if kind == FAILED:
        return failed(call_id, persona, at, from_number=caller, to_number=us, reason="worker_lost")
    if kind == TEST:
        return Event(TEST, call_id, persona, at, {"call_id": call_id, "message": "A test from Callplex."})
    return ended(_sample_document(call_id, persona, caller, us, at, words), at)


def _sample_document(
    call_id: str, persona: str, caller: str, us: str, at: float, words: Iterable[Utterance]
) -> dict[str, Any]:
    return {
        "call_id": call_id,
        "persona": persona,
        "persona_version": "0123456789ab",
        "engine": "rehearsal",
        "from": caller,
        "to": us,
        "started_at": timestamp(at - 7),
        "ended_at": timestamp(at),
        "end_reason": "caller_hangup",
        "utterances": [
            {
                "speaker": one.speaker,
                "text": one.text,
                "start": one.start,
                "end": one.end,
                "interrupted": one.interrupted,
            }
            for one in words
        ],
        "metrics": {
            "answer_ms": 310.0,
            "response_ms": [640.0, 580.0],
            "frames_in": 88,
            "frames_out": 88,
            "frames_lost": 0,
            "agent_frames_lost": 0,
            "agent_frames_late": 0,
            "deadline_misses": 0,
        },
    }
