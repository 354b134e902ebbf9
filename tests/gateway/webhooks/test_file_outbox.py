"""Deliveries that the first version left as files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.records.database import Database
from gateway.records.tables import deliveries
from gateway.webhooks import queue
from gateway.webhooks.file_outbox import take_over
from tests.gateway.records.made_up import NOON, all_of

pytestmark = pytest.mark.anyio


def left(folder: Path, name: str, created: float = NOON) -> None:
    """A file as that version wrote it."""
    event = {"type": "call.ended", "timestamp": "2026-09-21T12:00:00.000Z", "data": {"call_id": f"call-{name}"}}
    file = {"webhook_id": f"msg_{name}", "created": created, "body": json.dumps(event)}
    more = {"attempts": 2, "due": NOON + 900, "not_before": 0.0, "reason": "it answered 500"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"msg_{name}.json").write_text(json.dumps({**file, **more}))


async def test_what_waits_is_delivered_and_what_was_given_up_can_be_sent_again(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "outbox"
    for number in range(60):
        left(folder, f"w{number:02}", NOON + number)
    left(folder / "dead", "d")
    assert await take_over(database, folder, NOON + 100) == 61
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    rows = {row["id"]: row for row in await all_of(database, deliveries)}
    assert (len(rows), rows["msg_d"]["state"], rows["msg_w07"]["state"]) == (61, "dead", "waiting")
    one = rows["msg_w07"]
    assert (one["endpoint"], one["event"], one["call_id"]) == ("default", "call.ended", "call-w07")
    assert (json.loads(one["body"])["data"], one["attempts"]) == ({"call_id": "call-w07"}, 2)
    async with database.begin() as connection:
        claimed = await queue.claim(connection, "default", "me", NOON + 100, NOON + 200, 100, 100)
        assert len(claimed) == 60
        assert await queue.redeliver(connection, NOON + 100) == 1


async def test_twice_is_once_and_what_cannot_be_read_stays(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "outbox"
    assert await take_over(database, folder, NOON) == 0
    for content in ("", "[]", '{"webhook_id": "msg_x"}'):
        left(folder, "one")
        (folder / "msg_odd.json").write_text(content)
        assert await take_over(database, folder, NOON) == 1
        assert [path.name for path in folder.iterdir()] == ["msg_odd.json"]
    assert caplog.text.count("stays there") == 3
    assert len(await all_of(database, deliveries)) == 1
