"""Erasing a caller and letting records age: what goes, what stays, and the proof."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from gateway.recording.file import lock
from gateway.recording.store import RecordingStore
from gateway.records import retention as retention_module
from gateway.records.database import Database
from gateway.records.erasure import Eraser, calls_of
from gateway.records.files import Records, make_place, place_of
from gateway.records.instances import Instance
from gateway.records.journal import Journal
from gateway.records.policies import Keep
from gateway.records.portion import CallEvent, Portion
from gateway.records.retention import DAY, Retention
from gateway.records.sound import FilesElsewhere, Sound
from gateway.records.storing import store
from gateway.records.tables import audit, call_texts, calls, deliveries, events, utterances
from gateway.records.unfiled import Unfiled
from gateway.webhooks import queue
from tests.gateway.records.made_up import NOON, all_of, end, put, start

pytestmark = pytest.mark.anyio


async def keep(
    database: Database, folder: Path, call_id: str, live: bool = False, sound: str | bool = True, **values: Any
) -> None:
    """`sound`: the name of a recording that is there; True: one is made up; False: there is none."""
    begun = start(call_id, **values)
    name = f"calls/{call_id}/{'call.wav' if sound is True else sound}" if sound else ""
    over = None if live else end(begun, recording=name)
    portion = Portion(begun, True, events=(CallEvent(1, 2.0, "keypad", {"key": "5"}),), end=over)
    async with database.begin() as connection:
        await store(connection, "here", [portion])
        await put(connection, portion.news(NOON))
    if over is not None:
        await Records(folder).finish(over.document)
        if sound is True:
            (folder / "calls" / call_id / "call.wav").write_bytes(b"sound")


async def test_erasing_leaves_the_bare_record_and_a_proof(database: Database, tmp_path: Path) -> None:
    await keep(database, tmp_path, "c1")
    await keep(database, tmp_path, "c2", from_number="+15550177")
    transcript = (tmp_path / "calls" / "c1" / "transcript.json").read_bytes()
    deleted: list[str] = []

    async def elsewhere(name: str, files_on: str) -> dict[str, Any]:
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


async def test_sound_goes_at_its_own_age_and_one_that_cannot_go_stops_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "AT_ONCE", 2)
    now = NOON + 100 * DAY
    for place, days in enumerate((90, 80, 70, 60, 50, 5)):
        await keep(database, tmp_path, f"c{place}", started_at=now - days * DAY)
    sound = Sound(RecordingStore(tmp_path), ())
    with lock(tmp_path / "calls" / "c0" / "call.wav"), lock(tmp_path / "calls" / "c1" / "call.wav"):
        job = Retention(
            database,
            Eraser(database, Records(tmp_path), sound.delete),
            lambda: {"bank": Keep(audio_days=30)},
            lambda: now,
        )
        assert [one.call_id for one in await job.enforce()] == ["c2", "c3", "c4"]
    kept = [row["id"] for row in await all_of(database, calls) if row["recording"]]
    assert kept == ["c0", "c1", "c5"]
    assert sorted(name.split("/")[1] for name in RecordingStore(tmp_path).local()) == kept
    assert (tmp_path / "calls" / "c2" / "transcript.json").exists()
    proof = next(row["detail"] for row in await all_of(database, audit) if row["call_id"] == "c2")
    assert (proof["what"], proof["recording"]["name"], proof["recording"]["gone"]) == (
        "sound",
        "calls/c2/call.wav",
        True,
    )
    assert proof["recording"]["sha256"] == hashlib.sha256(b"sound").hexdigest()
    assert [one.call_id for one in await job.enforce()] == ["c0", "c1"]


async def test_a_call_that_waits_for_the_database_as_a_file_is_erased_with_its_caller(
    database: Database, tmp_path: Path
) -> None:
    unfiled = Unfiled(tmp_path)
    begun = start("waits")
    unfiled.keep(Portion(begun, True, end=end(begun)))
    damaged = start("damaged", started_at=NOON + 1)
    unfiled.set_aside(Portion(damaged, True, end=end(damaged)))
    other = start("other", from_number="+15550177")
    unfiled.keep(Portion(other, True, end=end(other)))
    eraser = Eraser(database, Records(tmp_path), unfiled=unfiled)
    waiting = unfiled.read(10)
    assert await eraser.calls_of("+15550199") == ["waits", "damaged"]
    for call_id in ("waits", "damaged"):
        erased = await eraser.erase(call_id, "cli:me")
        assert erased is not None
    assert [path.name for path in (tmp_path / "unfiled").iterdir()] == ["other.json"]
    rows = await all_of(database, calls)
    assert [(row["state"], row["end_reason"], row["from_number"]) for row in rows] == [
        ("ended", "caller_hangup", "")
    ] * 2
    for portion in waiting:
        unfiled.keep(portion)
    # A gateway that had read the file before it was erased does not bring the call back.
    await Journal(database, "here", put, unfiled).write()
    said = {row["call_id"] for row in await all_of(database, utterances)}
    assert said == {"other"}
    assert {row["call_id"] for row in await all_of(database, deliveries)} == {"other"}


async def test_what_an_erased_call_had_to_tell_is_never_sent(database: Database, tmp_path: Path) -> None:
    await keep(database, tmp_path, "c1")
    await keep(database, tmp_path, "c2")
    eraser = Eraser(database, Records(tmp_path))
    await eraser.erase("c1", "cli:me")
    ids = [row["id"] for row in await all_of(database, deliveries) if row["call_id"] == "c1"]
    async with database.begin() as connection:
        assert await queue.redeliver(connection, NOON, ids=ids) == 0
        assert await queue.redeliver(connection, NOON) == 0
    assert {row["state"] for row in await all_of(database, deliveries) if row["call_id"] == "c1"} == {"dead"}


async def lease(database: Database, folder: Path) -> Instance:
    """A gateway that lives and has its files there."""
    make_place(folder)
    one = Instance(database, Records(folder), put)
    await one.renew()
    return one


async def test_another_gateway_s_texts_and_records_wait_for_it_while_it_lives(
    database: Database, tmp_path: Path
) -> None:
    now = NOON + 100 * DAY
    here, there = tmp_path / "here", tmp_path / "there"
    owner = await lease(database, there)
    files_on = Records(there).place
    await keep(database, there, "text", sound=False, files_on=files_on, started_at=now - 15 * DAY)
    await keep(database, there, "record", sound=False, files_on=files_on, started_at=now - 40 * DAY)
    jobs = {
        folder: Retention(
            database,
            Eraser(database, Records(folder)),
            lambda: {"bank": Keep(text_days=10, record_days=30)},
            lambda: now,
        )
        for folder in (here, there)
    }
    assert await jobs[here].enforce() == []
    assert {row["call_id"] for row in await all_of(database, utterances)} == {"text", "record"}
    assert sorted(one.call_id for one in await jobs[there].enforce()) == ["record", "text"]
    assert list((there / "calls").rglob("*.json")) == []
    assert [row["id"] for row in await all_of(database, calls)] == ["text"]
    # One that does not live, and may never again, holds nothing up.
    await keep(database, there, "later", sound=False, files_on=files_on, started_at=now - 40 * DAY)
    await owner.leave()
    (gone,) = await jobs[here].enforce()
    assert (gone.call_id, gone.detail["not_reached"], gone.detail["files"]) == ("later", files_on, [])


async def test_a_call_stored_before_disks_had_numbers_is_its_gateway_s(database: Database, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    before = place_of(there)
    await keep(database, there, "c1", files_on=before)
    await lease(database, there)
    assert Records(there).place != before
    with pytest.raises(FilesElsewhere, match=f"in {there}; ask that one"):
        await Eraser(database, Records(here)).erase("c1", "cli:me")
    erased = await Eraser(database, Records(there)).erase("c1", "cli:me")
    assert erased is not None
    assert "not_reached" not in erased.detail
    assert [file["name"] for file in erased.detail["files"]] == ["call.wav", "transcript.json"]


async def test_with_a_bucket_it_is_what_was_said_that_lies_elsewhere(database: Database, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    await lease(database, there)
    await keep(database, there, "c1", files_on=Records(there).place)
    for in_bucket, name in ((True, "transcript.json"), (False, "call.wav")):
        with pytest.raises(FilesElsewhere, match=f"^calls/c1/{name} lies on"):
            await Eraser(database, Records(here), in_bucket=in_bucket).erase("c1", "cli:me")


async def test_a_container_s_calls_are_its_own_after_its_host_name_changed(database: Database, tmp_path: Path) -> None:
    """Upgraded from before disks had names: what the rows say is nobody's any more, but its files lie here."""
    await keep(database, tmp_path, "c1", files_on="3f2a9c:/data")
    await lease(database, tmp_path)
    sound = Sound(RecordingStore(tmp_path), (), Records(tmp_path).place)
    erased = await Eraser(database, Records(tmp_path), sound.delete).erase("c1", "cli:me")
    assert erased is not None
    assert "not_reached" not in erased.detail
    assert (erased.detail["recording"]["gone"], erased.detail["recording"]["places"]) == (True, ["folder"])
    assert [file["name"] for file in erased.detail["files"]] == ["transcript.json"]
    assert not (tmp_path / "calls" / "c1").exists()
