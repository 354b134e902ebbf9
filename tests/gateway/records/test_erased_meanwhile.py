"""A call that is erased while its own gateway cannot reach the database, which then tells what it has kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.leg import CallInfo
from gateway.recording.store import configured_store
from gateway.records import storing
from gateway.records.archive import Archive
from gateway.records.database import Database
from gateway.records.erasure import Eraser
from gateway.records.files import Records
from gateway.records.journal import CallJournal, Journal
from gateway.records.leftovers import LEFT
from gateway.records.portion import Portion
from gateway.records.sound import Sound
from gateway.records.storing import hold, store
from gateway.records.tables import audit, call_texts, calls, deliveries, events, utterances
from gateway.records.unfiled import Unfiled
from gateway.settings import load_settings
from gateway.telemetry import Telemetry
from tests.gateway.records.made_up import NOON, SAID, all_of, end, put, start

pytestmark = pytest.mark.anyio


async def closed_and_erased(database: Database, folder: Path, call: CallJournal) -> None:
    """Another gateway took it for lost, and its caller wanted it erased."""
    lost = Portion(call.start, False, end=end(call.start, reason="lost"))
    async with database.begin() as connection:
        await store(connection, "other", [lost])
    assert await Eraser(database, Records(folder)).erase("c1", "me") is not None


async def test_nothing_that_its_gateway_still_tells_comes_back(database: Database, tmp_path: Path) -> None:
    told: list[bool] = []
    journal = Journal(database, "here", put, Unfiled(tmp_path), clock=lambda: NOON, erased=lambda: told.append(True))
    call, other = journal.begin(start()), journal.begin(start("c2"))
    await journal.write()
    await closed_and_erased(database, tmp_path, call)
    (bare, _), sent = await all_of(database, calls), await all_of(database, deliveries)
    for one in SAID:
        call.utterance(one)
        other.utterance(one)
    call.event(3.0, "keypad", {"key": "5"})
    call.recorded("calls/c1/call.wav")
    await journal.write()
    assert (journal.runs("c1"), told) == (True, [])
    call.end(end(call.start, reason="transfer", target="+15550142", recording="calls/c1/call.wav"))
    await journal.write()
    assert (journal.runs("c1"), told, call.ended.is_set()) == (False, [True], True)
    assert (await all_of(database, calls))[0] == bare
    assert [row for row in await all_of(database, deliveries) if row["call_id"] == "c1"] == [
        row for row in sent if row["call_id"] == "c1"
    ]
    for table, rows in ((utterances, len(SAID)), (events, 0), (call_texts, 0)):
        assert [row["call_id"] for row in await all_of(database, table)] == ["c2"] * rows


async def test_nor_what_lay_as_a_file(database: Database, tmp_path: Path) -> None:
    told: list[bool] = []
    journal = Journal(database, "here", put, Unfiled(tmp_path), clock=lambda: NOON, erased=lambda: told.append(True))
    call = journal.begin(start())
    await journal.write()
    await closed_and_erased(database, tmp_path, call)
    bare = await all_of(database, calls)
    Unfiled(tmp_path).keep(Portion(start(), True, SAID, end=end(start(), recording="calls/c1/call.wav")))
    await Journal(database, "next", put, Unfiled(tmp_path), erased=lambda: told.append(True)).write()
    assert (told, Unfiled(tmp_path).waits("c1")) == ([True], False)
    assert await all_of(database, calls) == bare
    assert await all_of(database, utterances) == []


async def waits_for_another(database: Database, task: asyncio.Task[Any]) -> None:
    """Returns once the task waits for another's transaction in PostgreSQL, or is done; SQLite lets nobody in anyway.

    Only connections to this database count: the server has others, which wait for their own.
    """
    waiting = database.dialect == "postgresql"
    blocked = sa.text(
        "select count(*) from pg_stat_activity where datname = current_database() and"
        " cardinality(pg_blocking_pids(pid)) > 0"
    )
    while waiting and not task.done():
        async with database.read() as connection:
            waiting = not await connection.scalar(blocked)
    assert not task.done() or database.dialect != "postgresql", "it did not wait"


async def test_its_files_go_as_soon_as_it_has_ended(database: Database, tmp_path: Path) -> None:
    settings = load_settings(data_dir=tmp_path)
    records = Records(tmp_path)
    archive = Archive(settings, records, Telemetry(), Sound(configured_store(settings), ()))
    async with archive.open(database, "here", put, lambda: None):
        call = archive.begin(CallInfo("c1", "+15550199", "+15550100", "test"), "bank", "0123456789ab", "")
        assert call is not None
        await archive.known(call)
        await archive.cleared.wait()
        archive.cleared.clear()
        await closed_and_erased(database, tmp_path, call)
        over = end(call.start)
        folder = (await records.finish(over.document)).parent
        (folder / "call.wav").write_bytes(b"sound")
        await archive.finish(call, over)
        await archive.cleared.wait()
        assert not folder.exists()
    left = [row["detail"] for row in await all_of(database, audit) if row["detail"]["what"] == LEFT]
    assert [[file["name"] for file in one["files"]] for one in left] == [["call.wav", "transcript.json"]]


@pytest.mark.parametrize("first", ["told", "erased"])
async def test_whoever_is_first_the_erased_call_has_no_words(database: Database, tmp_path: Path, first: str) -> None:
    """The two transactions overlap: the second begins before the first is over."""
    begun = start()
    async with database.begin() as connection:
        await store(connection, "here", [Portion(begun, True, end=end(begun, ()))])
    eraser = Eraser(database, Records(tmp_path))
    words = Portion(begun, False, SAID)

    async def tell() -> None:
        async with database.begin() as connection:
            await store(connection, "here", [words])

    second: Callable[[], Any] = (lambda: eraser.erase("c1", "me")) if first == "told" else tell
    async with database.begin() as connection:
        if first == "told":
            await store(connection, "here", [words])
        else:
            await connection.execute(sa.update(calls).values(erased_at=NOON))
        task = asyncio.create_task(second())
        await waits_for_another(database, task)
    await task
    assert await all_of(database, utterances) == []


async def test_calls_of_several_portions_are_held_in_order_too(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the first with the second in hand, for which whoever has the first may wait."""
    begun = [start("c2"), start("c1")]
    async with database.begin() as connection:
        await store(connection, "here", [Portion(one, True) for one in begun])
    monkeypatch.setattr(storing, "ROWS", 1)

    async def tell() -> None:
        async with database.begin() as connection:
            await store(connection, "here", [Portion(one, False, SAID) for one in begun])

    async with database.begin() as connection:
        await hold(connection, "c1")
        task = asyncio.create_task(tell())
        await waits_for_another(database, task)
        await hold(connection, "c2")
    await task
    assert len(await all_of(database, utterances)) == 2 * len(SAID)
