"""Records that have had their days: found once a day, deleted, and proved gone in the audit log.

Owns the job and when it runs. How long a persona's calls are kept is the persona's to say; sound is
deleted by whoever keeps it, and what another gateway has on its disk by that one. What cannot be deleted now, such
as sound in a bucket that is away, stops nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import Database, DatabaseUnavailable
from gateway.records.erasure import Erased, Eraser
from gateway.records.policies import Keep
from gateway.records.sound import FilesElsewhere, SoundUnavailable
from gateway.records.tables import call_texts, calls, utterances

log = logging.getLogger(__name__)

DAY = 86_400.0
WHO = "retention"
AT_ONCE = 200
BREATH = 0.02
"""Seconds between two deletions, so that a day's worth of them never delays a call."""
FIRST_AFTER = 60.0
"""Seconds from the start to the first run; then one a day."""


Policies = Callable[[], Mapping[str, Keep]]
"""How long each persona's calls are kept. May block for the disk."""


class Retention:
    """The job. Several gateways may run it on one database: deleting twice changes nothing."""

    def __init__(
        self, database: Database, eraser: Eraser, policies: Policies, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._eraser = eraser
        self._policies = policies
        self._clock = clock

    async def run(self) -> None:
        """Once a day until cancelled."""
        await asyncio.sleep(FIRST_AFTER)
        while True:
            try:
                gone = await self.enforce()
                if gone:
                    log.info("retention: %d records, texts or recordings had their days and are deleted", len(gone))
            except DatabaseUnavailable as error:
                log.error("retention: %s; it is tried again tomorrow", error)
            await asyncio.sleep(DAY)

    async def enforce(self) -> list[Erased]:
        """Delete all that is due now. Raises DatabaseUnavailable; what was deleted stays so."""
        gone: list[Erased] = []
        for persona, keep in (await asyncio.to_thread(self._policies)).items():
            for days, find, remove in (
                (keep.record_days, _whole, self._eraser.delete_record),
                (keep.audio_days, _with_sound, self._eraser.delete_sound),
                (keep.text_days, _with_text, self._eraser.delete_text),
            ):
                if days is not None:
                    gone += await self._all(persona, self._clock() - days * DAY, find, remove)
        return gone

    async def _all(
        self,
        persona: str,
        before: float,
        find: Callable[[AsyncConnection, Select[tuple[str]]], Awaitable[Sequence[str]]],
        remove: Callable[[str, str], Awaitable[Erased | None]],
    ) -> list[Erased]:
        gone: list[Erased] = []
        failed = 0
        while True:
            # What could not be deleted stays in front of the others: the oldest come first.
            async with self._database.read() as connection:
                due = await find(connection, _old(persona, before).offset(failed))
            for call_id in due:
                try:
                    if (erased := await remove(call_id, WHO)) is not None:
                        gone.append(erased)
                except FilesElsewhere:
                    failed += 1  # the gateway that has it runs this job, too
                except (OSError, SoundUnavailable) as error:
                    failed += 1
                    log.error("retention: call %s: %s; it is tried again tomorrow", call_id, error)
                await asyncio.sleep(BREATH)
            if len(due) < AT_ONCE:
                return gone


async def _whole(connection: AsyncConnection, old: Select[tuple[str]]) -> list[str]:
    return list(await connection.scalars(old))


async def _with_sound(connection: AsyncConnection, old: Select[tuple[str]]) -> list[str]:
    return list(await connection.scalars(old.where(calls.c.recording != "")))


async def _with_text(connection: AsyncConnection, old: Select[tuple[str]]) -> list[str]:
    has = select(utterances.c.call_id).where(utterances.c.call_id == calls.c.id).exists()
    found = select(call_texts.c.call_id).where(call_texts.c.call_id == calls.c.id).exists()
    return list(await connection.scalars(old.where(has | found)))


def _old(persona: str, before: float) -> Select[tuple[str]]:
    """Ended calls that are older, oldest first, some at once."""
    old = (calls.c.persona == persona, calls.c.started_at < before, calls.c.ended_at < before, calls.c.state == "ended")
    return select(calls.c.id).where(*old).order_by(calls.c.started_at, calls.c.id).limit(AT_ONCE)
