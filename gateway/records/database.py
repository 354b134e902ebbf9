"""The database: SQLite beside the recordings by default, PostgreSQL by URL, alike to all who use it.

Owns connections, transactions, the schema's version and what an error of either database means for an
operator. Knows no table's meaning. Both drivers do their waiting off the event loop.

SQLite runs in WAL mode, so that readers never wait for the writer, and syncs each commit to the disk:
what was committed survives the process, and the power. It has one writer at a time, so `begin` takes
the write lock at once instead of failing half-way; readers use `read`. Writers of this process queue up
for it here: SQLite itself would let each sleep and try again, for up to a tenth of a second at a time and
in no order, so that on a busy machine one could miss its turn until it was told that the file is locked.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, Literal

import orjson
import sqlalchemy
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, ProgrammingError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.records.migrations import SchemaNewer, upgrade
from gateway.settings import Settings

BUSY_SECONDS = 5.0
"""How long a SQLite writer waits for another process before it says that the database is locked."""
TURN_SECONDS = 30.0
"""How long it waits at most for others of this process, each of which is bounded itself."""
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 30.0
CONNECTIONS = 8
ENGINE: Any = {
    "pool_size": CONNECTIONS,
    "max_overflow": 0,
    "json_serializer": lambda value: orjson.dumps(value).decode(),
    "json_deserializer": orjson.loads,
    # What callers said is in the parameters, and an error's text ends in logs.
    "hide_parameters": True,
}

MIGRATION_LOCK = 0x43616C6C706C6578
"""The advisory lock under which PostgreSQL's schema is changed: "Callplex" in ASCII."""

EXAMPLE = "postgresql://callplex:PASSWORD@db.example.com/callplex or sqlite:////var/lib/callplex/callplex.sqlite3"

Insert = postgresql.Insert | sqlite.Insert


class DatabaseInvalid(Exception):
    """The database cannot be used until somebody changes something; the message says what."""


class DatabaseUnavailable(Exception):
    """The database does not answer now: away, locked, or its disk is full. The message says which."""


