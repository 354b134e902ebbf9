"""The audit log: who looked at a record, and who deleted what, written in the same transaction.

Owns the entries. They hold no numbers and nothing that was said, so that erasing a caller leaves them whole.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import insert
from gateway.records.portion import fitting
from gateway.records.tables import audit

VIEW, LIST, EXPORT, ERASE, DELETE, PLAY = "view", "list", "export", "erase", "delete", "play"


async def note(connection: AsyncConnection, who: str, action: str, call_id: str = "", **detail: Any) -> None:
    """Write an entry. `who`: an API token's name, `local`, `cli:<user>`, `retention`."""
    row = {"at": time.time(), "who": who, "action": action, "call_id": call_id, "detail": detail}
    await connection.execute(insert(connection, audit).values(fitting(audit, row)))


async def entries(
    connection: AsyncConnection, call_id: str = "", before: int | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """The newest entries, of one call or of all; `before`: the id that the last page ended with."""
    query = select(audit).order_by(audit.c.id.desc()).limit(max(1, min(limit, 1000)))
    if call_id:
        query = query.where(audit.c.call_id == call_id)
    if before is not None:
        query = query.where(audit.c.id < before)
    rows = (await connection.execute(query)).mappings()
    return [{str(name): value for name, value in row.items()} for row in rows]
