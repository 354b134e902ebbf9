"""Shared by all tests: coroutine tests run on asyncio, and arithmetic on one thread."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.records.database import Database
from tests.databases import postgres_server, postgres_url, sqlite_file, sqlite_url

# The matrices here are small, and threads that wait for a busy core cost tenfold. Read when torch is first loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

FIRST = ("test_compiling.py", "test_walk_of_kept_steps.py", "test_transcriber_beside_calls.py")
"""Files of few tests that take long; last, one of two workers would wait for the other."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without the collector, which would walk again and again what is imported: half of the time.

    Nor does it walk that later, when an engine that is begun has all collected, once a test.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which workers that share the tests begin files: long ones, and then those of many tests."""
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in FIRST, -count[item.path]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What was printed and logged, so that it can be sent as UTF-8: tests of broken text log halves of characters."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def thaws() -> Iterator[list[bool]]:
    """Has one more when what is frozen has been given back; to ask how much is frozen takes long."""
    thaw, seen = gc.unfreeze, list[bool]()

    def unfreeze() -> None:
        thaw()
        seen.append(True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "unfreeze", unfreeze)
        yield seen


@pytest.fixture(autouse=True)
def _frozen_again(thaws: list[bool]) -> Iterator[None]:
    """The benchmarks give it back, as they should."""
    yield
    if thaws:
        thaws.clear()
        gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A real PostgreSQL, started by the first test that asks for it."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def sqlite_of_today(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with today's schema, to be copied."""
    folder = tmp_path_factory.mktemp("schema")
    asyncio.run(_bring_up_to_date(sqlite_url(folder)))
    return sqlite_file(folder)


@pytest.fixture(scope="session")
def postgres_of_today(postgres: Any) -> str:
    """The name of a database in `postgres` with today's schema, to be copied."""
    url = postgres_url(postgres, name="today")
    asyncio.run(_bring_up_to_date(url))
    return "today"


async def _bring_up_to_date(url: str) -> None:
    async with Database.open(url):
        pass


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; a test that takes it runs on SQLite and on PostgreSQL.

    If it takes `database` too, one with today's schema: to make that anew takes longer than most of what is tried.
    """
    of_today = "database" in request.fixturenames
    if request.param == "sqlite":
        if of_today:
            shutil.copy(request.getfixturevalue("sqlite_of_today"), sqlite_file(tmp_path))
        return sqlite_url(tmp_path)
    template = request.getfixturevalue("postgres_of_today") if of_today else "template1"
    return postgres_url(request.getfixturevalue("postgres"), template=template)


@pytest.fixture
async def database(database_url: str, anyio_backend: str) -> AsyncIterator[Database]:
    """An open database with today's schema."""
    async with Database.open(database_url) as opened:
        yield opened
