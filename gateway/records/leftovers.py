"""Files on this disk of calls that were deleted in the database while this gateway could not be asked.

Another gateway deletes the rows of a call whose own gateway does not run, and cannot reach its disk. So
each looks through its own when it starts, once a day, and when a call ends that was deleted before it was over, and
deletes what the database says was deleted. Of an erased call that goes for its sound in the bucket, too. What cannot
go now, as it is just moving there, is looked for again soon.

A file goes only for a word of the database's: the call's row says that it is erased, or the audit log that
the call or a part of it was deleted, and no row says that it is there again. That a call is unknown is no
reason: it may not be filed yet, or the database may be empty or another's. Such files stay, and are counted in the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.recording.file import lock
from gateway.recording.store import FILES
from gateway.records import audit
from gateway.records.database import Database, DatabaseUnavailable
from gateway.records.erasure import DeleteRecording, delete_files
from gateway.records.files import Records
from gateway.records.retention import BREATH, DAY, WHO
from gateway.records.sound import SoundUnavailable
from gateway.records.tables import audit as audit_table
from gateway.records.tables import call_texts, calls
from gateway.records.unfiled import Unfiled

log = logging.getLogger(__name__)

AT_ONCE = 200
AGAIN = 60.0
"""Seconds after which a database that did not answer is asked again."""
SOON = 2.0
"""Seconds after which it is looked again for what could not be deleted; doubled each time, up to a day. So it is gone
after twice the time that an upload or an outage of the bucket takes, at the latest."""
LEFT = "left"
"""What the audit log calls the files that went here, beside what `Eraser` calls its own."""


@dataclass(slots=True)
class Known:
    """What the database says of one call."""

    row: Mapping[str, Any] | None = None
    deleted: set[str] = field(default_factory=set)
    """What was: `all`, `caller`, `text`, `sound`, as the audit log has it."""

    @property
    def erased(self) -> bool:
        return self.row is not None and self.row["state"] == "ended" and self.row["erased_at"] is not None

    def parts(self) -> tuple[bool, bool]:
        """Whether what was said, and whether the sound, was deleted and is not in the database again."""
        if self.row is None:
            return "all" in self.deleted, "all" in self.deleted
        if self.row["state"] != "ended" or self.erased:
            return self.erased, self.erased
        return (
            "text" in self.deleted and self.row["text_of"] is None,
            "sound" in self.deleted and not self.row["recording"],
        )


class Leftovers:
    """The job. `runs` says whether a call is on the line here; `done` is called after each whole look.

    `recordings` deletes sound in the bucket, if there is one, as `Sound.delete`.
    """

    def __init__(
        self,
        database: Database,
        records: Records,
        unfiled: Unfiled,
        runs: Callable[[str], bool] = lambda call_id: False,
        done: Callable[[], None] = lambda: None,
        recordings: DeleteRecording | None = None,
    ) -> None:
        self._database = database
        self._records = records
        self._unfiled = unfiled
        self._runs = runs
        self._done = done
        self._recordings = recordings
        self._due = asyncio.Event()
        self._wait = DAY
        """Seconds from the last look to the next."""
        self._again = SOON
        """Those from a look that leaves something which must go."""
        self._kept = False
        """This one did."""

    def look(self) -> None:
        """Something is left of a call that has just ended."""
        self._again = SOON
        self._due.set()

    async def run(self) -> None:
        """At once, then once a day and after each `look`, and soon after one that left something, until cancelled."""
        while True:
            self._due.clear()
            wait = AGAIN
            try:
                await self.delete()
                self._done()
                wait = self._wait
            except (DatabaseUnavailable, OSError) as error:
                log.error("files of deleted calls may be left here: %s; it is tried again", error)
            except SQLAlchemyError:
                log.exception("files of deleted calls may be left here; it is tried again")
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._due.wait()

    async def delete(self) -> list[str]:
        """Delete all that is left here; returns of which calls something was.

        Raises DatabaseUnavailable and OSError; what was deleted stays so.
        """
        gone: list[str] = []
        unknown = 0
        again, self._kept = self._again, False
        here = await asyncio.to_thread(self._here)
        for first in range(0, len(here), AT_ONCE):
            some = here[first : first + AT_ONCE]
            async with self._database.read() as connection:
                found = await _known(connection, some)
            gone += [call_id for call_id in some if await self._delete(call_id, found[call_id])]
            unknown += await asyncio.to_thread(self._unknown, found)
            await asyncio.sleep(BREATH)
        self._wait = again if self._kept else DAY
        if not self._kept:
            self._again = SOON
        elif self._again == again:  # else somebody has asked for a look meanwhile
            self._again = min(2 * again, DAY)
        if gone:
            log.warning("files of %d calls were left here that had been deleted; they are gone now", len(gone))
        if unknown:
            log.warning("%d calls have files here and are not in the database; the files are kept", unknown)
        return gone

    def _here(self) -> list[str]:
        return sorted({*self._records.call_ids(), *self._unfiled.aside()})

    async def _delete(self, call_id: str, known: Known) -> bool:
        """Whether anything was left of the call, and is gone now."""
        text, sound = known.parts()
        if not (text or sound) or self._runs(call_id):
            return False
        try:
            sounds = await self._delete_sound(call_id) if known.erased else []
            files = await asyncio.to_thread(self._delete_here, call_id, known, text, sound)
        except (OSError, SoundUnavailable) as error:
            self._kept = True
            why = "call %s was deleted, and its files here cannot be: %s; it is tried again in %g s"
            log.error(why, call_id, error, self._again)
            return False
        if files or sounds:
            async with self._database.begin() as connection:
                detail: dict[str, Any] = {"what": LEFT, "files": files, "place": self._records.place}
                if sounds:
                    detail["recordings"] = sounds
                await audit.note(connection, WHO, audit.DELETE, call_id, **detail)
        return bool(files or sounds)

    async def _delete_sound(self, call_id: str) -> list[dict[str, Any]]:
        """What of its sound had moved to the bucket, and what would: before its files, so that it is done again."""
        if self._recordings is None:
            return []
        proofs = [await self._recordings(f"calls/{call_id}/{name}", "") for name in FILES]
        return [proof for proof in proofs if proof["places"]]

    def _delete_here(self, call_id: str, known: Known, text: bool, sound: bool) -> list[dict[str, Any]]:
        """In a thread. Returns what was there; nothing where it may still be needed.

        Raises OSError, and SoundUnavailable for sound that is just being recorded or moved.
        """
        # It is filed first: only of one that was erased nothing comes into the database any more.
        if not known.erased and self._unfiled.waits(call_id):
            return []
        folder = self._records.folder(call_id).path
        with ExitStack() as held:
            for path in _sound_in(folder):
                try:
                    held.callback(lock(path).close)
                except BlockingIOError:
                    raise SoundUnavailable(f"{path.name} is still being recorded or moved") from None
                except FileNotFoundError:
                    continue
            files = delete_files(folder, text, sound)
        if text and sound:
            files += [{"name": f"unfiled/{path.name}"} for path in self._unfiled.erase(call_id)]
        return files

    def _unknown(self, found: Mapping[str, Known]) -> int:
        """How many calls have a folder here of which the database has never heard, as far as it tells."""
        strangers = [call_id for call_id, known in found.items() if known.row is None and not known.deleted]
        return sum(
            self._records.folder(one).path.exists() and not self._runs(one) and not self._unfiled.waits(one)
            for one in strangers
        )


def _sound_in(folder: Path) -> list[Path]:
    return [folder / name for name in FILES if (folder / name).exists()]


async def _known(connection: AsyncConnection, call_ids: Sequence[str]) -> dict[str, Known]:
    """Of each what the database says. The rows first: what is deleted in between has its row yet, and its files."""
    found: dict[str, Known] = defaultdict(Known, {call_id: Known() for call_id in call_ids})
    columns = (calls.c.id, calls.c.state, calls.c.recording, calls.c.erased_at, call_texts.c.call_id.label("text_of"))
    rows = select(*columns).outerjoin(call_texts, call_texts.c.call_id == calls.c.id).where(calls.c.id.in_(call_ids))
    for row in (await connection.execute(rows)).mappings():
        found[row["id"]].row = dict(row)
    deleted = (audit_table.c.action.in_((audit.ERASE, audit.DELETE)), audit_table.c.call_id.in_(call_ids))
    for call_id, detail in await connection.execute(
        select(audit_table.c.call_id, audit_table.c.detail).where(*deleted)
    ):
        found[call_id].deleted.add(str(detail.get("what", "")))
    return found
