"""What all commands share: where their logs stop."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from gateway.command import read_settings
from gateway.records.database import Database
from gateway.records.tables import api_tokens
from tests.databases import sqlite_url

pytestmark = pytest.mark.anyio


@pytest.fixture
def _logging() -> Iterator[None]:
    """The logging of the tests, put back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.usefixtures("_logging")
async def test_not_even_a_debugging_log_holds_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALLPLEX_LOG_LEVEL", "debug")
    read_settings()
    logging.getLogger("gateway").debug("we debug")
    async with Database.open(sqlite_url(tmp_path)) as database, database.begin() as connection:
        row = {"digest": "x" * 64, "name": "my card number", "created_at": 1.0}
        await connection.execute(sa.insert(api_tokens).values(row))
    said = capsys.readouterr().err
    assert "we debug" in said
    assert "my card number" not in said
