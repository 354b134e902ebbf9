"""What live calls write: all of it or nothing, once, and calls that go on while the database does not."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records import database as database_module
from gateway.records import journal as module
from gateway.records.calls import document_of, outcome_of, row_of, utterances_of
from gateway.records.database import Database
from gateway.records.files import Records
from gateway.records.instances import Instance
from gateway.records.journal import CallJournal, Journal
from gateway.records.portion import Portion
from gateway.records.tables import call_texts, calls, deliveries, events, utterances
from gateway.records.unfiled import Unfiled
from gateway.transcript import Utterance
from gateway.webhooks.events import Event
from tests.databases import sqlite_url
from tests.gateway.records.made_up import NOON, SAID, all_of, end, put, start

pytestmark = pytest.mark.anyio


def journal_of(database: Database, folder: Path, alarms: list[str | None] | None = None) -> Journal:
    alarm = alarms.append if alarms is not None else (lambda trouble: None)
    return Journal(database, "here", put, Unfiled(folder), alarm=alarm, clock=lambda: NOON)


@asynccontextmanager
async def running(journal: Journal) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(journal.run())
        try:
            yield
        finally:
            journal.stop()


async def begin(journal: Journal, call_id: str = "c1", **values: Any) -> CallJournal:
    """A call whose beginning is stored, without the journal's own task."""
    call = journal.begin(start(call_id, **values))
    await journal.write()
    await journal.known(call)
    return call


async def finish(journal: Journal, call: CallJournal, **values: Any) -> None:
    finishing = asyncio.create_task(journal.finish(call, end(call.start, **values)))
    await asyncio.sleep(0)
    await journal.write()
    await finishing


async def test_a_call_is_there_from_its_beginning_to_its_end(database: Database, tmp_path: Path) -> None:
    journal = journal_of(database, tmp_path)
    async with running(journal):
        call = journal.begin(start())
        await journal.known(call)
        (row,) = await all_of(database, calls)
        assert (row["state"], row["instance"], row["ended_at"]) == ("live", "here", None)
        for one in SAID:
            call.utterance(one)
        call.event(3.0, "keypad", {"key": "5"})
        await journal.finish(call, end(call.start, target="+15550142", recording="call.wav"))
    async with database.read() as connection:
        stored = await row_of(connection, "c1")
        assert stored is not None
        assert (stored["state"], stored["end_reason"], stored["ended_at"]) == ("ended", "caller_hangup", NOON + 60)
        assert (stored["transfer_target"], stored["recording"], stored["engine"]) == ("+15550142", "call.wav", "echo")
        said = await utterances_of(connection, "c1")
        assert said == list(SAID)
        assert document_of(dict(stored), said) == end(call.start).document
    (event,) = await all_of(database, events)
    assert (event["at"], event["kind"], event["data"]) == (3.0, "keypad", {"key": "5"})
    told = {row["event"] for row in await all_of(database, deliveries)}
    assert told == {"call.started", "call.transcript.updated", "call.ended"}


async def test_what_is_said_is_there_before_the_end(database: Database, tmp_path: Path) -> None:
    journal = journal_of(database, tmp_path)
    call = await begin(journal)
    call.utterance(Utterance(1, "caller", "My", 0.0, 0.2, final=False))
    await journal.write()
    call.utterance(Utterance(1, "caller", "My card", 0.0, 0.6, final=False))
    call.utterance(Utterance(2, "agent", "Which one?", 1.0, 1.5))
    await journal.write()
    call.utterance(Utterance(2, "agent", "", 1.0, 1.0))
    await journal.write()
    async with database.read() as connection:
        (only,) = await utterances_of(connection, "c1")
    assert (only.text, only.final) == ("My card", False)


