"""Deleting what was kept of calls, on request or by age, and the proof that it is gone.

Owns what belongs to a call and where it lies: rows, deliveries' bodies, files. Deleting a text leaves the
bare record: that there was a call, when, how long, how it ended. Each deletion is in the audit log with
what was deleted; it is written after the files are gone and in the transaction that deletes the rows, so
an interrupted one is done again.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Table, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records import audit
from gateway.records.database import Database
from gateway.records.files import TRANSCRIPT, Records
from gateway.records.instances import alive_on
from gateway.records.portion import Portion
from gateway.records.sound import FilesElsewhere
from gateway.records.storing import hold, store
from gateway.records.tables import call_texts, calls, deliveries, events, utterances
from gateway.records.unfiled import Unfiled
from gateway.webhooks.queue import NO_BODY

ERASED = "the call was erased"

DeleteRecording = Callable[[str, str], Awaitable[dict[str, Any]]]
"""Deletes the recording of that name and place, as `Sound.delete`. Raises SoundUnavailable."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What was deleted of one call."""

    call_id: str
    detail: dict[str, Any]


class Eraser:
    """Deletes in one database and one data folder. Methods raise DatabaseUnavailable, OSError and SoundUnavailable.

    What a gateway that lives has on its disk is for that one to delete: FilesElsewhere. Of one that does not, the
    proof says that its disk was not reached; it deletes the files itself when it comes back (`leftovers.py`).

    `recordings` deletes sound wherever it is kept, `in_bucket` says that this is not the data folder; `unfiled` are
    calls that have not reached the database yet.
    """

    def __init__(
        self,
        database: Database,
        records: Records,
        recordings: DeleteRecording | None = None,
        unfiled: Unfiled | None = None,
        in_bucket: bool = False,
    ) -> None:
        self._database = database
        self._records = records
        self._recordings = recordings
        self._unfiled = unfiled
        self._in_bucket = in_bucket

    async def calls_of(self, number: str) -> list[str]:
        """The calls of one caller that are over, those included that wait for the database as files."""
        waiting = [] if self._unfiled is None else await asyncio.to_thread(self._unfiled.of, number)
        async with self._database.read() as connection:
            found = await calls_of(connection, number)
        return [*found, *(one for one in waiting if one not in found)]

    async def erase(self, call_id: str, who: str) -> Erased | None:
        """Delete what one call's caller said and what names the caller; the bare record stays.

        None if there is no such call, or it is still on the line.
        """
        if self._unfiled is not None:
            waiting = await asyncio.to_thread(self._unfiled.find, call_id)
            if waiting is not None and waiting.end is not None:
                await self._file_bare(waiting)
        return await self._delete(call_id, who, audit.ERASE, self._forget_caller)

    async def delete_text(self, call_id: str, who: str) -> Erased | None:
        """Delete what was said; numbers and sound stay."""
        return await self._delete(call_id, who, audit.DELETE, self._forget_text, sound=False)

    async def delete_sound(self, call_id: str, who: str) -> Erased | None:
        """Delete the recording; what was said stays as text."""
        return await self._delete(call_id, who, audit.DELETE, self._forget_sound, text=False)

    async def delete_record(self, call_id: str, who: str) -> Erased | None:
        """Delete all of it, that there was a call too; the audit log alone remembers."""
        return await self._delete(call_id, who, audit.DELETE, self._forget_all)

    async def _delete(
        self,
        call_id: str,
        who: str,
        action: str,
        forget: Callable[[AsyncConnection, str], Awaitable[None]],
        text: bool = True,
        sound: bool = True,
    ) -> Erased | None:
        ended = (calls.c.id == call_id, calls.c.state == "ended")
        async with self._database.read() as connection:
            row = (await connection.execute(select(calls).where(*ended))).mappings().one_or_none()
            if row is None:
                return None
            away = text and self._records.elsewhere(row["files_on"])
            if away and await alive_on(connection, row["files_on"]):
                in_folder = sound and row["recording"] and not self._in_bucket
                name = row["recording"] if in_folder else f"calls/{call_id}/{TRANSCRIPT}"
                raise FilesElsewhere(name, row["files_on"])
        folder = self._records.folder(call_id).path
        detail: dict[str, Any] = {}
        if away and not await asyncio.to_thread(folder.exists):
            detail["not_reached"] = row["files_on"]
        if sound and row["recording"] and self._recordings is not None:
            detail["recording"] = await self._delete_sound(row["recording"], row["files_on"])
        files = await asyncio.to_thread(delete_files, folder, text, sound)
        if text and sound and self._unfiled is not None:
            gone = await asyncio.to_thread(self._unfiled.erase, call_id)
            files += [{"name": f"unfiled/{path.name}"} for path in gone]
        async with self._database.begin() as connection:
            # First of all, so that whoever was about to tell more of the call has done so, or finds it erased.
            await hold(connection, call_id)
            if text:
                detail["rows"] = await _count(connection, call_id)
            await forget(connection, call_id)
            detail |= {"what": forget.__name__.removeprefix("_forget_"), "files": files}
            await audit.note(connection, who, action, call_id, **detail)
        return Erased(call_id, detail)

    async def _delete_sound(self, name: str, files_on: str) -> dict[str, Any]:
        """The proof. A recording on the disk of a gateway that lives is for that one to delete."""
        assert self._recordings is not None
        proof = await self._recordings(name, files_on)
        if proof.get("not_reached"):
            async with self._database.read() as connection:
                if await alive_on(connection, files_on):
                    raise FilesElsewhere(name, files_on)
        return proof

    async def _file_bare(self, waiting: Portion) -> None:
        """Store that there was the call, and nothing of what was said, so that it can be erased like any other."""
        if waiting.end is not None:
            over = replace(waiting.end, document={"metrics": waiting.end.document.get("metrics", {})}, utterances=())
            bare = Portion(waiting.start, begins=True, end=over)
            async with self._database.begin() as connection:
                await store(connection, "", [bare])

    async def _forget_sound(self, connection: AsyncConnection, call_id: str) -> None:
        await connection.execute(update(calls).where(calls.c.id == call_id).values(recording=""))

    async def _forget_text(self, connection: AsyncConnection, call_id: str) -> None:
        for table in (utterances, events, call_texts):
            await connection.execute(delete(table).where(table.c.call_id == call_id))
        mine = deliveries.c.call_id == call_id
        await connection.execute(update(deliveries).where(mine).values(body=NO_BODY))
        undelivered = update(deliveries).where(mine, deliveries.c.state == "waiting")
        await connection.execute(undelivered.values(state="dead", reason=ERASED, settled_at=time.time()))

    async def _forget_caller(self, connection: AsyncConnection, call_id: str) -> None:
        await self._forget_text(connection, call_id)
        values = {"carrier_call_id": "", "transfer_target": "", "recording": "", "erased_at": time.time()}
        for direction, side in (("inbound", "from_number"), ("outbound", "to_number")):
            mine = (calls.c.id == call_id, calls.c.direction == direction)
            await connection.execute(update(calls).where(*mine).values({**values, side: ""}))

    async def _forget_all(self, connection: AsyncConnection, call_id: str) -> None:
        await connection.execute(delete(deliveries).where(deliveries.c.call_id == call_id))
        await connection.execute(delete(calls).where(calls.c.id == call_id))


