"""Calls that nobody made, for tests of what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.call_document import CallRecord, to_document
from gateway.records.database import Database, insert
from gateway.records.portion import CallEnd, CallStart
from gateway.records.tables import deliveries
from gateway.transcript import Utterance
from gateway.webhooks.events import Event

NOON = 1_790_000_000.0
SAID = (
    Utterance(1, "agent", "Thank you for calling.", 0.4, 1.9),
    Utterance(2, "caller", "My card was declined.", 2.5, 4.0, confidence=0.75),
    Utterance(3, "agent", "I can", 4.4, 4.8, interrupted=True, unsaid="look that up."),
)


def start(call_id: str = "c1", **values: Any) -> CallStart:
    known: dict[str, Any] = {
        "carrier": "twilio",
        "carrier_call_id": f"CA-{call_id}",
        "direction": "inbound",
        "from_number": "+15550199",
        "to_number": "+15550100",
        "persona": "bank",
        "persona_version": "0123456789ab",
        "fallback": "+15550999",
        "started_at": NOON,
    }
    return CallStart(call_id, **{**known, **values})


def end(begun: CallStart, said: Sequence[Utterance] = SAID, reason: str = "caller_hangup", **values: Any) -> CallEnd:
    ended_at = begun.started_at + 60
    document = to_document(
        CallRecord(
            begun.call_id,
            begun.persona,
            begun.persona_version,
            "echo",
            begun.from_number,
            begun.to_number,
            datetime.fromtimestamp(begun.started_at, UTC),
            datetime.fromtimestamp(ended_at, UTC),
            reason,
            said,
        )
    )
    return CallEnd(ended_at, reason, document, said, engine="echo", **values)


async def put(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Deliveries of the events to one endpoint, in the fewest words."""
    for place, event in enumerate(events):
        row = {
            "id": event.webhook_id("crm"),
            "endpoint": "crm",
            "event": event.kind,
            "call_id": event.call_id,
            "place": place,
            "created_at": event.at,
            "body": event.body(),
            "due": event.at,
            "give_up_at": event.at + 1e9,  # never, or a running gateway gives up what it has no endpoint for
        }
        await connection.execute(insert(connection, deliveries).values(row).on_conflict_do_nothing())


async def all_of(database: Database, table: sa.Table) -> list[Mapping[str, Any]]:
    async with database.read() as connection:
        rows = await connection.execute(sa.select(table).order_by(*table.primary_key.columns))
        return [dict(row) for row in rows.mappings()]
