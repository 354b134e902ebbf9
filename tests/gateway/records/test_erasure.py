"""Erasing a caller and letting records age: what goes, what stays, and the proof."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from gateway.records.database import Database
from gateway.records.erasure import Eraser, calls_of
from gateway.records.files import Records
from gateway.records.policies import Keep
from gateway.records.portion import CallEvent, Portion
from gateway.records.retention import DAY, Retention
from gateway.records.storing import store
from gateway.records.tables import audit, call_texts, calls, deliveries, events, utterances
from tests.gateway.records.made_up import NOON, all_of, end, put, start

pytestmark = pytest.mark.anyio


async def keep(database: Database, folder: Path, call_id: str, live: bool = False, **values: Any) -> None:
    begun = start(call_id, **values)
    over = None if live else end(begun, recording=f"calls/{call_id}/call.wav")
    portion = Portion(begun, True, events=(CallEvent(1, 2.0, "keypad", {"key": "5"}),), end=over)
    async with database.begin() as connection:
        await store(connection, "here", [portion])
        await put(connection, portion.news(NOON))
    if over is not None:
        await Records(folder).finish(over.document)
        (folder / "calls" / call_id / "call.wav").write_bytes(b"sound")


async def test_erasing_leaves_the_bare_record_and_a_proof(database: Database, tmp_path: Path) -> None:
    await keep(database, tmp_path, "c1")
    await keep(database, tmp_path, "c2", from_number="+15550177")
    transcript = (tmp_path / "calls" / "c1" / "transcript.json").read_bytes()
    deleted: list[str] = []

    async def elsewhere(name: str) -> dict[str, Any]:
        deleted.append(name)
        return {"gone": True}

    erased = await Eraser(database, Records(tmp_path), elsewhere).erase("c1", "cli:me")
    assert erased is not None
    one, other = await all_of(database, calls)
    assert (one["from_number"], one["to_number"], one["carrier_call_id"], one["recording"]) == ("", "+15550100", "", "")
    assert (one["end_reason"], other["from_number"]) == ("caller_hangup", "+15550177")
    assert one["erased_at"] is not None
    for table, left in ((utterances, 3), (events, 1), (call_texts, 1)):
        rows = await all_of(database, table)
        assert len(rows) == left
        assert {row["call_id"] for row in rows} == {"c2"}
    for row in await all_of(database, deliveries):
        told = row["call_id"] == "c2"
        assert ("+1555" in row["body"]) is told
        assert row["state"] == ("waiting" if told else "dead")
    assert not (tmp_path / "calls" / "c1").exists()
    assert (tmp_path / "calls" / "c2").exists()
    assert deleted == ["calls/c1/call.wav"]
    (entry,) = await all_of(database, audit)
    assert (entry["who"], entry["action"], entry["call_id"]) == ("cli:me", "erase", "c1")
    assert entry["detail"]["rows"] == {"utterances": 3, "events": 1, "call_texts": 1, "deliveries": 2}
    proofs = {one["name"]: one for one in entry["detail"]["files"]}
    assert proofs["transcript.json"]["sha256"] == hashlib.sha256(transcript).hexdigest()
    assert proofs["call.wav"]["size"] == 5
    assert entry["detail"]["recording"] == {"gone": True}


async def test_only_calls_that_are_over_and_exist_are_erased(database: Database, tmp_path: Path) -> None:
    await keep(database, tmp_path, "live", live=True)
    eraser = Eraser(database, Records(tmp_path))
    assert await eraser.erase("live", "me") is None
    assert await eraser.erase("none", "me") is None
    assert await all_of(database, audit) == []
    assert len(await all_of(database, events)) == 1


async def test_a_callers_calls_are_those_from_and_those_to_the_number(database: Database, tmp_path: Path) -> None:
    await keep(database, tmp_path, "in", from_number="+1", to_number="+2")
    await keep(database, tmp_path, "out", direction="outbound", from_number="+2", to_number="+1", started_at=NOON + 1)
    await keep(database, tmp_path, "ours", from_number="+3", to_number="+1")
    async with database.read() as connection:
        assert await calls_of(connection, "+1") == ["in", "out"]


async def test_what_has_had_its_days_goes_and_the_rest_stays(database: Database, tmp_path: Path) -> None:
    now = NOON + 100 * DAY
    for call_id, persona, days in (
        ("fresh", "bank", 5),
        ("old", "bank", 15),
        ("ancient", "bank", 40),
        ("kept", "clinic", 90),
    ):
        await keep(database, tmp_path, call_id, persona=persona, started_at=now - days * DAY)
    await keep(database, tmp_path, "live", live=True, started_at=now - 90 * DAY)
    policies = {"bank": Keep(text_days=10, record_days=30), "clinic": Keep()}
    job = Retention(database, Eraser(database, Records(tmp_path)), lambda: policies, lambda: now)
    assert sorted(one.call_id for one in await job.enforce()) == ["ancient", "old"]
    assert [row["id"] for row in await all_of(database, calls)] == ["fresh", "kept", "live", "old"]
    assert {row["call_id"] for row in await all_of(database, utterances)} == {"fresh", "kept"}
    assert sorted(path.name for path in (tmp_path / "calls").iterdir()) == ["fresh", "kept", "old"]
    assert [path.name for path in (tmp_path / "calls" / "old").iterdir()] == ["call.wav"]
    proofs = [
        (row["who"], row["action"], row["call_id"], row["detail"]["what"]) for row in await all_of(database, audit)
    ]
    assert sorted(proofs) == [("retention", "delete", "ancient", "all"), ("retention", "delete", "old", "text")]
    assert await job.enforce() == []
