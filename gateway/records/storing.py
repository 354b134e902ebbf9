"""The statements that put portions of calls into the tables.

Every one may be run again with the same rows and changes nothing then: after a connection that broke
while it committed, nobody knows whether the rows are there.

A call may have been erased while its gateway could not tell what it had kept: of such a call nothing is written
any more. Whoever writes holds the calls' rows until it commits, and so does whoever erases: it finds what we wrote,
or we find that it was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Executable, RowMapping, Table, bindparam, delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import insert_of
from gateway.records.portion import Portion, call_row, end_row, event_row, text_row, utterance_row
from gateway.records.tables import call_texts, calls, events, utterances

ROWS = 64
"""Rows of one statement, and so how long preparing it holds the event loop. What all of it costs the calls'
frames is measured by `callplex bench gateway --words`."""


async def store(connection: AsyncConnection, instance: str, portions: Sequence[Portion]) -> list[Portion]:
    """Write the portions of this gateway's calls; returns those of calls that are not erased, which alone are written.

    Raises what the driver raises.
    """
    begun = [call_row(portion.start, instance) for portion in portions if portion.begins]
    await _execute(connection, _new(connection.dialect.name, calls), begun)
    erased = await _hold(connection, [portion.start.call_id for portion in portions])
    kept = [portion for portion in portions if portion.start.call_id not in erased]
    await _write(connection, kept)
    return kept


async def hold(connection: AsyncConnection, call_id: str) -> RowMapping | None:
    """The call's row, which nobody else changes or adds to until this transaction is over."""
    query = select(calls).where(calls.c.id == call_id).with_for_update(key_share=True)
    return (await connection.execute(query)).mappings().one_or_none()


async def _hold(connection: AsyncConnection, call_ids: Sequence[str]) -> set[str]:
    """Hold the calls' rows; returns which of them are erased."""
    erased: set[str] = set()
    # In order, from one portion to the next too, so that no two wait for each other.
    ordered = sorted(call_ids)
    for first in range(0, len(ordered), ROWS):
        query = select(calls.c.id, calls.c.erased_at).where(calls.c.id.in_(ordered[first : first + ROWS]))
        # SQLite has one writer at a time, and needs no hold.
        rows = await connection.execute(query.order_by(calls.c.id).with_for_update(key_share=True))
        erased |= {call_id for call_id, erased_at in rows if erased_at is not None}
    return erased


async def _write(connection: AsyncConnection, portions: Sequence[Portion]) -> None:
    dialect = connection.dialect.name
    over = {portion.start.call_id: portion.end for portion in portions if portion.end is not None}
    if over:
        # The end knows all that was said; what was taken back since is not said.
        gone = [{"over": call_id} for call_id in over]
        await _execute(connection, delete(utterances).where(utterances.c.call_id == bindparam("over")), gone)
    said = [
        utterance_row(portion.start.call_id, one)
        for portion in portions
        for one in (portion.end.utterances if portion.end is not None else portion.utterances)
    ]
    await _execute(connection, _replacing(dialect, utterances, "call_id", "number"), said)
    happened = [event_row(portion.start.call_id, one) for portion in portions for one in portion.events]
    await _execute(connection, _new(dialect, events), happened)
    begun_to_record = [
        {"over": portion.start.call_id, "recording": portion.recording} for portion in portions if portion.recording
    ]
    await _execute(connection, update(calls).where(calls.c.id == bindparam("over")), begun_to_record)
    ended = [
        {"over": portion.start.call_id, **end_row(portion.start, portion.end)}
        for portion in portions
        if portion.end is not None
    ]
    await _execute(connection, update(calls).where(calls.c.id == bindparam("over")), ended)
    texts = [text_row(portion.start.call_id, portion.end) for portion in portions if portion.end is not None]
    await _execute(connection, _replacing(dialect, call_texts, "call_id"), texts)


# Built once: the columns of `excluded` hold each other, a hundred objects that would be garbage with each write.


@cache
def _new(dialect: str, table: Table) -> Executable:
    """An insert that leaves what is there under the same key."""
    return insert_of(dialect, table).on_conflict_do_nothing()


@cache
def _replacing(dialect: str, table: Table, *key: str) -> Executable:
    """An insert that replaces what is there under the same key."""
    statement = insert_of(dialect, table)
    newer = {column.name: statement.excluded[column.name] for column in table.c if column.name not in ("id", *key)}
    return statement.on_conflict_do_update(index_elements=key, set_=newer)


async def _execute(connection: AsyncConnection, statement: Executable, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run it for each row, a bounded number at a time."""
    for first in range(0, len(rows), ROWS):
        await connection.execute(statement, [dict(row) for row in rows[first : first + ROWS]])
