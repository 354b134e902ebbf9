"""Call tokens in the database: any gateway redeems them, once, and an outage stops no call."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from gateway.records import database as database_module
from gateway.records import tokens as module
from gateway.records.database import Database
from gateway.records.tables import call_tokens
from gateway.records.tokens import LIFETIME, SharedTokens
from gateway.twilio.tokens import Ticket, TokenRefused
from tests.databases import sqlite_url
from tests.gateway.records.made_up import NOON, all_of

pytestmark = pytest.mark.anyio

TICKET = Ticket("CA1", "bank", "+1555", "+1666")


class Clock:
    now = NOON

    def __call__(self) -> float:
        return self.now


def gateway(database: Database | None, clock: Clock) -> SharedTokens:
    tokens = SharedTokens(clock)
    tokens.database = database
    return tokens


async def test_another_gateway_redeems_a_token_and_then_nobody_does(database: Database) -> None:
    clock = Clock()
    one, other = gateway(database, clock), gateway(database, clock)
    token = await one.issue(TICKET)
    assert await other.redeem(token, "CA1") == TICKET
    for again in (one, other):
        with pytest.raises(TokenRefused, match="unknown, used or expired"):
            await again.redeem(token, "CA1")


async def test_of_many_at_once_only_one_redeems(database: Database) -> None:
    clock = Clock()
    token = await gateway(database, clock).issue(TICKET)
    tries = (gateway(database, clock).redeem(token, "CA1") for _ in range(6))
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert [result for result in results if not isinstance(result, TokenRefused)] == [TICKET]


async def test_a_token_shown_by_another_call_stays_good_for_its_own(database: Database) -> None:
    tokens = gateway(database, Clock())
    token = await tokens.issue(TICKET)
    with pytest.raises(TokenRefused, match="another call"):
        await tokens.redeem(token, "CA2")
    assert await tokens.redeem(token, "CA1") == TICKET


async def test_old_tokens_are_refused_and_go(database: Database) -> None:
    clock = Clock()
    tokens = gateway(database, clock)
    old = await tokens.issue(TICKET)
    clock.now += LIFETIME + 0.1
    with pytest.raises(TokenRefused, match="expired"):
        await tokens.redeem(old, "CA1")
    await tokens.issue(TICKET)
    assert len(await all_of(database, call_tokens)) == 1


@pytest.mark.parametrize("token", ["", "x", "\ud800", "é" * 5000])
async def test_a_made_up_token_is_refused(database: Database, token: str) -> None:
    with pytest.raises(TokenRefused):
        await gateway(database, Clock()).redeem(token, "CA1")


async def test_a_token_issued_before_there_was_a_database_opens_its_call(database: Database) -> None:
    tokens = gateway(None, Clock())
    token = await tokens.issue(TICKET)
    tokens.database = database
    assert await tokens.redeem(token, "CA1") == TICKET
    with pytest.raises(TokenRefused):
        await tokens.redeem(token, "CA1")


async def test_calls_go_on_while_the_database_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 0.01)
    async with Database.open(sqlite_url(tmp_path)) as database:
        tokens = gateway(database, Clock())
        before = await tokens.issue(TICKET)
        with closing(sqlite3.connect(tmp_path / "callplex.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            during = await tokens.issue(TICKET)
            for token in (before, during):
                assert await tokens.redeem(token, "CA1") == TICKET
                with pytest.raises(TokenRefused):
                    await tokens.redeem(token, "CA1")
        for token in (before, during):
            with pytest.raises(TokenRefused):
                await tokens.redeem(token, "CA1")


async def test_a_caller_waits_no_longer_than_meant_for_a_locked_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "BUSY_SECONDS", 1.5)
    monkeypatch.setattr(module, "DATABASE_WAIT", 0.05)
    async with Database.open(sqlite_url(tmp_path)) as database:
        tokens = gateway(database, Clock())
        before = await tokens.issue(TICKET)
        with closing(sqlite3.connect(tmp_path / "callplex.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            during = await tokens.issue(TICKET)
            for token in (before, during):
                assert await tokens.redeem(token, "CA1") == TICKET
            assert time.monotonic() - began < 1.0
        await tokens.close()
