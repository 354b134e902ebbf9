"""What is due next and what is under way are known without a look at all that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.records.database import Database
from gateway.webhooks import queue
from gateway.webhooks.events import transcript_updated

pytestmark = pytest.mark.anyio

NOW = 1_790_000_000.0


async def store(database: Database, count: int) -> None:
    """A call each second from NOW on, each told of to one endpoint."""
    async with database.begin() as connection:
        for number in range(count):
            at = NOW + number
            await queue.add(connection, [(transcript_updated(f"c{number}", "bank", at, 1, []), "crm")], at, {})


async def claim(database: Database, now: float, worker: str = "w1", until: float = 0.0, cap: int = 9) -> int:
    async with database.begin() as connection:
        return len(await queue.claim(connection, "crm", worker, now, until or now + 45, 9, cap))


async def known(database: Database, now: float) -> tuple[float | None, int]:
    async with database.read() as connection:
        return await queue.next_due(connection, "crm"), await queue.held(connection, "crm", now)


async def test_what_is_due_next_and_what_is_under_way(database: Database) -> None:
    assert await known(database, NOW) == (None, 0)
    await store(database, 3)
    assert await known(database, NOW) == (NOW, 0)
    assert await claim(database, NOW + 1) == 2
    assert await known(database, NOW + 1) == (NOW + 2, 2)
    assert await claim(database, NOW + 2, until=NOW + 90) == 1
    assert await known(database, NOW + 2) == (NOW + 46, 3)
    assert await known(database, NOW + 46) == (NOW + 46, 1)
    assert await claim(database, NOW + 46, "w2", cap=2) == 1
    async with database.begin() as connection:
        await queue.release(connection, "w2")
    assert await known(database, NOW + 46) == (NOW, 1)


@contextmanager
def statements(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """What is sent to the database meanwhile, with its parameters."""
    sent: list[tuple[str, Any]] = []

    def note(connection: object, cursor: object, statement: str, parameters: Any, *_: object) -> None:
        sent.append((statement, parameters))

    engine = database._engine.sync_engine
    sa.event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        sa.event.remove(engine, "before_cursor_execute", note)


async def test_neither_is_answered_by_a_look_at_all_that_waits(database: Database) -> None:
    await store(database, 5)
    with statements(database) as sent:
        await known(database, NOW)
    sent = [one for one in sent if one[0].startswith("SELECT")]
    assert len(sent) == 3
    plans = []
    async with database.begin() as connection:
        if database.dialect == "postgresql":
            # So few rows are read faster without an index.
            await connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        for statement, parameters in sent:
            how = "EXPLAIN QUERY PLAN " if database.dialect == "sqlite" else "EXPLAIN "
            plan = await connection.exec_driver_sql(how + statement, parameters)
            plans.append("\n".join(str(row) for row in plan))
    free, claimed, held = plans
    assert "ix_deliveries_state_endpoint_due" in free
    assert "sort" not in free.lower()
    assert "b-tree" not in free.lower()
    assert "ix_deliveries_claims" in claimed
    assert "ix_deliveries_claims" in held