async def calls_of(connection: AsyncConnection, number: str) -> list[str]:
    """The calls of one caller, oldest first: those from the number, and those we made to it."""
    theirs = or_(
        and_(calls.c.direction == "inbound", calls.c.from_number == number),
        and_(calls.c.direction == "outbound", calls.c.to_number == number),
    )
    query = select(calls.c.id).where(theirs, calls.c.state == "ended").order_by(calls.c.started_at)
    return list(await connection.scalars(query))


async def _count(connection: AsyncConnection, call_id: str) -> dict[str, int]:
    """How many rows hold what was said, before they are deleted."""

    async def count(table: Table) -> int:
        found = await connection.scalar(select(func.count()).select_from(table).where(table.c.call_id == call_id))
        return int(found or 0)

    return {str(table.name): await count(table) for table in (utterances, events, call_texts, deliveries)}


def delete_files(folder: Path, text: bool, sound: bool) -> list[dict[str, Any]]:
    """Delete the call's transcript, its sound, or its whole folder; returns what was there: names, sizes, digests."""
    pattern = ("*" if text else "call.*") if sound else TRANSCRIPT
    found = sorted(folder.rglob(pattern))
    gone = [
        {"name": path.name, "size": path.stat().st_size, "sha256": _digest(path)} for path in found if path.is_file()
    ]
    if text and sound and folder.exists():
        shutil.rmtree(folder)
    else:
        for path in found:
            path.unlink(missing_ok=True)
    left = [path for path in found if path.exists()]
    if left:
        raise OSError(f"{left[0]} is still there after it was deleted")
    return gone


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
