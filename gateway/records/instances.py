"""Which gateways are alive, and what becomes of the calls of one that is not.

A gateway holds a lease that it renews; when it has run out the gateway is dead, and whoever sees it
first closes its live calls as `lost`, each exactly once, with the deliveries that tell of it, and gives
up the deliveries that it had claimed. Leases are compared by the database's clock, for those of several
machines differ.

After an outage of the database all leases have run out although everybody lives. So a gateway closes
others' calls only when it could renew its own lease without a break for as long as a lease lasts: by then
every other that lives has renewed its own too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Float, delete, func, literal_column, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.calls import document_of, utterances_of
from gateway.records.database import Database, DatabaseUnavailable, insert
from gateway.records.files import LONGEST_BARE, Records, RecordsError
from gateway.records.journal import UNSTORABLE, Put
from gateway.records.portion import CallEnd, Portion, start_of
from gateway.records.storing import store
from gateway.records.tables import calls, events, instances
from gateway.transcript import Utterance
from gateway.webhooks import queue
from gateway.webhooks.events import Event

log = logging.getLogger(__name__)

LEASE_SECONDS = 20.0
RENEW_EVERY = 4.0
CLOSED_AT_ONCE = 50
"""Calls of one transaction. Our lease is renewed before the next: a gateway that has much to close lives, too."""
LOST = "lost"


def new_name() -> str:
    """A name that no gateway had or has: what it holds in the database, it holds by this."""
    return uuid.uuid4().hex


class Instance:
    """This gateway, `name`, among those that share the database.

    `recorded` is called with the recording's name of each call that we closed; `monotonic`: seconds of any
    steady clock.
    """

    def __init__(
        self,
        database: Database,
        records: Records,
        put: Put,
        recorded: Callable[[str], None] = lambda name: None,
        lease: float = LEASE_SECONDS,
        monotonic: Callable[[], float] | None = None,
        name: str = "",
    ) -> None:
        self.id = name or new_name()
        self._database = database
        self._records = records
        self._put = put
        self._recorded = recorded
        self._lease = lease
        self._monotonic = monotonic or asyncio.get_running_loop().time
        self._held_since: float | None = None
        self._renewed = 0.0
        self._released: set[str] = set()

    async def run(self) -> None:
        """Renew the lease, close what dead gateways left and give up what they claimed, until cancelled."""
        while True:
            closed: list[str] = []
            try:
                await self.renew()
                if self.may_judge():
                    await self.release_dead()
                    closed = await self.close_lost()
            except DatabaseUnavailable as error:
                log.warning("cannot renew this gateway's lease: %s", error)
            except SQLAlchemyError:
                log.exception("cannot renew this gateway's lease")
            if not closed:
                await asyncio.sleep(min(RENEW_EVERY, self._lease / 5))

    async def renew(self) -> None:
        """Hold the lease for another while. Raises DatabaseUnavailable."""
        now = self._monotonic()
        async with self._database.begin() as connection:
            until = clock(connection) + self._lease
            row = {"id": self.id, "host": self._records.place[:255], "pid": os.getpid(), "lease_until": until}
            statement = insert(connection, instances).values({**row, "started_at": clock(connection)})
            await connection.execute(
                statement.on_conflict_do_update(index_elements=["id"], set_={"lease_until": until})
            )
        if self._held_since is None or now - self._renewed >= self._lease:
            self._held_since = now
        self._renewed = now

    async def leave(self) -> None:
        """This gateway stops, and has no calls any more. Raises DatabaseUnavailable."""
        async with self._database.begin() as connection:
            await connection.execute(delete(instances).where(instances.c.id == self.id))

    def may_judge(self) -> bool:
        """Whether we held our own lease long enough to tell the dead from those who could not renew theirs."""
        return self._held_since is not None and self._renewed - self._held_since >= self._lease

    async def release_dead(self) -> None:
        """Give up the deliveries that dead gateways had claimed: nobody makes them, and they count at their endpoint.

        Raises DatabaseUnavailable.
        """
        async with self._database.read() as connection:
            query = select(instances.c.id).where(
                instances.c.lease_until <= clock(connection), instances.c.id != self.id
            )
            dead = set(await connection.scalars(query))
        for one in sorted(dead - self._released):
            async with self._database.begin() as connection:
                await queue.release(connection, one)
        self._released = dead

    async def close_lost(self) -> list[str]:
        """Close live calls of dead gateways, CLOSED_AT_ONCE at most; returns the ids of those that we closed.

        Raises DatabaseUnavailable; what was closed before that stays closed.
        """
        async with self._database.read() as connection:
            query = select(calls.c.id).where(*self._orphaned(connection)).limit(CLOSED_AT_ONCE)
            orphans = list(await connection.scalars(query))
        if not orphans:
            await self._forget_the_dead()
            return []
        closed = await self._close(orphans)
        if closed:
            log.warning("%d calls of gateways that died are closed as %s", len(closed), LOST)
        return closed

    async def _close(self, orphans: Sequence[str]) -> list[str]:
        """Close them in one transaction; if one cannot be stored, each in its own, so that it stops no other."""
        try:
            return await self._close_together(orphans)
        except UNSTORABLE:
            if len(orphans) > 1:
                return [closed for call_id in orphans for closed in await self._close([call_id])]
            log.exception("call %s is lost and cannot be closed", orphans[0])
            return []

    async def _close_together(self, orphans: Sequence[str]) -> list[str]:
        """Close those that nobody else closes or has closed."""
        portions: list[Portion] = []
        news: list[Event] = []
        async with self._database.begin() as connection:
            wanted = select(calls).where(calls.c.id.in_(orphans), *self._orphaned(connection))
            found = (await connection.execute(wanted.with_for_update(skip_locked=True))).mappings().all()
            for row in map(dict, found):
                end = await self._end_of(connection, row)
                portions.append(Portion(start_of(row), begins=False, end=end))
                news += portions[-1].news(end.ended_at)
            await store(connection, self.id, portions)
            await self._put(connection, news)
        for portion in portions:
            if portion.end is not None:
                # Of a call whose files lie on another's disk none comes onto this: nobody would look for it here.
                if not self._records.elsewhere(portion.start.files_on):
                    await self._write_transcript(portion.end)
                if portion.end.recording:
                    self._recorded(portion.end.recording)
        return [portion.start.call_id for portion in portions]

    async def _end_of(self, connection: AsyncConnection, row: Mapping[str, Any]) -> CallEnd:
        """How a lost call ended: as its transcript.json says, if it got that far, else at its last sign of life."""
        if (written := await asyncio.to_thread(self._transcript, row["id"])) is not None:
            return replace(written, recording=row["recording"])
        said = await utterances_of(connection, row["id"])
        at = await self._last_sign(connection, row, said)
        document = document_of({**row, "ended_at": at, "end_reason": LOST}, said)
        return CallEnd(at, LOST, document, said, engine=row["engine"], recording=row["recording"])

    async def _last_sign(self, connection: AsyncConnection, row: Mapping[str, Any], said: Sequence[Utterance]) -> float:
        """The last moment at which the call is known to have been up, seconds since 1970."""
        query = select(instances.c.lease_until).where(instances.c.id == row["instance"])
        lease_until: float = await connection.scalar(query) or 0.0
        event: float = (
            await connection.scalar(select(func.max(events.c.at)).where(events.c.call_id == row["id"])) or 0.0
        )
        spoken = max((one.end for one in said), default=0.0)
        started_at: float = row["started_at"]
        return max(lease_until - self._lease, started_at + max(event, spoken))

    def _transcript(self, call_id: str) -> CallEnd | None:
        """The end that the gateway had written down, but not yet told the database, when it died."""
        try:
            found = orjson.loads(self._records.folder(call_id).transcript.read_bytes())
            said = [Utterance(number, **one) for number, one in enumerate(found["utterances"], start=1)]
            ended_at = datetime.fromisoformat(found["ended_at"]).timestamp()
            return CallEnd(ended_at, found["end_reason"], found, said, engine=found["engine"])
        except (OSError, ValueError, KeyError, TypeError, RecordsError):
            return None

    async def _write_transcript(self, end: CallEnd) -> None:
        try:
            await self._records.finish(end.document)
        except RecordsError as error:
            log.error("call %s: %s", end.document["call_id"], error)

    async def _forget_the_dead(self) -> None:
        async with self._database.begin() as connection:
            has_calls = select(calls.c.id).where(calls.c.state == "live", calls.c.instance == instances.c.id).exists()
            await connection.execute(
                delete(instances).where(instances.c.lease_until < clock(connection) - self._lease, ~has_calls)
            )

    def _orphaned(self, connection: AsyncConnection) -> tuple[ColumnElement[bool], ...]:
        """Live calls of gateways other than this that hold no lease."""
        holder = select(instances.c.id).where(instances.c.id == calls.c.instance)
        alive = holder.where(instances.c.lease_until > clock(connection)).exists()
        return calls.c.state == "live", calls.c.instance != self.id, ~alive


async def alive_on(connection: AsyncConnection, place: str) -> bool:
    """Whether a gateway lives that has that disk, as `files.place_of` names it, or did before disks had numbers."""
    numbered = instances.c.host.startswith(f"{place[:LONGEST_BARE]}#", autoescape=True)
    lives = ((instances.c.host == place[:255]) | numbered, instances.c.lease_until > clock(connection))
    return await connection.scalar(select(instances.c.id).where(*lives).limit(1)) is not None


def clock(connection: AsyncConnection) -> ColumnElement[float]:
    """The database's own time, seconds since 1970."""
    if connection.dialect.name == "sqlite":
        return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Float)
    return literal_column("extract(epoch from clock_timestamp())::double precision", Float)
