"""Calls as those who read them see them, over HTTP and on the command line: one form for both. Pure but for queries."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.calls import QueryInvalid, deliveries_of, document_of, events_of, row_of, utterances_of


def summary(row: Mapping[str, Any]) -> dict[str, Any]:
    """A call in a list."""
    over = row["ended_at"] is not None
    return {
        "call_id": row["id"],
        "state": row["state"],
        "carrier": row["carrier"],
        "direction": row["direction"],
        "from": row["from_number"],
        "to": row["to_number"],
        "persona": row["persona"],
        "persona_version": row["persona_version"],
        "engine": row["engine"],
        "started_at": stamp(row["started_at"]),
        "ended_at": stamp(row["ended_at"]),
        "seconds": round(row["ended_at"] - row["started_at"], 1) if over else None,
        "end_reason": row["end_reason"],
        "transfer_target": row["transfer_target"],
        "recorded": bool(row["recording"]),
        "erased_at": stamp(row["erased_at"]),
    }


async def record(connection: AsyncConnection, call_id: str) -> dict[str, Any] | None:
    """A call with all that belongs to it: its document, its events and its deliveries. None: there is none."""
    found = await row_of(connection, call_id)
    if found is None:
        return None
    row = dict(found)
    document = document_of(row, await utterances_of(connection, call_id))
    told = [
        {**one, **{at: stamp(one[at]) for at in ("created_at", "due", "settled_at")}}
        for one in await deliveries_of(connection, call_id)
    ]
    return {**summary(row), **document, "events": await events_of(connection, call_id), "deliveries": told}


def stamp(at: float | None) -> str | None:
    """Seconds since 1970 as `2026-01-31T12:00:00.000Z`."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment(text: str) -> float | None:
    """A date or time in ISO 8601, UTC unless it says otherwise; empty: None. Raises QueryInvalid."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise QueryInvalid(f"{text[:40]!r} is no time; write 2026-01-31 or 2026-01-31T12:00:00Z") from None
    return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