async def test_what_was_taken_back_is_gone_at_the_end(database: Database, tmp_path: Path) -> None:
    journal = journal_of(database, tmp_path)
    call = await begin(journal)
    call.utterance(Utterance(9, "caller", "uh", 0.0, 0.2, final=False))
    await journal.write()
    await finish(journal, call)
    assert [row["number"] for row in await all_of(database, utterances)] == [1, 2, 3]
    (found,) = await all_of(database, call_texts)
    assert found["text"] == "Thank you for calling.\nMy card was declined.\nI can"


async def test_the_end_and_its_deliveries_are_stored_together_or_not_at_all(database: Database, tmp_path: Path) -> None:
    async def refuse(connection: AsyncConnection, events: Sequence[Event]) -> None:
        await put(connection, events)
        if any(event.kind == "call.ended" for event in events):
            raise sa.exc.OperationalError("insert", {}, Exception("the connection is lost"))

    journal = Journal(database, "here", refuse, Unfiled(tmp_path), clock=lambda: NOON)
    await finish(journal, await begin(journal))
    (row,) = await all_of(database, calls)
    assert row["state"] == "live"
    assert [row["event"] for row in await all_of(database, deliveries)] == ["call.started"]
    again = journal_of(database, tmp_path)
    await again.write()
    (row,) = await all_of(database, calls)
    assert row["state"] == "ended"
    assert {row["event"] for row in await all_of(database, deliveries)} == {"call.started", "call.ended"}


async def test_storing_again_what_may_be_stored_already_changes_nothing(database: Database, tmp_path: Path) -> None:
    for _ in range(2):
        journal = journal_of(database, tmp_path)
        call = await begin(journal)
        call.event(1.0, "flush")
        await finish(journal, call)
    assert len(await all_of(database, calls)) == 1
    assert len(await all_of(database, events)) == 1
    assert len(await all_of(database, utterances)) == 3
    assert len(await all_of(database, deliveries)) == 2


@pytest.mark.parametrize(
    ("reason", "kinds"),
    [
        ("transfer", {"call.started", "call.transferred", "call.ended"}),
        ("worker_lost", {"call.started", "call.failed", "call.ended"}),
        ("agent_goodbye", {"call.started", "call.ended"}),
    ],
)
async def test_how_a_call_ended_is_told(database: Database, tmp_path: Path, reason: str, kinds: set[str]) -> None:
    journal = journal_of(database, tmp_path)
    await finish(journal, await begin(journal), reason=reason, target="+15550142")
    assert {row["event"] for row in await all_of(database, deliveries)} == kinds
    async with database.read() as connection:
        found = await outcome_of(connection, "CA-c1")
    assert found is not None
    assert (found[0], found[1].reason, found[1].fallback) == ("ended", reason, "+15550999")


async def test_whatever_a_carrier_sends_can_be_stored(database: Database, tmp_path: Path) -> None:
    journal = journal_of(database, tmp_path)
    call = await begin(journal, from_number="\0" + "9" * 500, carrier_call_id="\ud800", persona="p" * 100)
    odd = Utterance(1, "caller", "a\0b\udcff", 0.0, 1.0)
    call.utterance(odd)
    call.event(1.0, "keypad", {"key": "\0\ud800"})
    await journal.write()
    await finish(journal, call, said=(odd,))
    (row,) = await all_of(database, calls)
    assert (row["from_number"], row["carrier_call_id"]) == ("9" * 128, "?")
    (said,) = await all_of(database, utterances)
    assert said["text"] == "ab?"


async def test_a_call_that_cannot_be_stored_takes_no_other_with_it(database: Database, tmp_path: Path) -> None:
    journal = journal_of(database, tmp_path)
    bad, good = await begin(journal, "bad"), await begin(journal, "good")
    bad.event(1.0, "keypad", {"key": "5"})
    good.event(1.0, "keypad", {"key": "5"})
    async with database.begin() as connection:
        await connection.execute(sa.delete(calls).where(calls.c.id == "bad"))
    await finish(journal, good)
    assert [row["call_id"] for row in await all_of(database, events)] == ["good"]
    (row,) = await all_of(database, calls)
    assert (row["id"], row["state"]) == ("good", "ended")
    assert (tmp_path / "unfiled" / "bad.damaged").exists()