class Database:
    """A pool of connections to one database whose schema is this program's."""

    def __init__(self, engine: AsyncEngine, shown: str) -> None:
        self._engine = engine
        self._shown = shown
        self._turn = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        """Connections that are just given back."""
        self.dialect: Literal["sqlite", "postgresql"] = "sqlite" if engine.dialect.name == "sqlite" else "postgresql"

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator[Database]:
        """Connect and bring the schema up to date; closes on leaving. Several gateways may do so at once.

        `url`: sqlite:///relative/path, sqlite:////absolute/path, or postgresql://user:password@host/name,
        where libpq's `sslmode` is understood. Raises DatabaseInvalid, DatabaseUnavailable.
        """
        place = _place(url)
        if place.get_backend_name() == "sqlite":
            await asyncio.to_thread(_make_file, place)
        database = cls(
            _engine(place), place.render_as_string(hide_password=True).replace(f"+{place.get_driver_name()}", "")
        )
        try:
            await database._upgrade()
            yield database
        finally:
            # One that a cancelled user left behind is still being closed; the loop must not end in the midst of
            # that, for then aiosqlite waits for ever for an answer of its thread.
            while database._closing:
                await asyncio.wait(database._closing)
            await database._engine.dispose()

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed on leaving, rolled back if the block raises.

        Raises DatabaseUnavailable, and then nothing of it is stored, or, when the connection broke while
        it was being committed, all of it: what is written here must bear being written again.
        """
        if self.dialect == "postgresql":
            async with self._connect(writes=True) as connection:
                yield connection
            return
        await self._take_turn()
        try:
            async with self._connect(writes=True) as connection:
                yield connection
        finally:
            self._turn.release()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads, and so never waits for a writer. Raises DatabaseUnavailable."""
        async with self._connect(writes=False) as connection:
            yield connection

    def explain(self, error: Exception) -> str:
        """What an error of the driver means, in a sentence for the operator."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        text = " ".join(str(cause).split()) or type(cause).__name__
        for sign, advice in _ADVICE:
            if sign in text.lower():
                return f"the database {self._shown}: {text}; {advice}"
        return f"the database {self._shown} does not answer: {text}"

    async def _take_turn(self) -> None:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseUnavailable(f"the database {self._shown} is busy: other writers take too long") from None

    @asynccontextmanager
    async def _connect(self, writes: bool) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._checked_out() as connection:
                if writes:
                    await connection.execution_options(callplex_writes=True)
                async with connection.begin():
                    yield connection
        except (IntegrityError, ProgrammingError):
            raise
        except (DBAPIError, sqlalchemy.exc.TimeoutError, OSError) as error:
            if _about_a_value(error):
                raise
            raise DatabaseUnavailable(self.explain(error)) from error

    @asynccontextmanager
    async def _checked_out(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the pool, given back to its end even if whoever uses it is cancelled meanwhile."""
        connection = await self._engine.connect()
        try:
            yield connection
        finally:
            closing = asyncio.create_task(connection.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            await asyncio.shield(closing)

    async def _upgrade(self) -> None:
        try:
            async with self.begin() as connection:
                if self.dialect == "postgresql":
                    await connection.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
                await connection.run_sync(upgrade)
        except SchemaNewer as error:
            raise DatabaseInvalid(
                f"the database {self._shown} was made by a newer Callplex (its version is {error}); "
                "run that version, or name another database in CALLPLEX_DATABASE_URL"
            ) from None
        except DatabaseUnavailable as error:
            if _needs_change(error):
                raise DatabaseInvalid(str(error)) from error
            raise
        except SQLAlchemyError as error:
            raise DatabaseInvalid(f"the database {self._shown} cannot be brought up to date: {error}") from error


def configured_url(settings: Settings) -> str:
    """Where the settings say the database is: CALLPLEX_DATABASE_URL, or a SQLite file in DATA_DIR."""
    beside = URL.create("sqlite", database=str(settings.data_dir.absolute() / "callplex.sqlite3"))
    return settings.database_url or beside.render_as_string()


def insert(connection: AsyncConnection, table: sqlalchemy.Table) -> Insert:
    """The dialect's insert, which knows `on_conflict_do_update` and `on_conflict_do_nothing`."""
    return insert_of(connection.dialect.name, table)


def insert_of(dialect: str, table: sqlalchemy.Table) -> Insert:
    """The same by the dialect's name."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


_ADVICE = (
    ("database is locked", "another program holds it: stop that program, or wait"),
    ("disk is full", "free space on its disk"),
    ("no space left", "free space on its disk"),
    ("disk i/o error", "look at its disk"),
    ("readonly database", "make the file and its folder writable"),
    ("unable to open database file", "make its folder, and make it writable"),
    ("not a database", "the file is something else: move it away, or set CALLPLEX_DATABASE_URL"),
    ("malformed", "it is damaged: restore it from a copy"),
    ("password authentication failed", "set the right user and password in CALLPLEX_DATABASE_URL"),
    ("does not exist", "make it, or set CALLPLEX_DATABASE_URL"),
    ("connect call failed", "start PostgreSQL, or set CALLPLEX_DATABASE_URL"),
)


def _about_a_value(error: Exception) -> bool:
    """Whether one value is at fault, which cannot be stored or read back, and not the database.

    PostgreSQL's class 22, "data exception", which asyncpg also gives its own refusals; SQLite's damaged text.
    """
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = str(getattr(cause, "sqlstate", None) or "")
    return isinstance(error, DataError) or code.startswith("22") or "could not decode" in str(cause).lower()


def _needs_change(error: DatabaseUnavailable) -> bool:
    text = str(error).lower()
    signs = ("not a database", "password authentication", "does not exist", "readonly", "unable to open", "malformed")
    return any(sign in text for sign in signs)


def _place(url: str) -> URL:
    """The URL with our drivers. Raises DatabaseInvalid."""
    try:
        place = make_url(url)
        backend = place.drivername.partition("+")[0]
    except (ArgumentError, ValueError):
        raise DatabaseInvalid(f"CALLPLEX_DATABASE_URL is not a URL; it looks like {EXAMPLE}") from None
    if backend == "sqlite":
        if not place.database or place.database == ":memory:":
            raise DatabaseInvalid(f"CALLPLEX_DATABASE_URL must name a file; it looks like {EXAMPLE}")
        return place.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        place = place.set(drivername="postgresql+asyncpg")
        if mode := place.query.get("sslmode"):
            place = place.difference_update_query(["sslmode"]).update_query_dict({"ssl": mode})
        return place
    raise DatabaseInvalid(f"CALLPLEX_DATABASE_URL names {backend!r}, which is not supported; it looks like {EXAMPLE}")


def _make_file(place: URL) -> None:
    """The file and its folder, its owner's alone: it holds what people said. Raises DatabaseInvalid."""
    path = Path(str(place.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only a new file: to close one that this process has open elsewhere would drop SQLite's locks on it (fcntl(2)).
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        what = f"{error.filename or path}: {error.strerror}"
        raise DatabaseInvalid(
            f"the database {path} cannot be made: {what}; make it writable, or set CALLPLEX_DATA_DIR"
        ) from error
    _switch_to_wal(path)


def _switch_to_wal(path: Path) -> None:
    """Before anybody else of this process uses it: the switch wants the file for itself, and does not wait for it.

    Gateways that start together try again for BUSY_SECONDS. Any other fault is told by the first real connection.
    """
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            with closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.DatabaseError as error:
            if "locked" not in str(error) or time.monotonic() > give_up:
                return
            time.sleep(0.05)


class _SqliteConnection(sqlite3.Connection):
    """One that lets the file go when it is closed, whatever was under way.

    A statement that was cancelled and whose cursor somebody still refers to, if only a traceback, keeps a closed
    connection half alive (sqlite3_close_v2), and with it its transaction: nobody could write for as long.
    """

    def close(self) -> None:
        with suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _engine(place: URL) -> AsyncEngine:
    if place.get_backend_name() == "sqlite":
        arguments = {"timeout": BUSY_SECONDS, "factory": _SqliteConnection}
        engine = create_async_engine(place, connect_args=arguments, **ENGINE)
        event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    return create_async_engine(
        place,
        connect_args={
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {"application_name": "callplex"},
        },
        pool_pre_ping=True,
        **ENGINE,
    )


def _prepare_sqlite(connection: Any, record: object) -> None:
    connection.isolation_level = None  # Python's own transactions start late and exclude CREATE TABLE.
    cursor = connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sqlalchemy.Connection) -> None:
    writes = connection.get_execution_options().get("callplex_writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
