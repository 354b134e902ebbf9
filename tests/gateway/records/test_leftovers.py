"""Files of calls that were deleted while their gateway was away: what goes when it is back, and what never does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from gateway.recording.bucket import Bucket, Stored, measure
from gateway.recording.file import lock
from gateway.recording.store import RecordingStore
from gateway.records import leftovers as module
from gateway.records.database import Database, DatabaseUnavailable
from gateway.records.erasure import Eraser
from gateway.records.files import Records
from gateway.records.leftovers import Leftovers
from gateway.records.portion import Portion
from gateway.records.retention import DAY
from gateway.records.sound import Sound, SoundUnavailable
from gateway.records.tables import audit
from gateway.records.unfiled import Unfiled
from tests.gateway.records.made_up import all_of, end, start
from tests.gateway.records.test_erasure import keep

pytestmark = pytest.mark.anyio

PARTS = ("caller", "all", "text", "sound", "kept")
STOPPED = "stopped:/data"


def left(folder: Path) -> list[str]:
    """All files of calls that are there."""
    names = (path for part in ("calls", "unfiled") for path in (folder / part).rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in names)


def job(database: Database, folder: Path, running: Sequence[str] = ()) -> Leftovers:
    return Leftovers(database, Records(folder), Unfiled(folder), lambda call_id: call_id in running)


async def deleted_elsewhere(database: Database, folder: Path, parts: Sequence[str] = PARTS) -> None:
    """A call of each name is kept in the folder, and that part of it deleted by a gateway that has another."""
    eraser = Eraser(database, Records(folder.with_name("other")))
    removals = {
        "caller": eraser.erase,
        "all": eraser.delete_record,
        "text": eraser.delete_text,
        "sound": eraser.delete_sound,
    }
    for part in parts:
        await keep(database, folder, part, files_on=STOPPED)
        if part in removals:
            await removals[part](part, "me")


async def test_what_was_deleted_meanwhile_goes_and_the_audit_log_says_so(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    await deleted_elsewhere(database, folder)
    assert len(left(folder)) == 2 * len(PARTS)
    here = job(database, folder)
    assert sorted(await here.delete()) == ["all", "caller", "sound", "text"]
    kept = ["calls/kept/call.wav", "calls/kept/transcript.json", "calls/sound/transcript.json", "calls/text/call.wav"]
    assert left(folder) == kept
    proofs = {row["call_id"]: row for row in await all_of(database, audit) if row["detail"]["what"] == module.LEFT}
    files = {name: [file["name"] for file in row["detail"]["files"]] for name, row in proofs.items()}
    both = ["call.wav", "transcript.json"]
    assert files == {"all": both, "caller": both, "sound": ["call.wav"], "text": ["transcript.json"]}
    assert all(file["sha256"] for row in proofs.values() for file in row["detail"]["files"])
    assert await here.delete() == []
    assert left(folder) == kept


async def test_what_an_empty_or_another_database_does_not_know_is_kept(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = Records(tmp_path)
    for number in range(3):
        await records.finish(end(start(f"c{number}")).document)
    assert await job(database, tmp_path).delete() == []
    assert len(left(tmp_path)) == 3
    assert "3 calls have files here and are not in the database; the files are kept" in caplog.text


async def test_a_row_alone_deletes_nothing(database: Database, tmp_path: Path) -> None:
    """Of a call without words and sound there is as little as of one that lost them."""
    await keep(database, tmp_path, "quiet", sound=False)
    await keep(database, tmp_path, "live", live=True)
    (tmp_path / "calls" / "quiet" / "call.wav").write_bytes(b"sound that nobody owns up to")
    (tmp_path / "calls" / "live").mkdir()
    (tmp_path / "calls" / "live" / "call.wav").write_bytes(b"sound")
    before = left(tmp_path)
    assert await job(database, tmp_path).delete() == []
    assert left(tmp_path) == before


async def test_a_call_that_is_not_over_here_or_still_to_be_filed_is_left_alone(
    database: Database, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    await deleted_elsewhere(database, folder)
    unfiled = Unfiled(folder)
    for call_id in ("all", "text"):
        begun = start(call_id)
        unfiled.keep(Portion(begun, True, end=end(begun)))
    before = left(folder)
    with lock(folder / "calls" / "sound" / "call.wav"):
        assert await job(database, folder, running=["caller"]).delete() == []
        assert left(folder) == before
    assert sorted(await job(database, folder).delete()) == ["caller", "sound"]


async def test_of_an_erased_call_nothing_waits_to_be_filed(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    await deleted_elsewhere(database, folder, ["caller"])
    begun = start("caller")
    Unfiled(folder).set_aside(Portion(begun, True, end=end(begun)))
    Unfiled(folder).keep(Portion(begun, True, end=end(begun)))
    assert await job(database, folder).delete() == ["caller"]
    assert left(folder) == []


async def test_sound_of_an_erased_call_that_has_moved_goes_from_the_bucket(database: Database, tmp_path: Path) -> None:
    folder, bucket = tmp_path / "mine", {"calls/caller/call.opus", "calls/kept/call.wav"}
    await deleted_elsewhere(database, folder)

    async def in_bucket(name: str, files_on: str) -> dict[str, Any]:
        places = ["bucket"] if name in bucket else []
        bucket.discard(name)
        return {"name": name, "places": places}

    here = Leftovers(database, Records(folder), Unfiled(folder), recordings=in_bucket)
    assert sorted(await here.delete()) == ["all", "caller", "sound", "text"]
    assert bucket == {"calls/kept/call.wav"}
    proofs = [row["detail"].get("recordings") for row in await all_of(database, audit) if row["call_id"] == "caller"]
    assert proofs == [None, [{"name": "calls/caller/call.opus", "places": ["bucket"]}]]


async def test_a_bucket_that_fails_keeps_what_tells_that_something_is_left(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    await deleted_elsewhere(database, folder, ["caller"])

    async def away(name: str, files_on: str) -> dict[str, Any]:
        raise SoundUnavailable("the bucket is away")

    before = left(folder)
    assert await Leftovers(database, Records(folder), Unfiled(folder), recordings=away).delete() == []
    assert left(folder) == before


async def test_one_that_cannot_be_deleted_stops_no_other(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    monkeypatch.setattr(module, "AT_ONCE", 2)
    await deleted_elsewhere(database, folder)
    (folder / "calls" / "caller" / "call.wav").unlink()
    (folder / "calls" / "caller" / "call.wav").mkdir()
    assert sorted(await job(database, folder).delete()) == ["all", "sound", "text"]
    assert "call caller was deleted, and its files here cannot be" in caplog.text


async def test_a_database_that_does_not_answer_deletes_nothing_and_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, away = tmp_path / "mine", asyncio.Event()
    monkeypatch.setattr(module, "AGAIN", 0.0)
    async with Database.open(f"sqlite:///{tmp_path}/callplex.sqlite3") as database:
        await deleted_elsewhere(database, folder)
        before, read = left(folder), database.read

        def no_read() -> object:
            away.set()
            raise DatabaseUnavailable("nobody at home")

        monkeypatch.setattr(database, "read", no_read)
        done = asyncio.Event()
        running = asyncio.create_task(Leftovers(database, Records(folder), Unfiled(folder), done=done.set).run())
        try:
            await asyncio.wait_for(away.wait(), 30)
            assert (left(folder), done.is_set()) == (before, False)
            monkeypatch.setattr(database, "read", read)
            await asyncio.wait_for(done.wait(), 30)
            assert len(left(folder)) == 4
        finally:
            running.cancel()
            await asyncio.wait([running])


class SlowBucket:
    """Takes what it is sent when it is let go."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.taking, self.may_take = threading.Event(), threading.Event()

    def put(self, name: str, file: BinaryIO) -> Stored:
        if "caller" in name:
            self.taking.set()
        assert self.may_take.wait(30)
        self.objects[name] = measure(file)
        return self.objects[name]

    def stat(self, name: str) -> Stored | None:
        return self.objects.get(name)

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)