@pytest.fixture
async def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Database, sqlite3.Connection]]:
    """A database that another program can lock, and that program's connection."""
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(module, "BEGIN_WAIT", 0.05)
    async with Database.open(sqlite_url(tmp_path)) as database:
        with closing(sqlite3.connect(tmp_path / "callplex.sqlite3", isolation_level=None)) as other:
            yield database, other


async def test_calls_go_on_while_the_database_is_locked(
    locked: tuple[Database, sqlite3.Connection], tmp_path: Path
) -> None:
    database, other = locked
    alarms: list[str | None] = []
    journal = journal_of(database, tmp_path, alarms)
    before = await begin(journal, "before")
    other.execute("BEGIN IMMEDIATE")
    before.utterance(SAID[0])
    before.event(0.1, "flush")
    await journal.write()
    during = await begin(journal, "during")
    before.utterance(SAID[1])
    before.event(0.2, "keypad", {"key": "1"})
    await journal.write()
    await finish(journal, during)
    assert during.ended.is_set()
    assert (tmp_path / "unfiled" / "during.json").exists()
    assert len(alarms) == 1
    assert "locked" in (alarms[0] or "")
    other.execute("ROLLBACK")
    await journal.write()
    assert alarms[1:] == [None]
    assert not list((tmp_path / "unfiled").iterdir())
    rows = {row["id"]: row["state"] for row in await all_of(database, calls)}
    assert rows == {"before": "live", "during": "ended"}
    assert [row["at"] for row in await all_of(database, events)] == [0.1, 0.2]
    told = [(row["call_id"], row["event"]) for row in await all_of(database, deliveries)]
    assert ("during", "call.ended") in told
    assert ("before", "call.ended") not in told


async def test_a_call_that_neither_database_nor_disk_takes_is_kept_in_memory(
    locked: tuple[Database, sqlite3.Connection], tmp_path: Path
) -> None:
    database, other = locked
    (tmp_path / "unfiled").write_text("in the way")
    journal = journal_of(database, tmp_path)
    call = await begin(journal)
    other.execute("BEGIN IMMEDIATE")
    finishing = asyncio.create_task(journal.finish(call, end(call.start)))
    await asyncio.sleep(0)
    await journal.write()
    assert not call.ended.is_set()
    other.execute("ROLLBACK")
    (tmp_path / "unfiled").unlink()
    await journal.write()
    await finishing
    (row,) = await all_of(database, calls)
    assert row["state"] == "ended"


async def test_a_call_that_only_the_disk_knew_of_is_lost_when_its_gateway_dies(
    locked: tuple[Database, sqlite3.Connection], tmp_path: Path
) -> None:
    database, other = locked
    dead, next_one = (Instance(database, Records(tmp_path), put) for _ in range(2))
    await dead.renew()
    journal = Journal(database, dead.id, put, Unfiled(tmp_path), clock=lambda: NOON)
    other.execute("BEGIN IMMEDIATE")
    await begin(journal)  # From here on it is answered; and its gateway is killed.
    other.execute("ROLLBACK")
    assert await all_of(database, calls) == []
    again = journal_of(database, tmp_path)
    await again.write()
    (row,) = await all_of(database, calls)
    assert (row["id"], row["state"], row["instance"]) == ("c1", "live", dead.id)
    assert not list((tmp_path / "unfiled").iterdir())
    assert await next_one.close_lost() == []
    await dead.leave()
    assert await next_one.close_lost() == ["c1"]
    told = [row["event"] for row in await all_of(database, deliveries)]
    assert sorted(told) == ["call.ended", "call.failed", "call.started"]


