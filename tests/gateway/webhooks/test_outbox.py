"""Every stored event reaches its endpoints, whatever they, the network, the database or the process do."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook

from gateway.records.database import Database
from gateway.records.tables import deliveries
from gateway.webhooks import events, queue
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event, sample
from gateway.webhooks.retry import next_delay
from tests.gateway.webhooks.receiver import (
    SECRET,
    Receiver,
    endpoint_yaml,
    outbox,
    put,
    rows,
    running,
    settings,
    settled,
    states,
    until,
)
from tests.gateway.webhooks.sending import attempts, delivering, ended, store

pytestmark = pytest.mark.anyio


def update(call_id: str, number: int) -> Event:
    return events.transcript_updated(call_id, "bank", time.time(), number, [])


async def test_an_event_arrives_signed_and_is_noted_as_delivered(tmp_path: Path, database: Database) -> None:
    receiver = Receiver()
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1", text="Grüezi"))
        await settled(database, "delivered")
    (request,) = receiver.got
    event = Webhook(SECRET).verify(request.body, request.headers)
    assert (event["type"], event["version"]) == ("call.ended", 1)
    assert event["data"] == {"call_id": "call_1", "persona": "bank", "text": "Grüezi"}
    (row,) = await rows(database)
    assert row["id"] == request.headers["webhook-id"]
    assert (row["status"], row["attempts"], row["claimed_by"]) == (204, 1, "")


async def test_a_transaction_that_is_rolled_back_tells_nobody(tmp_path: Path, database: Database) -> None:
    receiver = Receiver()
    async with delivering(tmp_path, database, receiver) as box:

        async def fail() -> None:
            async with database.begin() as connection:
                await box.put(connection, [ended("call_1")])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        await put(database, box, ended("call_2"))
        await settled(database, "delivered")
    assert [json.loads(request.body)["data"]["call_id"] for request in receiver.got] == ["call_2"]


async def test_an_event_stored_twice_is_one_delivery_under_one_id(tmp_path: Path, database: Database) -> None:
    receiver = Receiver()
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1"), ended("call_1"))
        await settled(database, "delivered")
        await put(database, box, ended("call_1"))
        assert await states(database) == ["delivered"]
    assert len(receiver.got) == 1


async def test_a_failing_endpoint_gets_the_same_event_again_until_it_takes_it(
    tmp_path: Path, database: Database
) -> None:
    receiver = Receiver([500, 400, 503, 302])
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1"))
        await settled(database, "delivered")
    assert len(set(receiver.ids)) == 1
    assert len({request.body for request in receiver.got}) == 1
    assert len(receiver.got) == 5
    for request in receiver.got:
        Webhook(SECRET).verify(request.body, request.headers)


async def test_order_is_kept_in_a_call_and_nobody_waits_for_another_call(tmp_path: Path, database: Database) -> None:
    seen: list[tuple[str, int]] = []

    def answer(request: Any) -> tuple[int, Mapping[str, str], bytes]:
        data = json.loads(request.body)["data"]
        seen.append((data["call_id"], data["number"]))
        # The first of call_a is refused three times.
        refused = data["call_id"] == "call_a" and data["number"] == 1 and seen.count(("call_a", 1)) <= 3
        return (500 if refused else 204), {}, b""

    file = "endpoints:\n" + "{}"
    receiver = Receiver(answer=answer)
    async with receiver.listening():
        text = file.format(endpoint_yaml("crm", receiver.url, "events: [call.transcript.updated]"))
        async with running(outbox(database, EndpointStore(settings(tmp_path, text)))) as box:
            await put(database, box, *(update(call, number) for number in (1, 2, 3) for call in ("call_a", "call_b")))
            await settled(database, *["delivered"] * 6)
    assert [one for one in seen if one[0] == "call_a"] == [("call_a", 1)] * 4 + [("call_a", 2), ("call_a", 3)]
    assert [one for one in seen if one[0] == "call_b"] == [("call_b", 1), ("call_b", 2), ("call_b", 3)]
    assert seen.index(("call_b", 1)) < 3


async def test_a_dead_endpoint_delays_no_other(tmp_path: Path, database: Database) -> None:
    dead, healthy = Receiver(hang=1_000), Receiver()
    async with dead.listening(), healthy.listening():
        both = endpoint_yaml("dead", dead.url) + endpoint_yaml("healthy", healthy.url)
        async with running(outbox(database, EndpointStore(settings(tmp_path, "endpoints:\n" + both)))) as box:
            await put(database, box, *(ended(f"call_{number}") for number in range(30)))
            await healthy.requests(30)
            assert len(dead.got) <= 8


async def test_no_more_are_under_way_than_the_endpoint_allows(tmp_path: Path, database: Database) -> None:
    receiver = Receiver(hang=1_000)
    async with receiver.listening():
        file = "endpoints:\n" + endpoint_yaml("crm", receiver.url, "concurrency: 3")
        config = settings(tmp_path, file)
        first, second = (outbox(database, EndpointStore(config), worker) for worker in ("w1", "w2"))
        async with running(first):
            await put(database, first, *(ended(f"call_{number}") for number in range(9)))
            await receiver.requests(3)
            async with database.begin() as connection:
                assert await queue.claim(connection, "crm", "w2", time.time(), time.time() + 9, 8, 3) == []
            async with running(second):
                second.wake()
                async with database.begin() as connection:
                    held = sa.select(sa.func.count()).where(deliveries.c.claimed_by != "")
                    assert await connection.scalar(held) == 3
    assert len(receiver.got) == 3


async def test_410_disables_the_endpoint_until_somebody_enables_it(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver([410])
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1"))
        await settled(database, "dead")
        await put(database, box, ended("call_2"))
        assert await states(database) == ["dead", "dead"]
        assert "callplex webhooks enable default" in caplog.text
        async with database.begin() as connection:
            assert await queue.enable(connection, "default")
            assert await queue.redeliver(connection, time.time(), endpoint="default") == 2
        box.look()
        await settled(database, "delivered", "delivered")
    assert len(receiver.got) == 3
    assert receiver.ids[0] in receiver.ids[1:]


async def test_an_endpoint_that_moved_is_enabled_again(tmp_path: Path, database: Database) -> None:
    async with database.begin() as connection:
        await queue.disable(connection, "default", "https://old.example.com/", "it answered 410", 0.0)
    receiver = Receiver()
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1"))
        await settled(database, "delivered")
    async with database.read() as connection:
        assert await queue.disabled(connection) == {}


async def test_after_three_days_it_is_a_dead_letter_that_can_be_sent_again(tmp_path: Path, database: Database) -> None:
    now = 1_000_000.0

    def later(attempt: int, chance: float, retry_after: float) -> float:
        nonlocal now
        now += 30 * 3600
        return 0.0

    receiver = Receiver([500] * 4)
    async with delivering(tmp_path, database, receiver, delay=later, clock=lambda: now) as box:
        await put(database, box, ended("call_1"))
        await settled(database, "dead")
        (row,) = await rows(database)
        assert (row["attempts"], row["status"]) == (4, 500)
        assert "500" in row["reason"]
        async with database.begin() as connection:
            assert await queue.redeliver(connection, now) == 1
        box.wake()
        await settled(database, "delivered")
    assert len(set(receiver.ids)) == 1
    assert len(receiver.got) == 5


async def test_what_the_endpoint_asks_for_is_obeyed(tmp_path: Path, database: Database) -> None:
    now = 5_000.0
    receiver = Receiver([503], {"retry-after": "120"})
    async with delivering(tmp_path, database, receiver, delay=next_delay, clock=lambda: now) as box:
        await put(database, box, ended("call_1"))
        await until(lambda: attempts(database), [1])
        assert (await rows(database))[0]["due"] == 5_120.0
        now = 5_119.9
        await put(database, box, ended("call_2"))
        await receiver.requests(2)
        now = 5_120.0
        box.wake()
        await settled(database, "delivered", "delivered")
    assert receiver.ids.count(receiver.ids[0]) == 2
    assert receiver.ids[0] == receiver.ids[2]


async def test_without_an_endpoint_nothing_is_stored(tmp_path: Path, database: Database) -> None:
    async with running(outbox(database, EndpointStore(settings(tmp_path)))) as box:
        await put(database, box, ended("call_1"))
    assert await rows(database) == []


async def test_what_waits_for_an_endpoint_that_is_gone_is_kept_and_given_up_in_time(
    tmp_path: Path, database: Database
) -> None:
    box = outbox(database, store(tmp_path, Receiver(port=9)))
    await put(database, box, ended("call_1"))
    async with running(outbox(database, EndpointStore(settings(tmp_path)))):
        assert await states(database) == ["waiting"]
    later = time.time() + 73 * 3600
    async with running(outbox(database, EndpointStore(settings(tmp_path)), clock=lambda: later)):
        await settled(database, "dead")
    assert "no such endpoint" in (await rows(database))[0]["reason"]


async def test_it_follows_the_file_while_it_runs(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with Receiver().listening() as first, Receiver().listening() as second:
        config = settings(tmp_path, "endpoints:\n" + endpoint_yaml("crm", first.url))
        file = tmp_path / "personas" / "webhooks.yaml"
        async with running(outbox(database, EndpointStore(config))) as box:

            async def complained() -> bool:
                return "keep what they had" in caplog.text

            async def served() -> set[str]:
                return box.served

            await put(database, box, ended("call_1"))
            await first.requests(1)
            file.write_text("endpoints: [{name: crm}]")
            box.look()
            await until(complained, True)
            await put(database, box, ended("call_2"))
            await first.requests(2)
            file.write_text("endpoints:\n" + endpoint_yaml("crm", second.url) + endpoint_yaml("new", first.url))
            box.look()
            await until(served, {"crm", "new"})
            await put(database, box, ended("call_3"))
            await second.requests(1)
            await first.requests(3)


async def test_logs_hold_neither_secret_nor_address_nor_words(
    tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="gateway")
    receiver = Receiver([500, 410])
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1", text="confidential"))
        await settled(database, "dead")
    own = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("gateway"))
    assert "attempt 1" in own
    assert not [word for word in (SECRET, SECRET[6:], "private", "confidential") if word in own]


async def test_it_can_be_stopped_in_the_moment_an_event_comes(tmp_path: Path, database: Database) -> None:
    receiver = Receiver([500])
    async with delivering(tmp_path, database, receiver, delay=lambda *_: 3600.0) as box:
        await put(database, box, ended("call_1"))
        await receiver.requests(1)
        await put(database, box, ended("call_2"))


async def test_listing_is_paged_and_filtered(tmp_path: Path, database: Database) -> None:
    box = outbox(database, store(tmp_path, Receiver(port=9)))
    for number in range(5):
        await put(database, box, ended(f"call_{number}"))
    async with database.read() as connection:
        first = await queue.find(connection, limit=3)
        rest = await queue.find(connection, limit=3, before=(first[-1]["created_at"], first[-1]["id"]))
        one = await queue.find(connection, call_id="call_2", endpoint="default", state="waiting")
        none = await queue.find(connection, state="dead")
    assert [row["call_id"] for row in [*first, *rest]] == [f"call_{number}" for number in (4, 3, 2, 1, 0)]
    assert [row["call_id"] for row in one] == ["call_2"]
    assert none == []
    assert "body" not in first[0]


async def test_a_caller_that_is_erased_leaves_no_delivery(tmp_path: Path, database: Database) -> None:
    box = outbox(database, store(tmp_path, Receiver(port=9)))
    await put(database, box, ended("call_1"), ended("call_2"))
    async with database.begin() as connection:
        assert await queue.forget(connection, ["call_1"]) == 1
        assert await queue.prune(connection, time.time() + 1) == 0
    assert [row["call_id"] for row in await rows(database)] == ["call_2"]


async def test_every_kind_can_be_stored(tmp_path: Path, database: Database) -> None:
    file = "endpoints:\n" + endpoint_yaml("crm", "http://127.0.0.1:9/", f"events: [{', '.join(events.KINDS)}]")
    box = outbox(database, EndpointStore(settings(tmp_path, file)))
    await put(database, box, *(sample(kind, 1.0) for kind in events.KINDS))
    assert sorted(row["event"] for row in await rows(database)) == sorted(events.KINDS)
