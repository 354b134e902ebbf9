"""What is stored of a call in one go, as rows that both databases take. Pure.

Owns the forms: how a call begins and ends in the records, and that no text the world sends us can make
a row unstorable. Knows no connections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson
from sqlalchemy import Table

from gateway.records.tables import calls
from gateway.records.tables import events as events_table
from gateway.transcript import Utterance
from gateway.webhooks import events
from gateway.webhooks.events import Event

FAILURES = frozenset({"busy", "failed", "lost", "protocol_error", "shutdown", "worker_lost"})
"""End reasons after which the caller had not been served: `call.failed` is told beside `call.ended`."""


@dataclass(frozen=True, slots=True)
class CallStart:
    """Known when a call is answered. `started_at`: seconds since 1970."""

    call_id: str
    carrier: str
    carrier_call_id: str
    direction: str
    from_number: str
    to_number: str
    persona: str
    persona_version: str
    fallback: str
    started_at: float
    recording: str = ""
    """Its name in the store, where recording began with the call."""
    files_on: str = ""
    """On whose disk its files lie, as `files.place_of` says; empty: a version before this one stored it."""


@dataclass(frozen=True, slots=True)
class CallEvent:
    """Something that happened in a call; `number` counts them within it."""

    number: int
    at: float
    """Seconds from answer."""
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Known when a call is over. `document` is its transcript.json, `utterances` all that was said."""

    ended_at: float
    reason: str
    document: Mapping[str, Any]
    utterances: Sequence[Utterance]
    target: str = ""
    engine: str = ""
    recording: str = ""


@dataclass(frozen=True, slots=True)
class Portion:
    """A piece of one call's record: what is new since the last one."""

    start: CallStart
    begins: bool
    """The call's own row may not be there yet."""
    utterances: Sequence[Utterance] = ()
    events: Sequence[CallEvent] = ()
    end: CallEnd | None = None
    update: int = 0
    """Counts the portions of the call that said something, from 1; 0: this one says nothing new."""
    recording: str = ""
    """Its name in the store, where recording began since the last portion."""

    def news(self, now: float) -> list[Event]:
        """What endpoints are to be told of it."""
        told: list[Event] = []
        start, end = self.start, self.end
        if self.begins:
            told.append(started_event(start))
        if self.update:
            said = end.utterances if end is not None else self.utterances
            told.append(events.transcript_updated(start.call_id, start.persona, now, self.update, said))
        if end is not None:
            told += ending_events(start, end)
        return told


def started_event(start: CallStart) -> Event:
    return events.started(
        start.call_id,
        start.persona,
        start.started_at,
        persona_version=start.persona_version,
        carrier=start.carrier,
        direction=start.direction,
        from_number=start.from_number,
        to_number=start.to_number,
    )


def ending_events(start: CallStart, end: CallEnd) -> list[Event]:
    """`call.ended`, and before it `call.transferred` or `call.failed` where that is how it ended."""
    told = [events.ended(end.document, end.ended_at)]
    numbers = {"from_number": start.from_number, "to_number": start.to_number}
    if end.reason == "transfer":
        told.insert(0, events.transferred(start.call_id, start.persona, end.ended_at, target=end.target, **numbers))
    elif end.reason in FAILURES:
        reason = {"reason": end.reason, "fallback": start.fallback}
        told.insert(0, events.failed(start.call_id, start.persona, end.ended_at, **reason, **numbers))
    return told


def start_of(row: Mapping[str, Any]) -> CallStart:
    """What was known when the call of this row was answered."""
    return CallStart(call_id=row["id"], **{name: row[name] for name in CallStart.__slots__ if name != "call_id"})


def call_row(start: CallStart, instance: str) -> dict[str, Any]:
    """The row of a call that has just been answered by the gateway `instance`."""
    row = {**asdict(start), "id": start.call_id, "instance": instance, "state": "live"}
    del row["call_id"]
    return fitting(calls, row)


def end_row(start: CallStart, end: CallEnd) -> dict[str, Any]:
    """The columns of a call's row that its end fills in."""
    row = {
        "state": "ended",
        "ended_at": end.ended_at,
        "end_reason": end.reason,
        "transfer_target": end.target,
        "engine": end.engine,
        "metrics": dict(end.document.get("metrics", {})),
        "recording": end.recording,
    }
    return fitting(calls, row)


def utterance_row(call_id: str, one: Utterance) -> dict[str, Any]:
    return {
        "call_id": call_id,
        "number": one.number,
        "speaker": one.speaker,
        "text": one.text,
        "unsaid": one.unsaid,
        "start": one.start,
        "end": one.end,
        "interrupted": one.interrupted,
        "final": one.final,
        "confidence": one.confidence,
    }


def text_row(call_id: str, end: CallEnd) -> dict[str, Any]:
    """What a call is found by."""
    return {"call_id": call_id, "text": "\n".join(one.text for one in end.utterances if one.text)}


def event_row(call_id: str, one: CallEvent) -> dict[str, Any]:
    row = {"call_id": call_id, "number": one.number, "at": one.at, "kind": one.kind, "data": plain(one.data)}
    return fitting(events_table, row)


def clean_start(start: CallStart) -> CallStart:
    return CallStart(**plain(asdict(start)))


def clean_end(end: CallEnd) -> CallEnd:
    said = tuple(map(clean_utterance, end.utterances))
    return replace(end, document=plain(end.document), utterances=said, target=storable(end.target))


def clean_utterance(one: Utterance) -> Utterance:
    return replace(one, text=storable(one.text), unsaid=storable(one.unsaid))


def storable(text: str) -> str:
    """The text without what PostgreSQL refuses (NUL) and what is no character (a lone surrogate)."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def fitting(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with texts that fit their columns: a caller's number may be anything the carrier sends."""
    fits: dict[str, Any] = {}
    for name, value in row.items():
        length = getattr(table.c[name].type, "length", None)
        fits[name] = storable(value)[:length] if isinstance(value, str) else value
    return fits


def to_json(portion: Portion) -> bytes:
    """The portion as a file's content."""
    return orjson.dumps(asdict(portion))


def from_json(data: bytes) -> Portion:
    """Read what `to_json` wrote. Raises ValueError if it is nothing of the kind."""
    found = orjson.loads(data)
    try:
        end = found["end"]
        if end is not None:
            end = CallEnd(**{**end, "utterances": [Utterance(**one) for one in end["utterances"]]})
        return Portion(
            start=CallStart(**found["start"]),
            begins=bool(found["begins"]),
            utterances=[Utterance(**one) for one in found["utterances"]],
            events=[CallEvent(**one) for one in found["events"]],
            end=end,
            update=int(found["update"]),
            recording=str(found.get("recording", "")),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a portion of a call ({error})") from None


def begun_to_json(instance: str, portion: Portion) -> bytes:
    """A call that the gateway `instance` answers, as a file's content."""
    return orjson.dumps({"instance": instance, "start": asdict(portion.start)})


def begun_from_json(data: bytes) -> tuple[str, Portion]:
    """Read what `begun_to_json` wrote. Raises ValueError if it is nothing of the kind."""
    found = orjson.loads(data)
    try:
        return str(found["instance"]), Portion(CallStart(**found["start"]), begins=True)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not the beginning of a call ({error})") from None


def plain(value: Any) -> Any:
    """The value with texts that JSON and both databases can hold."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value
