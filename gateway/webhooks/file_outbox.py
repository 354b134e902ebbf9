"""Deliveries of the first version, which kept them as files: taken over into the database at the start.

Owns how `DATA_DIR/outbox/msg_*.json` and its `dead/` were written. A file goes once its delivery is stored, under
the same webhook-id, so a crash between the two does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import orjson

from gateway.records.database import Database, DatabaseUnavailable, insert
from gateway.records.tables import deliveries
from gateway.webhooks.endpoints import DEFAULT
from gateway.webhooks.queue import DEAD, WAITING
from gateway.webhooks.retry import GIVE_UP_AFTER

log = logging.getLogger(__name__)

AT_ONCE = 50


async def take_over(database: Database, folder: Path, now: float) -> int:
    """Store what lies in the old outbox; returns how many. What cannot be stored or read stays, with a line in the log.

    All of it was for the one endpoint there was, today's `default`, which is tried again at once.
    """
    found = await asyncio.to_thread(_read, folder, now)
    taken = 0
    for start in range(0, len(found), AT_ONCE):
        some = found[start : start + AT_ONCE]
        try:
            async with database.begin() as connection:
                rows = [row for _, row in some]
                await connection.execute(insert(connection, deliveries).on_conflict_do_nothing(), rows)
        except DatabaseUnavailable as error:
            log.error("webhooks of an earlier version wait in %s until the next start: %s", folder, error)
            break
        taken += await asyncio.to_thread(_drop, [path for path, _ in some])
    if taken:
        log.info("%d webhooks of an earlier version are taken over from %s", taken, folder)
    return taken


def _read(folder: Path, now: float) -> list[tuple[Path, dict[str, Any]]]:
    found = []
    files = [*folder.glob("msg_*.json"), *folder.glob("dead/msg_*.json")]
    for path in files:
        try:
            found.append((path, _row(orjson.loads(path.read_bytes()), path.parent != folder, now)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("the webhook in %s cannot be read and stays there: %s", path, error)
    # The order in which they were made is the order within a call.
    found.sort(key=lambda one: one[1]["created_at"])
    return [(path, {**row, "place": place}) for place, (path, row) in enumerate(found)]


def _row(file: dict[str, Any], dead: bool, now: float) -> dict[str, Any]:
    event = orjson.loads(file["body"])
    return {
        "id": str(file["webhook_id"]),
        "endpoint": DEFAULT,
        "event": str(event["type"]),
        "call_id": str(event["data"]["call_id"]),
        "created_at": float(file["created"]),
        "body": str(file["body"]),
        "state": DEAD if dead else WAITING,
        "attempts": int(file["attempts"]),
        "due": now,
        "give_up_at": float(file["created"]) + GIVE_UP_AFTER,
        "reason": str(file["reason"]),
        "settled_at": now if dead else None,
    }


def _drop(files: list[Path]) -> int:
    for path in files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.error("%s is stored in the database and cannot be deleted: %s", path, error.strerror)
    return len(files)
