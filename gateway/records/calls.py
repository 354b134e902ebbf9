"""Reading calls: one with all that belongs to it, pages of many, and what was said in them.

Owns queries and how a stored call becomes its document. Every page is found through an index, however
many calls there are: pages are continued from where the last one ended, never counted off.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    RowMapping,
    Select,
    and_,
    func,
    literal_column,
    or_,
    select,
    table,
    text,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.call_document import CallMetrics, CallRecord, to_document
from gateway.leg import Outcome
from gateway.records.tables import call_texts, calls, deliveries, events, utterances
from gateway.transcript import Utterance

PAGE = 50
PAGE_MOST = 500
LARGEST_PLACE = 18
"""Digits of a row's number: more do not fit the databases' integers of 64 bits."""
WORDS = table("call_words")
"""SQLite's index of words."""
FEW = 1_000
"""Calls that are sorted rather than met in their order."""


class QueryInvalid(Exception):
    """What was asked for cannot be looked for; the message says why."""


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls; what is empty does not matter."""

    number: str = ""
    """The caller's or ours, exactly."""
    persona: str = ""
    end_reason: str = ""
    state: str = ""
    since: float | None = None
    """Started at that moment or later, seconds since 1970."""
    until: float | None = None
    """Started before that moment."""
    words: str = ""
    """All of them were said in the call. Only calls that are over are found by words."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the calls, newest first, and where the next page begins; empty: there is none."""

    calls: Sequence[Mapping[str, Any]]
    next: str


async def find(connection: AsyncConnection, wanted: CallFilter, after: str = "", limit: int = PAGE) -> Page:
    """A page of calls. `after`: `Page.next` of the page before. Raises QueryInvalid."""
    limit = max(1, min(limit, PAGE_MOST))
    if wanted.words:
        return await _find_words(connection, wanted, after, limit)
    conditions = [*_conditions(wanted), *_earlier(after)]
    newest = (calls.c.started_at.desc(), calls.c.id.desc())

    def page(*more: ColumnElement[bool]) -> Select[Any]:
        return select(calls).where(*conditions, *more).order_by(*newest).limit(limit + 1)

    if wanted.number:
        # Two index look-ups that are merged; with OR, all calls of a busy number would be sorted.
        theirs, ours = calls.c.from_number == wanted.number, calls.c.to_number == wanted.number
        sides = (page(theirs), page(ours, calls.c.from_number != wanted.number))
        both = union_all(*(select(side.subquery()) for side in sides)).subquery()
        order = (both.c.started_at.desc(), both.c.id.desc())
        rows = (await connection.execute(select(both).order_by(*order).limit(limit + 1))).mappings().all()
    else:
        rows = (await connection.execute(page())).mappings().all()
    following = cursor_to(rows[limit - 1]["started_at"], rows[limit - 1]["id"]) if len(rows) > limit else ""
    return Page([_with_plain_names(row) for row in rows[:limit]], following)


async def _find_words(connection: AsyncConnection, wanted: CallFilter, after: str, limit: int) -> Page:
    """Calls in which the words were said, those that ended last first."""
    where, values = _said(connection.dialect.name, wanted.words)
    conditions = [*_conditions(wanted), text(where).bindparams(**values)]
    if wanted.number:
        conditions.append(or_(calls.c.from_number == wanted.number, calls.c.to_number == wanted.number))
    source = call_texts.join(calls, calls.c.id == call_texts.c.call_id)
    place: ColumnElement[int] = call_texts.c.id
    if connection.dialect.name == "sqlite":
        source = WORDS.join(source, literal_column("call_words.rowid") == call_texts.c.id)
        # FTS5 walks its matches in this order by itself; by any other it would sort them all.
        place = literal_column("call_words.rowid")
    elif await _are_few(connection, where, values):
        # An expression has no index, so the calls are found by their words and sorted. By itself PostgreSQL
        # would walk them from the newest on, and look at thousands to find a page of those with a rare word.
        place = call_texts.c.id + 0
    if after:
        conditions.append(place < _number(after))
    query = select(calls, place.label("place")).select_from(source).where(*conditions)
    rows = (await connection.execute(query.order_by(place.desc()).limit(limit + 1))).mappings().all()
    following = _encode(str(rows[limit - 1]["place"])) if len(rows) > limit else ""
    return Page([_with_plain_names(row) for row in rows[:limit]], following)


async def _are_few(connection: AsyncConnection, where: str, values: Mapping[str, str]) -> bool:
    """Whether the words were said in few calls."""
    said = select(call_texts.c.id).where(text(where).bindparams(**values)).limit(FEW + 1).subquery()
    return (await connection.scalar(select(func.count()).select_from(said)) or 0) <= FEW


def _said(dialect: str, words: str) -> tuple[str, dict[str, str]]:
    """The condition that all words were said. Raises QueryInvalid if there are no words."""
    found = re.findall(r"\w+", words)
    if not found:
        raise QueryInvalid("the text to look for has no words")
    if dialect == "sqlite":
        return "call_words MATCH :words", {"words": " ".join(f'"{word}"' for word in found)}
    return (
        "call_texts.words @@ plainto_tsquery('simple', :words)",
        {"words": " ".join(found)},
    )


