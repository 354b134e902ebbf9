"""The database on SQLite and on PostgreSQL: schema, transactions, and errors that say what to do."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from gateway.records import database as module
from gateway.records.database import Database, DatabaseInvalid, DatabaseUnavailable, configured_url, insert
from gateway.records.tables import api_tokens, metadata, utterances
from gateway.settings import load_settings
from tests.databases import postgres_url

pytestmark = pytest.mark.anyio


def token(name: str) -> dict[str, Any]:
    return {"digest": name * 8, "name": name, "created_at": 1.5}


async def names(database: Database) -> list[str]:
    async with database.read() as connection:
        return list(await connection.scalars(sa.select(api_tokens.c.name).order_by(api_tokens.c.name)))


async def test_the_migrations_make_the_tables(database: Database) -> None:
    def is_ours(item: object, name: str | None, *_: object) -> bool:
        """How words are found is each database's own."""
        return not (name or "").startswith(("call_words", "ix_call_texts_words", "words"))

    def differences(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"include_object": is_ours})
        return list(compare_metadata(context, metadata))

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_opening_twice_and_at_once_finds_one_schema(database_url: str) -> None:
    async def use(name: str) -> None:
        async with Database.open(database_url) as database, database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token(name)))

    await asyncio.gather(*(use(name) for name in "abcd"))
    async with Database.open(database_url) as database:
        assert await names(database) == list("abcd")


async def test_a_data_folder_that_is_a_file_is_told_with_what_sets_it(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    sentence = rf"cannot be made: {tmp_path}/data: File exists; make it writable, or set CALLPLEX_DATA_DIR"
    with pytest.raises(DatabaseInvalid, match=sentence):
        async with Database.open(configured_url(load_settings(data_dir=tmp_path / "data", database_url=""))):
            pass


async def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    async def fail() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token("a")))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await names(database) == []


async def test_many_writers_wait_for_each_other(database: Database) -> None:
    async def write(name: str) -> None:
        async with database.begin() as connection:
            await connection.execute(sa.select(api_tokens))
            await asyncio.sleep(0)
            await connection.execute(insert(connection, api_tokens).values(token(name)))

    written = [f"n{number:02}" for number in range(30)]
    await asyncio.gather(*map(write, written))
    assert await names(database) == written


async def test_a_cancelled_transaction_leaves_nothing_and_no_lock(database: Database) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token("a")))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(write())
    await inside.wait()
    task.cancel()
    await asyncio.wait([task])
    async with database.begin() as connection:
        await connection.execute(insert(connection, api_tokens).values(token("b")))
    assert await names(database) == ["b"]


async def test_what_refers_to_no_call_is_refused(database: Database) -> None:
    row = {"call_id": "none", "number": 1, "speaker": "agent", "text": "Hello.", "start": 0.0, "end": 1.0}
    with pytest.raises(sa.exc.IntegrityError):
        async with database.begin() as connection:
            await connection.execute(insert(connection, utterances).values(row))


async def test_an_error_does_not_repeat_what_was_to_be_stored(database: Database) -> None:
    row = {"call_id": "nowhere", "number": 1, "speaker": "caller", "text": "my secret", "start": 0.0, "end": 1.0}
    with pytest.raises(sa.exc.IntegrityError) as refused:
        async with database.begin() as connection:
            await connection.execute(sa.insert(utterances).values(row))
    assert "my secret" not in str(refused.value)


async def test_a_database_of_a_newer_program_is_left_alone(database_url: str) -> None:
    async with Database.open(database_url) as database, database.begin() as connection:
        await connection.execute(sa.text("update alembic_version set version_num = 'f00d'"))
    with pytest.raises(DatabaseInvalid, match=r"newer Callplex .its version is f00d.; run that version"):
        async with Database.open(database_url):
            pass


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("", "is not a URL; it looks like postgresql://"),
        ("callplex.db", "is not a URL"),
        ("mysql://a/b", "names 'mysql', which is not supported"),
        ("sqlite://", "must name a file"),
        ("postgresql://host:port/x", "is not a URL"),
    ],
)
async def test_a_url_that_cannot_be_used_is_explained(url: str, sentence: str) -> None:
    with pytest.raises(DatabaseInvalid, match=sentence):
        async with Database.open(url):
            pass


async def test_without_a_url_the_file_lies_in_the_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a b" / "100%20?x#y"
    async with Database.open(configured_url(load_settings(data_dir=folder))):
        assert (folder / "callplex.sqlite3").stat().st_size
    assert configured_url(load_settings(data_dir=folder, database_url="postgresql://u@h/d")) == "postgresql://u@h/d"


async def test_a_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    async with Database.open(f"sqlite:///{tmp_path}/new/callplex.sqlite3"):
        for path in (tmp_path / "new").iterdir():
            assert path.stat().st_mode & 0o077 == 0, path


