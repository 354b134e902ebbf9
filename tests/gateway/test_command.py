"""What all commands share: where their logs stop, and how a wrong setting is called."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from gateway.cli import app
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


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("worker --context slide", "Invalid value for --context: must be reprime or sliding"),
        ("worker --engine parrot", "Invalid value for --engine: must be rehearsal, echo or personaplex"),
        ("worker --device gpu", "Invalid value for --device: must be auto, cpu or cuda"),
        ("worker --kv-dtype half", "Invalid value for --kv-dtype: must be auto, float32, bf16 or fp8"),
        ("worker --weights-dtype half", "Invalid value for --weights-dtype: must be auto or fp8"),
        ("worker --transcriber me", "Invalid value for --transcriber: must be whisper or none"),
        ("worker --slots=-1", "Invalid value for --slots: must be 0 or more"),
        ("worker --capacity 0", "Invalid value for --capacity: must be 1 or more"),
        ("worker --listen 1", "Invalid value for --listen: '1' is not host:port"),
        ("serve --listen 1", "Invalid value for --listen: '1' is not host:port"),
        ("serve --admin-listen 1", "Invalid value for --admin-listen: '1' is not host:port"),
    ],
)
def test_a_wrong_option_is_called_as_it_was_typed(words: str, sentence: str) -> None:
    refused = CliRunner().invoke(app, words.split(), env={"COLUMNS": "200"})
    assert refused.exit_code == 2
    assert sentence in refused.output
    assert "CALLPLEX_" not in refused.output


def test_a_wrong_variable_is_called_by_its_name_whatever_was_typed() -> None:
    refused = CliRunner().invoke(app, ["worker", "--slots", "2"], env={"CALLPLEX_CONTEXT": "slide"})
    assert refused.exit_code == 1
    assert refused.output == "callplex: CALLPLEX_CONTEXT: must be reprime or sliding\n"