def _conditions(wanted: CallFilter) -> list[Any]:
    exact = {"persona": wanted.persona, "end_reason": wanted.end_reason, "state": wanted.state}
    conditions: list[Any] = [calls.c[name] == value for name, value in exact.items() if value]
    if wanted.since is not None:
        conditions.append(calls.c.started_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(calls.c.started_at < wanted.until)
    return conditions


def _earlier(after: str) -> list[ColumnElement[bool]]:
    """What comes after the cursor, newest first."""
    if not after:
        return []
    at, call_id = place_at(after)
    same = and_(calls.c.started_at == at, calls.c.id < call_id)
    return [calls.c.started_at <= at, or_(calls.c.started_at < at, same)]


def place_at(after: str) -> tuple[float, str]:
    """The moment and the id that `cursor_to` put into a cursor. Raises QueryInvalid."""
    moment, _, name = _decode(after).partition(" ")
    try:
        return float(moment), name
    except ValueError:
        raise QueryInvalid("the cursor is none of ours; leave it out to begin with the newest") from None


def _number(after: str) -> int:
    decoded = _decode(after)
    if not decoded.isdecimal() or len(decoded) > LARGEST_PLACE:
        raise QueryInvalid("the cursor is none of ours; leave it out to begin with the newest")
    return int(decoded)


def cursor_to(moment: float, name: str) -> str:
    """Where a page ended: at a row of that moment, seconds since 1970, and of that id."""
    return _encode(f"{moment!r} {name}")


def _encode(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode().rstrip("=")


def _decode(cursor: str) -> str:
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise QueryInvalid("the cursor is none of ours; leave it out to begin with the newest") from None


async def row_of(connection: AsyncConnection, call_id: str) -> RowMapping | None:
    """The call's row, if there is one."""
    found = await connection.execute(select(calls).where(calls.c.id == call_id))
    return found.mappings().one_or_none()


async def utterances_of(connection: AsyncConnection, call_id: str) -> list[Utterance]:
    """What was said in it, ordered by start."""
    query = (
        select(utterances)
        .where(utterances.c.call_id == call_id, or_(utterances.c.text != "", utterances.c.unsaid != ""))
        .order_by(utterances.c.start, utterances.c.number)
    )
    rows = (await connection.execute(query)).mappings()
    return [Utterance(**{name: value for name, value in row.items() if name != "call_id"}) for row in rows]


async def events_of(connection: AsyncConnection, call_id: str) -> list[dict[str, Any]]:
    """What happened in it: `at` in seconds from answer, `kind`, `data`."""
    query = select(events.c.at, events.c.kind, events.c.data).where(events.c.call_id == call_id)
    rows = (await connection.execute(query.order_by(events.c.at, events.c.number))).mappings()
    return [_with_plain_names(row) for row in rows]


async def deliveries_of(connection: AsyncConnection, call_id: str) -> list[dict[str, Any]]:
    """What endpoints were told of it and with what success, in order."""
    names = ("id", "endpoint", "event", "state", "attempts", "status", "reason", "created_at", "due", "settled_at")
    query = select(*(deliveries.c[name] for name in names)).where(deliveries.c.call_id == call_id)
    rows = (await connection.execute(query.order_by(deliveries.c.endpoint, deliveries.c.place))).mappings()
    return [_with_plain_names(row) for row in rows]


def _with_plain_names(row: RowMapping) -> dict[str, Any]:
    """SQLAlchemy's names are strings of a kind of their own, which orjson refuses as keys."""
    return {str(name): value for name, value in row.items()}


async def outcome_of(connection: AsyncConnection, carrier_call_id: str) -> tuple[str, Outcome] | None:
    """The state of the carrier's call, `live` or `ended`, and how it ended; None: never heard of it."""
    query = select(calls).where(calls.c.carrier_call_id == carrier_call_id).order_by(calls.c.started_at.desc()).limit(1)
    row = (await connection.execute(query)).mappings().one_or_none()
    if row is None:
        return None
    return row["state"], Outcome(row["end_reason"], row["transfer_target"], row["fallback"])


async def calls_by_state(connection: AsyncConnection) -> dict[str, int]:
    """How many calls there are, live and ended."""
    query = select(calls.c.state, func.count()).group_by(calls.c.state)
    return {str(state): int(number) for state, number in await connection.execute(query)}


def document_of(row: Mapping[str, Any], said: Sequence[Utterance]) -> dict[str, Any]:
    """The call as `transcript.json` has it. A live call has no `ended_at` and an empty `end_reason`."""
    known = {name: value for name, value in row["metrics"].items() if name in CallMetrics.__dataclass_fields__}
    started = datetime.fromtimestamp(row["started_at"], UTC)
    document = to_document(
        CallRecord(
            call_id=row["id"],
            persona=row["persona"],
            persona_version=row["persona_version"],
            engine=row["engine"],
            from_number=row["from_number"],
            to_number=row["to_number"],
            started_at=started,
            ended_at=started if row["ended_at"] is None else datetime.fromtimestamp(row["ended_at"], UTC),
            end_reason=row["end_reason"],
            utterances=said,
            metrics=CallMetrics(**known),
        )
    )
    return document if row["ended_at"] is not None else {**document, "ended_at": None}