async def test_what_is_just_moving_to_the_bucket_is_looked_for_again_until_it_is_gone(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The store holds the file's lock until the bucket has it; the job is asked for in the middle of that."""
    folder, bucket = tmp_path / "mine", SlowBucket()
    monkeypatch.setattr(module, "SOON", 0.01)
    await deleted_elsewhere(database, folder, ["kept", "caller"])
    store = RecordingStore(folder, cast(Bucket, bucket))
    refused, gone, looks = asyncio.Event(), asyncio.Event(), 0
    sound = Sound(store, ())

    async def delete(name: str, files_on: str) -> dict[str, Any]:
        nonlocal looks
        try:
            return await sound.delete(name, files_on)
        except SoundUnavailable:
            looks += 1
            if looks == 3:
                refused.set()
            raise

    def done() -> None:
        if not (folder / "calls" / "caller").exists():
            gone.set()

    here = Leftovers(database, Records(folder), Unfiled(folder), done=done, recordings=delete)
    moving = asyncio.create_task(store.run())
    running: asyncio.Task[None] | None = None
    try:
        assert await asyncio.to_thread(bucket.taking.wait, 30)
        running = asyncio.create_task(here.run())
        await asyncio.wait_for(refused.wait(), 30)
        assert "calls/caller/call.wav" in left(folder)
        bucket.may_take.set()
        await asyncio.wait_for(gone.wait(), 30)
    finally:
        bucket.may_take.set()
        for task in filter(None, (moving, running)):
            task.cancel()
            await asyncio.wait([task])
    assert not [name for name in [*left(folder), *bucket.objects] if "caller" in name]
    assert [row["detail"]["what"] for row in await all_of(database, audit)][-1:] == [module.LEFT]
    retries = [record.getMessage() for record in caplog.records if "cannot be" in record.getMessage()]
    assert [text.partition("; it is tried again in ")[2] for text in retries[:3]] == ["0.01 s", "0.02 s", "0.04 s"]


async def test_what_cannot_be_deleted_is_tried_less_often_up_to_once_a_day(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "mine"
    monkeypatch.setattr(module, "BREATH", 0.0)
    await deleted_elsewhere(database, folder, ["sound"])
    here = job(database, folder)
    with lock(folder / "calls" / "sound" / "call.wav"):
        for _ in range(20):
            assert await here.delete() == []
        here.look()
        assert await here.delete() == []
    waits = [float(record.getMessage().rpartition(" in ")[2].rstrip(" s")) for record in caplog.records]
    assert waits[:3] == [module.SOON, 2 * module.SOON, 4 * module.SOON]
    assert waits[-2:] == [DAY, module.SOON]
    assert await here.delete() == ["sound"]
