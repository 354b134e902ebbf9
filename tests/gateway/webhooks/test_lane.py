"""What is wrong with one row, or with the database, stops no delivery that could be made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gateway.records.database import Database
from gateway.records.tables import deliveries
from gateway.webhooks import events, lane, queue
from gateway.webhooks import outbox as outbox_module
from gateway.webhooks.delivery import Answer, Sender
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event
from gateway.webhooks.outbox import Outbox
from tests.databases import sqlite_url
from tests.gateway.webhooks.receiver import Receiver, endpoint_yaml, outbox, put, rows, running, settings, until

pytestmark = pytest.mark.anyio


def ended(call_id: str) -> Event:
    return Event(events.ENDED, call_id, "bank", time.time(), {"call_id": call_id, "persona": "bank"})


def box_to(folder: Path, database: Database, *endpoints: str, **options: Any) -> Outbox:
    return outbox(database, EndpointStore(settings(folder, "endpoints:\n" + "".join(endpoints))), **options)


async def in_state(database: Database, state: str) -> list[tuple[str, str]]:
    return sorted((row["call_id"], row["endpoint"]) for row in await rows(database) if row["state"] == state)


async def damage(database: Database, call_id: str, **values: Any) -> None:
    async with database.begin() as connection:
        await connection.execute(sa.update(deliveries).where(deliveries.c.call_id == call_id).values(values))


async def states(database: Database) -> dict[str, str]:
    """Without reading what may be damaged."""
    async with database.read() as connection:
        found = await connection.execute(sa.select(deliveries.c.call_id, deliveries.c.state))
        return {row.call_id: row.state for row in found}


async def test_a_row_that_cannot_be_read_is_given_up_and_the_others_go_on(
    tmp_path: Path, anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    receiver, faults = Receiver(), list[str]()
    async with Database.open(sqlite_url(tmp_path)) as database, receiver.listening():
        box = box_to(tmp_path, database, endpoint_yaml("crm", receiver.url), fault=faults.append)
        await put(database, box, *(ended(f"call_{number}") for number in (1, 2, 3)))
        # As a bad disk may return it: no text any more.
        await damage(database, "call_2", body=sa.text("CAST(x'ff' AS TEXT)"))
        async with running(box):
            await until(lambda: states(database), {"call_1": "delivered", "call_2": "dead", "call_3": "delivered"})
            await put(database, box, ended("call_4"))
            await receiver.requests(3)
    assert faults == ["crm"]
    assert "is given up, the others go on: it cannot be read from the database: Could not decode" in caplog.text


@pytest.mark.parametrize("body", ["[", "[]", '{"data": []}', '{"data": {"from": ""}}'])
async def test_a_stored_event_that_is_none_is_a_dead_letter_and_stops_nobody(
    tmp_path: Path, database: Database, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "pat")
    crm, other, faults = Receiver(answer=lambda _: (404, {}, b"")), Receiver(), list[str]()
    async with crm.listening(), other.listening():
        fields = f"name: crm, kind: hubspot, url: 'http://127.0.0.1:{crm.port}', allow: [127.0.0.1], token: TOKEN"
        box = box_to(tmp_path, database, f"  - {{{fields}}}\n", endpoint_yaml("other", other.url), fault=faults.append)
        await put(database, box, ended("call_1"))
        await damage(database, "call_1", body=body)
        async with running(box):
            await until(lambda: in_state(database, "dead"), [("call_1", "crm")])
            await put(database, box, ended("call_2"))
            await until(lambda: in_state(database, "delivered"), [("call_1", "other"), ("call_2", "other")])
    assert "crm" in faults
    assert "the stored event cannot be read" in next(
        row["reason"] for row in await rows(database) if (row["call_id"], row["endpoint"]) == ("call_1", "crm")
    )


@pytest.mark.parametrize("body", ["[", "[]", '{"data": []}'])
async def test_nor_does_a_template_try_for_days_to_read_it(tmp_path: Path, database: Database, body: str) -> None:
    receiver = Receiver()
    async with receiver.listening():
        template = endpoint_yaml("crm", receiver.url, """template: '{"call": {{ data.call_id | tojson }}}'""")
        box = box_to(tmp_path, database, template)
        await put(database, box, ended("call_1"))
        await damage(database, "call_1", body=body)
        await put(database, box, ended("call_2"))
        async with running(box):
            await until(lambda: states(database), {"call_1": "dead", "call_2": "delivered"})
    assert [request.body for request in receiver.got] == [b'{"call": "call_2"}']


async def test_an_outcome_that_cannot_be_stored_is_given_up_and_the_others_are_stored(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def attempt(self: Sender, webhook_id: str, body: str) -> Answer:
        # PostgreSQL takes neither a zero nor half a character, SQLite no half.
        return Answer(500, "it said \0 and \ud800") if "call_2" in body else Answer(204, "it answered 204")

    monkeypatch.setattr(Sender, "attempt", attempt)
    box = box_to(tmp_path, database, endpoint_yaml("crm", "http://127.0.0.1:9/"))
    await put(database, box, *(ended(f"call_{number}") for number in (1, 2, 3)))
    async with running(box):
        await until(lambda: states(database), {"call_1": "delivered", "call_2": "dead", "call_3": "delivered"})


async def test_an_error_that_nobody_foresaw_is_told_counted_and_tried_again(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "DATABASE_AGAIN", 0.05)
    monkeypatch.setattr(lane, "SLOWEST_AGAIN", 0.1)
    monkeypatch.setattr(outbox_module, "LOOK_AGAIN", 0.05)
    receiver = Receiver()
    async with receiver.listening():
        box = box_to(tmp_path, database, endpoint_yaml("crm", receiver.url), fault=(faults := list[str]()).append)
        async with running(box):
            await until(lambda: value(box.served), {"crm"})
            await rename(database, "state", "was_state")
            box.wake()
            await until(
                lambda: value("webhooks of endpoint crm" in caplog.text and "webhooks wait" in caplog.text), True
            )
            await rename(database, "was_state", "state")
            await put(database, box, ended("call_1"))
            await until(lambda: in_state(database, queue.DELIVERED), [("call_1", "crm")])
    if database.dialect == "postgresql":  # SQLite's driver does not tell this from a database that is away
        assert {"crm", ""} <= set(faults)
        assert "for a statement of ours failed" in caplog.text


async def value(one: Any) -> Any:
    return one


async def rename(database: Database, column: str, to: str) -> None:
    async with database.begin() as connection:
        await connection.execute(sa.text(f"ALTER TABLE deliveries RENAME COLUMN {column} TO {to}"))
