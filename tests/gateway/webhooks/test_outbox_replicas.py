"""Several outboxes on one database, and those that are killed: each event is delivered, and by one."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.records.database import Database
from gateway.webhooks import queue
from gateway.webhooks.lane import LEASE
from tests.gateway.webhooks.receiver import SECRET, Receiver, outbox, put, rows, running, settled, states
from tests.gateway.webhooks.sending import delivering, ended, store

pytestmark = pytest.mark.anyio

SENDER = """
import asyncio, sys
from pathlib import Path
from gateway.records.database import Database
from gateway.settings import Settings
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event
from gateway.webhooks.outbox import Outbox

async def main(url, hook, secret, folder, mode):
    settings = Settings(personas=Path(folder), webhook_url=hook, webhook_secret=secret)
    async with Database.open(url) as database:
        outbox = Outbox(database, EndpointStore(settings), "child")
        if mode == "deliver":
            asyncio.get_running_loop().create_task(outbox.run())
        async with database.begin() as connection:
            await outbox.put(connection, [Event("call.ended", "call_1", "bank", 1.0, {"call_id": "call_1"})])
        outbox.wake()
        print("stored", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


async def killed_sender(url: str, folder: Path, receiver: Receiver, mode: str) -> None:
    """Run a real sender until it has stored its event (and, delivering, been heard), then kill -9 it."""
    arguments = [sys.executable, "-c", SENDER, url, receiver.url, SECRET, str(folder), mode]
    child = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.PIPE)
    assert child.stdout is not None
    async with asyncio.timeout(30):
        assert await child.stdout.readline() == b"stored\n"
        if mode == "deliver":
            await receiver.requests(1)
        child.send_signal(signal.SIGKILL)
        assert await child.wait() == -signal.SIGKILL


async def test_killed_between_storing_and_delivery_another_delivers_it(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    async with Receiver().listening() as receiver:
        await killed_sender(database_url, tmp_path, receiver, "store")
        assert receiver.got == []
        async with running(outbox(database, store(tmp_path, receiver))):
            await settled(database, "delivered")
    assert len(receiver.got) == 1


async def test_killed_while_delivering_a_replica_takes_over_within_a_minute(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    ahead = 0.0
    async with Receiver(hang=1).listening() as receiver:
        await killed_sender(database_url, tmp_path, receiver, "deliver")
        (row,) = await rows(database)
        assert row["claimed_by"] == "child"
        assert row["claimed_until"] - time.time() <= LEASE < 60
        async with running(outbox(database, store(tmp_path, receiver), clock=lambda: time.time() + ahead)) as box:
            await put(database, box, ended("call_2"))
            await settled(database, "waiting", "delivered")
            ahead = 59.0
            box.wake()
            await settled(database, "delivered", "delivered")
    assert receiver.ids[0] == receiver.ids[2] == row["id"]
    assert receiver.got[0].body == receiver.got[2].body


async def test_a_worker_that_lost_its_claim_changes_nothing_but_success(tmp_path: Path, database: Database) -> None:
    box = outbox(database, store(tmp_path, Receiver(port=9)))
    await put(database, box, ended("call_1"))
    now = time.time()
    async with database.begin() as connection:
        (slow,) = await queue.claim(connection, "default", "slow", now, now + 1, 8, 8)
    async with database.begin() as connection:
        (other,) = await queue.claim(connection, "default", "other", now + 2, now + 9, 8, 8)
        failed = queue.Outcome(slow, queue.WAITING, 500, "it answered 500", now + 99)
        await queue.settle(connection, "slow", [failed], now + 2)
    (row,) = await rows(database)
    assert (row["claimed_by"], row["attempts"], other.id) == ("other", 0, slow.id)
    async with database.begin() as connection:
        taken = queue.Outcome(slow, queue.DELIVERED, 204, "it answered 204", now)
        await queue.settle(connection, "slow", [taken], now + 2)
        await queue.settle(connection, "other", [queue.Outcome(other, queue.DEAD, 410, "gone", now)], now + 2)
    assert await states(database) == ["delivered"]


async def test_stopping_gives_up_the_claims(tmp_path: Path, database: Database) -> None:
    receiver = Receiver(hang=1)
    async with delivering(tmp_path, database, receiver) as box:
        await put(database, box, ended("call_1"))
        await receiver.requests(1)
    (row,) = await rows(database)
    assert (row["state"], row["claimed_by"], row["claimed_until"]) == ("waiting", "", 0.0)


async def test_two_replicas_deliver_each_event_once(tmp_path: Path, database: Database) -> None:
    receiver = Receiver()
    async with (
        delivering(tmp_path, database, receiver) as box,
        running(outbox(database, store(tmp_path, receiver), "w2")) as other,
    ):
        await put(database, box, *(ended(f"call_{number}") for number in range(100)))
        other.wake()
        await settled(database, *["delivered"] * 100)
    assert len(receiver.got) == len(set(receiver.ids)) == 100