async def test_a_note_of_a_call_that_is_known_meanwhile_changes_nothing(
    locked: tuple[Database, sqlite3.Connection], tmp_path: Path
) -> None:
    database, _ = locked
    journal = journal_of(database, tmp_path)
    call = journal.begin(start())
    await journal.known(call)  # The writer is busy elsewhere.
    await finish(journal, call)
    assert not list((tmp_path / "unfiled").iterdir())
    Unfiled(tmp_path).note("another", Portion(call.start, begins=True))
    await journal_of(database, tmp_path).write()
    assert not list((tmp_path / "unfiled").iterdir())
    (row,) = await all_of(database, calls)
    assert (row["state"], row["end_reason"], row["instance"]) == ("ended", "caller_hangup", "here")
    assert len(await all_of(database, deliveries)) == 2


async def test_a_call_that_neither_database_nor_disk_knows_of_is_answered_all_the_same(
    locked: tuple[Database, sqlite3.Connection], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database, other = locked
    (tmp_path / "unfiled").write_text("in the way")
    other.execute("BEGIN IMMEDIATE")
    await begin(journal_of(database, tmp_path))
    other.execute("ROLLBACK")
    assert "call c1 is answered, and a crash would leave no trace of it" in caplog.text


async def test_memory_is_bounded_while_the_database_is_away(
    locked: tuple[Database, sqlite3.Connection], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, other = locked
    monkeypatch.setattr(module, "EVENTS_KEPT", 5)
    journal = journal_of(database, tmp_path)
    call = await begin(journal)
    other.execute("BEGIN IMMEDIATE")
    for number in range(20):
        call.event(float(number), "keypad")
        call.utterance(Utterance(1, "caller", "word " * number, 0.0, number))
        await journal.write()
    other.execute("ROLLBACK")
    await journal.write()
    assert [row["at"] for row in await all_of(database, events)] == [15.0, 16.0, 17.0, 18.0, 19.0]
    assert len(await all_of(database, utterances)) == 1


async def test_a_damaged_file_is_set_aside_and_stops_no_other(database: Database, tmp_path: Path) -> None:
    unfiled = Unfiled(tmp_path)
    (tmp_path / "unfiled").mkdir()
    (tmp_path / "unfiled" / "odd.json").write_text('{"start": {}}')
    journal = journal_of(database, tmp_path)
    call = await begin(journal, "good")
    call.end(end(call.start))
    portion = call.take()
    assert portion is not None
    unfiled.keep(portion)
    await journal_of(database, tmp_path).write()
    assert [path.name for path in (tmp_path / "unfiled").iterdir()] == ["odd.damaged"]
    (row,) = await all_of(database, calls)
    assert row["state"] == "ended"


async def test_a_damaged_note_is_set_aside(database: Database, tmp_path: Path) -> None:
    (tmp_path / "unfiled").mkdir()
    (tmp_path / "unfiled" / "odd.begun").write_text('{"instance": "dead", "start": {}}')
    await journal_of(database, tmp_path).write()
    assert [path.name for path in (tmp_path / "unfiled").iterdir()] == ["odd.damaged"]
    assert await all_of(database, calls) == []


async def test_a_waiting_file_that_the_disk_refuses_stops_no_other_call(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "unfiled" / "c0.json").mkdir(parents=True)
    journal = journal_of(database, tmp_path)
    async with running(journal):
        call = journal.begin(start())
        await journal.known(call)
        await journal.finish(call, end(call.start))
    (row,) = await all_of(database, calls)
    assert (row["id"], row["state"]) == ("c1", "ended")
    assert caplog.text.count("go on waiting") == 1


def test_a_file_that_another_gateway_has_just_stored_is_passed_over(tmp_path: Path) -> None:
    """As a dangling link: it is listed, and gone when it is looked at."""
    (tmp_path / "unfiled").mkdir()
    (tmp_path / "unfiled" / "c0.json").symlink_to(tmp_path / "gone")
    assert Unfiled(tmp_path).read(5) == []
