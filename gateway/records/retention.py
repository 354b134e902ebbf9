"""Records that have had their days: found once a day, deleted, and proved gone in the audit log.

Owns the job and when it runs. How long a persona's calls are kept is the persona's to say; sound is
deleted by whoever keeps it, through `delete_sound`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import Database, DatabaseUnavailable
from gateway.records.erasure import Erased, Eraser
from gateway.records.tables import call_texts, calls, utterances

log = logging.getLogger(__name__)

DAY = 86_400.0
WHO = "retention"
AT_ONCE = 200
BREATH = 0.02
"""Seconds between two deletions, so that a day's worth of them never delays a call."""
FIRST_AFTER = 60.0
"""Seconds from the start to the first run; then one a day."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Days after which parts of a persona's calls go; None: never."""

    text_days: float | None = None
    record_days: float | None = None


Policies = Callable[[], Mapping[str, Keep]]
"""How long each persona's calls are kept, as the personas say now."""


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
                    log.info("retention: %d records or their texts had their days and are deleted", len(gone))
            except (DatabaseUnavailable, OSError) as error:
                log.error("retention: %s; it is tried again tomorrow", error)
            await asyncio.sleep(DAY)

    async def enforce(self) -> list[Erased]:
        """Delete all that is due now. Raises DatabaseUnavailable, OSError; what was deleted stays so."""
        gone: list[Erased] = []
        for persona, keep in self._policies().items():
            for days, find, remove in (
                (keep.record_days, _whole, self._eraser.delete_record),
                (keep.text_days, _with_text, self._eraser.delete_text),
            ):
                if days is not None:
                    gone += await self._all(persona, self._clock() - days * DAY, find, remove)
        return gone

    async def _all(
        self,
        persona: str,
        before: float,
        find: Callable[[AsyncConnection, str, float], Awaitable[Sequence[str]]],
        remove: Callable[[str, str], Awaitable[Erased | None]],
    ) -> list[Erased]:
        gone: list[Erased] = []
        while True:
            async with self._database.read() as connection:
                due = await find(connection, persona, before)
            for call_id in due:
                if (erased := await remove(call_id, WHO)) is not None:
                    gone.append(erased)
                await asyncio.sleep(BREATH)
            if len(due) < AT_ONCE:
                return gone


async def _whole(connection: AsyncConnection, persona: str, before: float) -> list[str]:
    return list(await connection.scalars(_old(persona, before)))


async def _with_text(connection: AsyncConnection, persona: str, before: float) -> list[str]:
    has = select(utterances.c.call_id).where(utterances.c.call_id == calls.c.id).exists()
    found = select(call_texts.c.call_id).where(call_texts.c.call_id == calls.c.id).exists()
    return list(await connection.scalars(_old(persona, before).where(has | found)))


def _old(persona: str, before: float) -> Select[tuple[str]]:
    """Ended calls that are older, oldest first, some at once."""
    old = (calls.c.persona == persona, calls.c.started_at < before, calls.c.ended_at < before, calls.c.state == "ended")
    return select(calls.c.id).where(*old).order_by(calls.c.started_at).limit(AT_ONCE)
