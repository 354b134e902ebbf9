"""Gateways that are killed again and again with 200 calls in flight, on one SQLite file and on PostgreSQL.

Takes about ten minutes each; `--log-cli-level=info` shows the figures.
"""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

import pytest

from gateway.records.database import Database
from gateway.records.instances import LEASE_SECONDS
from gateway.webhooks.lane import LEASE
from tests.killed_gateways import Callers, FlakyReceiver, Fleet, check, told

log = logging.getLogger(__name__)

pytestmark = [pytest.mark.long, pytest.mark.anyio]

CALLS = 200
KILLS = 20
LONGEST = 240.0
"""Seconds of a call; a quarter of it is the shortest."""
PATIENCE = 60.0
"""Seconds that a slow machine is given to get all calls up again after a kill; then it kills all the same."""
SEED = 20261126


async def test_every_answered_call_is_filed_and_told_of(tmp_path: Path, database: Database, database_url: str) -> None:
    chance = random.Random(SEED)
    async with FlakyReceiver(SEED).listening() as receiver:
        fleet = Fleet(tmp_path, database_url, receiver)
        callers = Callers(fleet, CALLS, LONGEST, chance)
        flying: list[int] = []
        try:
            for place in range(2 if database.dialect == "postgresql" else 1):
                await fleet.start(place)
            async with callers.calling():
                for _ in range(KILLS):
                    await callers.busy(0.9, PATIENCE)
                    await asyncio.sleep(chance.uniform(0.0, 5.0))
                    flying.append(callers.in_flight)
                    victim = chance.choice(fleet.up)
                    fleet.kill(victim)
                    await fleet.start(victim.place)
                # Whoever judges the dead must have held its own lease before, and the calls of the living go on.
                await asyncio.sleep(2 * LEASE_SECONDS)
            await told(database, callers, receiver, LEASE + 300.0)
            reasons = await check(database, callers, receiver)
        finally:
            fleet.close()
    heard = sum(caller.heard for caller in callers.all)
    log.info("%s: %d kills with %d to %d calls in flight", database.dialect, KILLS, min(flying), max(flying))
    log.info("%d calls answered: %s; %d webhook requests", heard, dict(reasons), receiver.requests)
    assert reasons["lost"] > KILLS
    assert max(flying) >= 0.9 * CALLS
