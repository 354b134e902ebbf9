"""Leases: the calls of a dead gateway are closed once, those of a living one never."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records import instances as module
from gateway.records.database import Database
from gateway.records.files import Records, make_place
from gateway.records.instances import LEASE_SECONDS, RENEW_EVERY, Instance
from gateway.records.portion import CallStart, Portion
from gateway.records.storing import store
from gateway.records.tables import calls, deliveries, instances
from gateway.webhooks import queue
from gateway.webhooks.events import Event
from gateway.webhooks.lane import LEASE
from tests.gateway.records.made_up import NOON, SAID, all_of, end, put, start

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def instance(database: Database, folder: Path, clock: Clock | None = None, **options: Any) -> Instance:
    return Instance(database, Records(folder), put, monotonic=clock or Clock(), **options)


async def live_call(database: Database, owner: Instance, begun: CallStart) -> None:
    async with database.begin() as connection:
        await store(connection, owner.id, [Portion(begun, True, SAID)])


async def age(database: Database, owner: Instance, seconds: float) -> None:
    """As if the gateway had last renewed its lease that much earlier."""
    async with database.begin() as connection:
        column = instances.c.lease_until
        await connection.execute(
            sa.update(instances).where(instances.c.id == owner.id).values(lease_until=column - seconds)
        )


async def test_the_calls_of_a_dead_gateway_are_closed_once(database: Database, tmp_path: Path) -> None:
    dead, *others = (instance(database, tmp_path) for _ in range(4))
    for one in (dead, *others):
        await one.renew()
    for number in range(6):
        await live_call(database, dead, start(f"c{number}"))
    await live_call(database, others[0], start("living"))
    await age(database, dead, LEASE_SECONDS + 1)
    closed = await asyncio.gather(*(one.close_lost() for one in others))
    assert sorted(call_id for some in closed for call_id in some) == [f"c{number}" for number in range(6)]
    for row in await all_of(database, calls):
        assert (row["state"], row["end_reason"]) == (("live", "") if row["id"] == "living" else ("ended", "lost"))
    told = [(row["call_id"], row["event"]) for row in await all_of(database, deliveries)]
    assert sorted(told) == sorted((f"c{n}", kind) for n in range(6) for kind in ("call.failed", "call.ended"))
    document = orjson.loads((tmp_path / "calls" / "c3" / "transcript.json").read_bytes())
    assert (document["end_reason"], len(document["utterances"])) == ("lost", 3)
    assert [await one.close_lost() for one in others] == [[], [], []]


async def test_many_lost_calls_are_closed_in_a_row(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSED_AT_ONCE", 2)
    clock = Clock()
    dead, other = instance(database, tmp_path), instance(database, tmp_path, clock)
    for number in range(7):
        await live_call(database, dead, start(f"c{number}"))
    while not other.may_judge():
        await other.renew()
        clock.now += LEASE_SECONDS / 5
    closing = asyncio.create_task(other.run())
    try:
        # A pause after each two would take longer.
        async with asyncio.timeout(2 * RENEW_EVERY):
            while any(row["state"] == "live" for row in await all_of(database, calls)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        closing.cancel()
        await asyncio.wait([closing])


async def test_a_lost_call_that_cannot_be_closed_stops_no_other(database: Database, tmp_path: Path) -> None:
    async def refuse(connection: AsyncConnection, events: Sequence[Event]) -> None:
        if any(event.call_id == "bad" for event in events):
            raise ValueError("not to be told")
        await put(connection, events)

    dead, other = instance(database, tmp_path), Instance(database, Records(tmp_path), refuse, monotonic=Clock())
    for call_id in ("bad", "good", "too"):
        await live_call(database, dead, start(call_id))
    assert sorted(await other.close_lost()) == ["good", "too"]
    assert {row["id"]: row["state"] for row in await all_of(database, calls)} == {
        "bad": "live",
        "good": "ended",
        "too": "ended",
    }
    assert {row["call_id"] for row in await all_of(database, deliveries)} == {"good", "too"}


async def test_what_a_dead_gateway_had_claimed_is_free_before_the_claims_run_out(
    database: Database, tmp_path: Path
) -> None:
    dead, living, other = (instance(database, tmp_path) for _ in range(3))
    for one in (dead, living, other):
        await one.renew()
    for call_id, owner in (("c1", dead), ("c2", living)):
        begun = start(call_id, started_at=time.time() - 60)
        async with database.begin() as connection:
            await put(connection, Portion(begun, True).news(NOON))
            assert await queue.claim(connection, "crm", owner.id, begun.started_at, time.time() + LEASE, 1, 2)
    await other.release_dead()
    async with database.read() as connection:
        assert await queue.held(connection, "crm", time.time()) == 2
    await age(database, dead, LEASE_SECONDS + 1)
    await other.release_dead()
    async with database.read() as connection:
        assert await queue.held(connection, "crm", time.time()) == 1
    holders = {row["call_id"]: row["claimed_by"] for row in await all_of(database, deliveries)}
    assert holders == {"c1": "", "c2": living.id}


async def test_a_lost_call_keeps_its_recording_whenever_that_began(database: Database, tmp_path: Path) -> None:
    dead, other = instance(database, tmp_path), instance(database, tmp_path, recorded=(told := list[str]()).append)
    for one in (dead, other):
        await one.renew()
    await live_call(database, dead, start("c1", recording="calls/c1/call.wav"))
    await live_call(database, dead, start("c2"))
    async with database.begin() as connection:
        await store(connection, dead.id, [Portion(start("c2"), False, recording="calls/c2/call.opus")])
    await live_call(database, dead, start("c3"))
    await age(database, dead, LEASE_SECONDS + 1)
    assert len(await other.close_lost()) == 3
    names = {row["id"]: row["recording"] for row in await all_of(database, calls)}
    assert names == {"c1": "calls/c1/call.wav", "c2": "calls/c2/call.opus", "c3": ""}
    assert sorted(told) == ["calls/c1/call.wav", "calls/c2/call.opus"]


async def test_a_lost_call_ended_at_its_last_sign_of_life(database: Database, tmp_path: Path) -> None:
    dead, other = instance(database, tmp_path), instance(database, tmp_path)
    await dead.renew()
    (lease,) = await all_of(database, instances)
    await live_call(database, dead, start("old"))
    await live_call(database, dead, start("new", started_at=lease["lease_until"] + 1000))
    await age(database, dead, 500)
    await other.renew()
    await other.close_lost()
    new, old = await all_of(database, calls)
    assert old["ended_at"] == pytest.approx(lease["lease_until"] - 500 - LEASE_SECONDS)
    assert new["ended_at"] == pytest.approx(new["started_at"] + SAID[-1].end)


async def test_a_call_that_was_written_down_before_its_gateway_died_ended_as_it_says(
    database: Database, tmp_path: Path
) -> None:
    dead, other = instance(database, tmp_path), instance(database, tmp_path)
    begun = start()
    await live_call(database, dead, begun)
    await Records(tmp_path).finish(end(begun, reason="agent_goodbye").document)
    await other.renew()
    assert await other.close_lost() == ["c1"]
    (row,) = await all_of(database, calls)
    assert (row["end_reason"], row["ended_at"], row["engine"]) == ("agent_goodbye", NOON + 60, "echo")
    assert [row["event"] for row in await all_of(database, deliveries)] == ["call.ended"]


async def test_what_was_said_in_a_lost_call_does_not_come_onto_another_disk(database: Database, tmp_path: Path) -> None:
    """Its own gateway deletes what lies on its disk, and would not know of this."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        make_place(folder)
    dead, other = instance(database, there), instance(database, here)
    await live_call(database, dead, start("c1", files_on=Records(there).place))
    await live_call(database, dead, start("c2", files_on=Records(here).place))
    assert sorted(await other.close_lost()) == ["c1", "c2"]
    assert [path.parent.name for path in here.rglob("transcript.json")] == ["c2"]


async def test_nobody_is_judged_before_everybody_could_renew(database: Database, tmp_path: Path) -> None:
    clock = Clock()
    one = instance(database, tmp_path, clock)
    assert not one.may_judge()
    for _ in range(5):
        await one.renew()
        clock.now += LEASE_SECONDS / 5
        assert not one.may_judge()
    await one.renew()
    assert one.may_judge()
    clock.now += LEASE_SECONDS  # The database was away.
    await one.renew()
    assert not one.may_judge()


async def test_its_own_calls_are_never_lost_to_a_gateway(database: Database, tmp_path: Path) -> None:
    late = instance(database, tmp_path)
    await late.renew()
    await live_call(database, late, start())
    await age(database, late, 1000)
    assert await late.close_lost() == []


async def test_a_gateway_that_leaves_or_is_long_dead_is_forgotten(database: Database, tmp_path: Path) -> None:
    dead, leaving, staying = (instance(database, tmp_path) for _ in range(3))
    for one in (dead, leaving, staying):
        await one.renew()
    await leaving.leave()
    await age(database, dead, 3 * LEASE_SECONDS)
    await staying.close_lost()
    assert [row["id"] for row in await all_of(database, instances)] == [staying.id]
