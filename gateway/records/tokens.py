"""One-time call tokens that any gateway of the same database redeems, each once.

The voice request and its media stream may reach different gateways. While the database does not answer,
a gateway still redeems the tokens that it has issued itself: calls go on, and only then might a token that
another gateway has redeemed meanwhile open a second stream here.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from sqlalchemy import delete, select

from gateway.records.database import Database, DatabaseUnavailable, insert
from gateway.records.portion import fitting
from gateway.records.tables import call_tokens
from gateway.twilio.tokens import CallTokens, Ticket, TokenRefused

log = logging.getLogger(__name__)

T = TypeVar("T")

LIFETIME = 60.0
"""Seconds from the voice request to its stream."""
DATABASE_WAIT = 1.0
"""Seconds a caller is kept waiting for the database before we go on without it."""


class SharedTokens:
    """Tokens in `database`, once there is one, and in memory. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.database: Database | None = None
        self._clock = clock
        self._stored = CallTokens(LIFETIME)
        self._unstored = CallTokens(LIFETIME)
        self._spent = CallTokens(LIFETIME)
        """Redeemed here while the database, which still has them, did not answer."""
        self._late: set[asyncio.Task[Any]] = set()
        """What the database was asked and has not ended yet, given up or not."""

    async def close(self) -> None:
        """Go on without the database; returns when it owes no answer any more."""
        self.database = None
        if self._late:
            await asyncio.wait(self._late)

    async def issue(self, ticket: Ticket) -> str:
        """A new token of 43 characters."""
        now = self._clock()
        token = secrets.token_urlsafe(32)
        kept = self._stored if await self._store(token, ticket, now) else self._unstored
        kept.hold(token, ticket, now)
        return token

    async def redeem(self, token: str, call_sid: str) -> Ticket:
        """Use a token up. Raises TokenRefused if it is unknown, used, too old or another call's."""
        now = self._clock()
        if self.database is None or self._unstored.holds(token, now):
            return self._unstored.redeem(token, call_sid, now)
        if self._spent.holds(token, now):
            raise TokenRefused("the call token is unknown, used or expired")
        try:
            return await self._in_time(self._take(self.database, token, call_sid, now))
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("a call token is redeemed without the database: %s", error)
            ticket = self._stored.redeem(token, call_sid, now)
            self._spent.hold(token, ticket, now)
            return ticket

    async def _store(self, token: str, ticket: Ticket, now: float) -> bool:
        if self.database is None:
            return False
        row = {
            "digest": _digest(token),
            "carrier_call_id": ticket.call_sid,
            "persona": ticket.persona,
            "from_number": ticket.from_number,
            "to_number": ticket.to_number,
            "expires_at": now + LIFETIME,
        }
        try:
            await self._in_time(self._put(self.database, row, now))
        except (DatabaseUnavailable, TimeoutError) as error:
            log.warning("a call token is kept in memory only: %s", error)
            return False
        return True

    async def _put(self, database: Database, row: Mapping[str, object], now: float) -> None:
        async with database.begin() as connection:
            await connection.execute(delete(call_tokens).where(call_tokens.c.expires_at <= now))
            await connection.execute(insert(connection, call_tokens).values(fitting(call_tokens, row)))

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns. Raises TimeoutError after DATABASE_WAIT, however long giving it up takes.

        A driver that waits for a lock, or for a host that is silent, ends only when that does.
        """
        task = asyncio.create_task(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        try:
            await asyncio.wait([task], timeout=DATABASE_WAIT)
            if task.done():
                return task.result()
        finally:
            task.cancel()
        raise TimeoutError(f"the database did not answer within {DATABASE_WAIT:g} s")

    async def _take(self, database: Database, token: str, call_sid: str, now: float) -> Ticket:
        key, columns = call_tokens.c.digest == _digest(token), call_tokens.c
        async with database.begin() as connection:
            mine = delete(call_tokens).where(key, columns.carrier_call_id == call_sid, columns.expires_at > now)
            row = (await connection.execute(mine.returning(*columns))).mappings().one_or_none()
            if row is None:
                others = await connection.scalar(select(columns.digest).where(key, columns.expires_at > now))
                raise TokenRefused(
                    "the call token belongs to another call" if others else "the call token is unknown, used or expired"
                )
        self._stored.drop(token)
        return Ticket(call_sid, row["persona"], row["from_number"], row["to_number"])


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