async def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Call the plumber. " * 100)
    with pytest.raises(DatabaseInvalid, match="not a database; the file is something else"):
        async with Database.open(f"sqlite:///{path}"):
            pass
    assert path.read_text().startswith("Call the plumber.")


async def test_a_locked_sqlite_file_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    path = tmp_path / "callplex.sqlite3"
    async with Database.open(f"sqlite:///{path}") as database:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable, match="database is locked; another program holds it"):
            async with database.begin():
                pass
        assert await names(database) == []
        holder.close()
        async with database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token("a")))
        assert await names(database) == ["a"]


async def test_a_full_disk_is_told_apart_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    async with Database.open(f"sqlite:///{tmp_path}/callplex.sqlite3") as database:

        async def fill() -> None:
            async with database.begin() as connection:
                pages = await connection.scalar(sa.text("PRAGMA page_count"))
                await connection.execute(sa.text(f"PRAGMA max_page_count = {pages}"))
                rows = [{**token(f"{number}"), "digest": f"{number}" * 20} for number in range(10, 1000)]
                await connection.execute(insert(connection, api_tokens), rows)

        with pytest.raises(DatabaseUnavailable, match="disk is full; free space on its disk"):
            await fill()
        assert await names(database) == []


async def test_nobody_at_home_is_told_apart() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound, so that nobody else listens there; not listening itself.
        address = "{}:{}".format(*taken.getsockname())
        with pytest.raises(DatabaseUnavailable, match=rf"postgresql://u:\*+@{address}/x: .*; start PostgreSQL"):
            async with Database.open(f"postgresql://u:secret@{address}/x"):
                pass


async def test_a_missing_database_and_its_password(postgres: Any) -> None:
    with pytest.raises(DatabaseInvalid, match="does not exist; make it") as caught:
        async with Database.open(postgres.get_uri("nowhere").replace("postgres:@", "postgres:secret@")):
            pass
    assert "secret" not in str(caught.value)


async def test_a_connection_that_was_cut_is_replaced(postgres: Any) -> None:
    async with Database.open(postgres_url(postgres)) as database:
        await _cut_and_go_on(postgres, database)


async def _cut_and_go_on(postgres: Any, database: Database) -> None:
    async def write() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token("a")))
            pid = await connection.scalar(sa.text("select pg_backend_pid()"))
            postgres.psql(f"select pg_terminate_backend({pid})")
            await connection.execute(insert(connection, api_tokens).values(token("b")))

    with pytest.raises(DatabaseUnavailable):
        await write()
    assert await names(database) == []


async def test_writers_of_one_process_get_their_turn_in_order(database: Database) -> None:
    """However many there are: nobody is overtaken, and nobody told that the file is locked."""
    served: list[int] = []

    async def write(number: int) -> None:
        async with database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token(f"{number:03}")))
            served.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(40):
            tasks.create_task(write(number))
    assert await names(database) == [f"{number:03}" for number in range(40)]
    if database.dialect == "sqlite":
        assert served == list(range(40))


async def test_a_writer_that_is_held_up_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_SECONDS", 0.01)
    async with Database.open(f"sqlite:///{tmp_path}/callplex.sqlite3") as database:
        async with database.begin():
            with pytest.raises(DatabaseUnavailable, match="busy: other writers take too long"):
                async with database.begin():
                    pass
        async with database.begin() as connection:
            await connection.execute(insert(connection, api_tokens).values(token("a")))
        assert await names(database) == ["a"]


async def test_calls_go_on_while_another_gateway_makes_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "callplex.sqlite3"

    async def use() -> None:
        async with Database.open(f"sqlite:///{path}"):
            pass

    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE made_by_another (id)")
        loop = asyncio.get_running_loop()
        opening, last, longest = asyncio.create_task(use()), loop.time(), 0.0
        for _ in range(20):
            await asyncio.sleep(0.01)
            longest, last = max(longest, loop.time() - last), loop.time()
        assert not opening.done()
        other.execute("COMMIT")
    await opening
    assert longest < module.BUSY_SECONDS / 2


CANCELLED_AND_OVER = """
import asyncio, sys
import sqlalchemy as sa
from gateway.records.database import Database

async def use(database):
    async with database.begin() as connection:
        await connection.execute(sa.text("SELECT 1"))

async def main(later):
    async with Database.open(sys.argv[1]) as database:
        await use(database)
        using = asyncio.create_task(use(database))
        await asyncio.sleep(later)
        using.cancel()
        await asyncio.wait([using])

for number in range(12):
    asyncio.run(main(number * 0.0002))
"""


async def test_a_process_ends_whenever_a_transaction_is_cancelled(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CANCELLED_AND_OVER, f"sqlite:///{tmp_path}/callplex.sqlite3"]
    process = await asyncio.create_subprocess_exec(*command)
    try:
        async with asyncio.timeout(120):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
