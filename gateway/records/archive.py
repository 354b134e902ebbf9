"""All that is kept of calls: the database with its journal, this gateway's lease and the call tokens.

Owns the life of these parts. The desk tells it when a call begins and ends; whoever wants to read takes
`database` and the queries.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from gateway.leg import CallInfo, Outcome
from gateway.records.calls import calls_by_state, outcome_of
from gateway.records.database import Database, DatabaseUnavailable
from gateway.records.erasure import Eraser
from gateway.records.files import Records
from gateway.records.instances import Instance
from gateway.records.journal import CallJournal, Journal, Put
from gateway.records.leftovers import Leftovers
from gateway.records.policies import Keep, LastPolicies
from gateway.records.portion import CallEnd, CallStart
from gateway.records.retention import Retention
from gateway.records.sound import Sound
from gateway.records.tokens import SharedTokens
from gateway.records.unfiled import Unfiled
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.webhooks import queue

log = logging.getLogger(__name__)

OUTCOME_WAIT = 3.0
"""Seconds we wait for a call on another gateway that is just ending."""
OUTCOME_EVERY = 0.2
COUNT_EVERY = 10.0
"""Seconds for which counts of the database are good, however often the metrics are asked for."""


class Archive:
    """The records of this gateway's calls. Without `open`, calls leave files and nothing else."""

    def __init__(self, settings: Settings, records: Records, telemetry: Telemetry, sound: Sound) -> None:
        self.tokens = SharedTokens()
        self.database: Database | None = None
        self.sound = sound
        self.policies: Callable[[], Mapping[str, Keep]] = dict
        """How long the calls of each persona that there is now are kept."""
        self.cleared = asyncio.Event()
        """Set once no file is left here of a call that the database says was deleted."""
        self._settings = settings
        self._records = records
        self._telemetry = telemetry
        self._unfiled = Unfiled(settings.data_dir)
        self._count_at = 0.0
        self._journal: Journal | None = None

    @asynccontextmanager
    async def open(self, database: Database, name: str, put: Put, told: Callable[[], None]) -> AsyncIterator[None]:
        """Keep records in the database; on leaving, what calls have left is written first.

        `name`: this gateway's among those that share the database. `put` stores deliveries inside a transaction of
        ours, `told` is called when there may be new ones.
        """
        await asyncio.to_thread(self._records.settle)
        self.sound.place = self._records.place
        instance = Instance(database, self._records, put, self.sound.ended, name=name)
        await instance.renew()
        journal = Journal(database, instance.id, put, self._unfiled, told, self._alarm, erased=lambda: leftovers.look())
        last = LastPolicies(self._settings.data_dir)
        in_bucket = self.sound.delete if self._settings.s3.wanted else None
        leftovers = Leftovers(database, self._records, self._unfiled, journal.runs, self.cleared.set, in_bucket)
        retention = Retention(database, self.eraser(database), lambda: last.update(self.policies()))
        self.database = self.tokens.database = database
        self._journal = journal
        async with asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(journal.run())
            leasing = tasks.create_task(instance.run())
            cleaning = [tasks.create_task(job.run()) for job in (leftovers, retention)]
            try:
                yield
            finally:
                journal.stop()
                await asyncio.wait([writing])
                leasing.cancel()
                for job in cleaning:
                    job.cancel()
        self.database = self._journal = None
        await self.tokens.close()
        with suppress(DatabaseUnavailable):
            await instance.leave()

    def eraser(self, database: Database) -> Eraser:
        """What deletes calls: their rows, their files and their sound, wherever that is."""
        return Eraser(database, self._records, self.sound.delete, self._unfiled, self._settings.s3.wanted)

    def begin(
        self, info: CallInfo, persona: str, version: str, fallback: str, recording: str = ""
    ) -> CallJournal | None:
        """A call is about to be answered, once it is `known`; its `finish` must follow.

        `recording`: what the store calls its sound, if that is kept from the beginning.
        """
        if self._journal is None:
            return None
        return self._journal.begin(
            CallStart(
                call_id=info.call_id,
                carrier=info.carrier,
                carrier_call_id=info.carrier_call_id or info.call_id,
                direction=info.direction,
                from_number=info.from_number,
                to_number=info.to_number,
                persona=persona,
                persona_version=version,
                fallback=fallback,
                started_at=time.time(),
                recording=recording,
                files_on=self.sound.place,
            )
        )

    async def known(self, call: CallJournal | None) -> None:
        """Returns once no crash makes us forget the call: the database knows of it, or soon the disk does."""
        if self._journal is not None and call is not None:
            await self._journal.known(call)

    async def finish(self, call: CallJournal | None, end: CallEnd) -> None:
        """The call is over; returns once its end and its deliveries are stored, or are safe on the disk."""
        if self._journal is not None and call is not None:
            await self._journal.finish(call, end)

    async def outcome(self, carrier_call_id: str) -> Outcome | None:
        """How a call that may have been another gateway's ended. None: not known, or not over."""
        if self.database is None:
            return None
        with suppress(TimeoutError, DatabaseUnavailable):
            async with asyncio.timeout(OUTCOME_WAIT):
                while True:
                    async with self.database.read() as connection:
                        found = await outcome_of(connection, carrier_call_id)
                    if found is None:
                        return None
                    if found[0] == "ended":
                        return found[1]
                    await asyncio.sleep(OUTCOME_EVERY)
        return None

    async def count(self) -> None:
        """Bring the metrics of what is stored up to date, once in COUNT_EVERY at most; never without a database."""
        now = asyncio.get_running_loop().time()
        if self.database is None or now < self._count_at:
            return
        self._count_at = now + COUNT_EVERY
        with suppress(DatabaseUnavailable):
            async with self.database.read() as connection:
                states = await calls_by_state(connection)
                told, oldest = await queue.counts(connection), await queue.oldest_waiting(connection)
            ages = {endpoint: max(0.0, time.time() - at) for endpoint, at in oldest.items()}
            self._telemetry.stored(states, told, ages)

    def _alarm(self, trouble: str | None) -> None:
        self._telemetry.records_waiting.set(trouble is not None)
        if trouble is not None:
            self._telemetry.database_failures.inc()
