"""`callplex webhooks ...` as an operator types it, beside a real database and a real endpoint."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.records.database import Database
from gateway.records.tables import audit
from gateway.webhooks import queue
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event
from tests.gateway.webhooks.receiver import SECRET, endpoint_yaml, outbox, settings

pytestmark = pytest.mark.anyio

DEAD, WAITING = "call_dead", "call_waiting"


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with settings in the environment."""
    monkeypatch.chdir(tmp_path)
    settings(tmp_path, "endpoints:\n" + endpoint_yaml("crm", "http://127.0.0.1:9/private"))
    for name, value in {
        "CALLPLEX_PERSONAS": str(tmp_path / "personas"),
        "CALLPLEX_DATA_DIR": str(tmp_path / "data"),
        "CALLPLEX_WEBHOOK_SECRET": SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


async def fill(folder: Path) -> str:
    """A dead letter of one call and a waiting delivery of another, and the endpoint disabled; the database's URL."""
    url = f"sqlite:///{folder}/data/callplex.sqlite3"
    store = EndpointStore(settings(folder))
    async with Database.open(url) as database, database.begin() as connection:
        box = outbox(database, store)
        await box.put(connection, [Event("call.ended", DEAD, "bank", 1.0, {"call_id": DEAD})])
        await queue.bury(connection, "crm", "it answered 500", time.time())
        await box.put(connection, [Event("call.ended", WAITING, "bank", 1.0, {"call_id": WAITING})])
        await queue.disable(connection, "crm", "http://127.0.0.1:9/private", "it answered 410", time.time())
    return url


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["webhooks", *words])


def told(*words: str) -> Any:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@contextmanager
def answering(status: int) -> Iterator[tuple[str, list[bytes]]]:
    """An endpoint in a thread: the command has an event loop of its own."""
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the standard library's name
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", got
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (500, 1)])
def test_an_endpoint_is_tried(operator: Path, status: int, exit_code: int) -> None:
    with answering(status) as (url, got):
        settings(operator, "endpoints:\n" + endpoint_yaml("crm", url))
        result = run("test", "crm", "--json")
        assert run("test", "crm", "--event", "call.ended").exit_code == exit_code
    assert result.exit_code == exit_code
    said = json.loads(result.stdout)
    assert (said["endpoint"], said["status"], said["taken"]) == ("crm", status, not exit_code)
    assert [json.loads(body)["type"] for body in got] == ["callplex.test", "call.ended"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["test", "other"], "there is no endpoint other; known: crm"),
        (["test", "crm", "--event", "call.begun"], "there is no event call.begun; known: call.started"),
        (["list", "--state", "lost"], "there is no state lost; known: waiting, delivered, dead"),
    ],
)
def test_a_wrong_word_is_one_sentence(operator: Path, words: list[str], says: str) -> None:
    result = run(*words)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"callplex: {says}")
    assert result.stdout == ""


def test_a_file_that_is_wrong_is_told(operator: Path) -> None:
    settings(operator, "endpoints: 5")
    result = run("list")
    assert result.exit_code == 1
    assert "webhooks.yaml:1: endpoints: must be a list" in result.stderr


async def test_what_was_sent_is_listed(operator: Path) -> None:
    await fill(operator)
    found = told_in_thread("list")
    (endpoint,) = found["endpoints"]
    assert endpoint["url"] == "http://127.0.0.1:9"
    assert (endpoint["waiting"], endpoint["dead"], endpoint["disabled"]) == (1, 1, "it answered 410")
    assert [row["call_id"] for row in found["deliveries"]] == [WAITING, DEAD]
    (dead,) = told_in_thread("list", "--state", "dead", "--endpoint", "crm", "--call", DEAD)["deliveries"]
    assert (dead["state"], dead["reason"]) == ("dead", "it answered 500")


async def test_dead_letters_are_sent_again_and_that_is_audited(operator: Path) -> None:
    url = await fill(operator)
    assert told_in_thread("redeliver", "--endpoint", "crm") == {"redelivered": 1}
    assert told_in_thread("redeliver", "--all") == {"redelivered": 0}
    (delivery, _) = told_in_thread("list", "--state", "waiting")["deliveries"]
    assert told_in_thread("redeliver", delivery["id"]) == {"redelivered": 1}
    async with Database.open(url) as database, database.read() as connection:
        rows = (await connection.execute(sa.select(audit).order_by(audit.c.id))).mappings().all()
    assert [row["action"] for row in rows] == ["redeliver"] * 3
    assert rows[0]["who"].startswith("cli:")
    assert rows[2]["detail"]["ids"] == [delivery["id"]]


def test_redelivery_must_be_of_something(operator: Path) -> None:
    assert run("redeliver").exit_code == 2
    result = run("redeliver", "msg_unknown")
    assert result.exit_code == 1
    assert "unknown" in result.stderr


async def test_an_endpoint_is_enabled(operator: Path) -> None:
    await fill(operator)
    assert told_in_thread("enable", "crm") == {"enabled": "crm", "was_disabled": True}
    assert told_in_thread("enable", "crm") == {"enabled": "crm", "was_disabled": False}


def told_in_thread(*words: str) -> Any:
    """As `told`, from a test that has an event loop already."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(told(*words)))
    thread.start()
    thread.join()
    return found[0]
