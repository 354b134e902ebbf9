"""A gateway that is killed with calls in flight: each is filed and told of once, and no other's is touched.

The long version of this, with 200 calls and 20 kills, is `tests/long/test_killed_gateways.py`. Here a
lease runs out when the test says so.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import Database
from gateway.records.files import Records
from gateway.records.instances import LEASE_SECONDS, Instance
from gateway.records.tables import instances
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.events import Event
from gateway.webhooks.outbox import Outbox
from tests.databases import sqlite_url
from tests.gateway.webhooks.receiver import outbox, running, settings
from tests.killed_gateways import Callers, FlakyReceiver, Fleet, Replica, check, records, told

pytestmark = pytest.mark.anyio

CALLS = 10
SEED = 7


async def run_out(database: Database, killed: Replica) -> None:
    """Time passes until the lease of a gateway that was killed is over."""
    async with database.begin() as connection:
        mine = instances.c.pid == killed.gateway.process.pid
        past = sa.update(instances).where(mine).values(lease_until=instances.c.lease_until - LEASE_SECONDS)
        assert (await connection.execute(past)).rowcount == 1


async def sweep(database: Database, folder: Path, box: Outbox, killed: Sequence[Replica]) -> list[str]:
    for one in killed:
        await run_out(database, one)
    judge = Instance(database, Records(folder / "survivor"), box.put)
    await judge.release_dead()
    closed = await judge.close_lost()
    box.wake()
    return closed


async def test_calls_of_a_killed_gateway_are_filed_and_told_of(
    tmp_path: Path, database: Database, database_url: str
) -> None:
    chance = random.Random(SEED)
    async with FlakyReceiver(SEED).listening() as receiver:
        fleet = Fleet(tmp_path, database_url, receiver)
        callers = Callers(fleet, CALLS, 600.0, chance)
        store = EndpointStore(settings(tmp_path, personas=fleet.personas))
        survivor = outbox(database, store, "survivor")
        shared = database.dialect == "postgresql"
        try:
            await asyncio.gather(*(fleet.start(place) for place in range(1 + shared)))
            async with callers.calling():
                assert await callers.busy(1.0)
                await asyncio.sleep(chance.uniform(0.0, 0.5))
                first, *rest = fleet.up
                fleet.kill(first)
                if not shared:
                    rest = [await fleet.start(first.place)]
                    assert await callers.busy(1.0)
                async with running(survivor):
                    closed = set(await sweep(database, tmp_path, survivor, [first]))
                    live = {row["id"] for row in await records(database) if row["state"] == "live"}
                    assert closed
                    assert live
                    assert not any(caller.line.closed.done() for caller in callers.all if caller.replica in rest)
                    await asyncio.sleep(chance.uniform(0.0, 0.5))
                    fleet.kill(rest[0])
                    assert live <= set(await sweep(database, tmp_path, survivor, rest))
                    # Well before what the dead had claimed runs out by itself.
                    await told(database, callers, receiver, LEASE_SECONDS)
        finally:
            fleet.close()
        reasons = await check(database, callers, receiver)
    assert reasons["lost"] >= CALLS


@pytest.mark.long
async def test_calls_answered_while_the_database_is_locked_are_lost_and_not_unheard_of(tmp_path: Path) -> None:
    """Nothing but the disk knows of them when their gateway is killed; the next one on that disk files them."""
    chance = random.Random(SEED)
    url = sqlite_url(tmp_path)
    async with FlakyReceiver(SEED).listening() as receiver, Database.open(url) as database:
        fleet = Fleet(tmp_path, url, receiver)
        callers = Callers(fleet, 4, 600.0, chance)
        try:
            killed = await fleet.start(0)
            with closing(sqlite3.connect(tmp_path / "callplex.sqlite3", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                async with callers.calling():
                    assert await callers.busy(1.0, 30.0)
                    assert await records(database) == []
                    fleet.kill(killed)
            await fleet.start(0)
            async with asyncio.timeout(10.0):
                while len(await records(database)) < sum(caller.heard for caller in callers.all):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            await run_out(database, killed)
            assert len(await Instance(database, Records(tmp_path), no_deliveries).close_lost()) == 4
        finally:
            fleet.close()
    assert not list((tmp_path / "replica-0" / "data" / "unfiled").iterdir())


async def no_deliveries(connection: AsyncConnection, events: Sequence[Event]) -> None:
    """Nobody is told."""
