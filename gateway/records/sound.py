"""The recordings that calls' rows name: deleted with its proof, and opened for whoever may hear them.

Owns the way from the records to the store, off the event loop. Who may, and the audit log, are the caller's affair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from gateway.recording.opus import OpusMissing
from gateway.recording.reading import Recording, Unreadable, open_recording
from gateway.recording.seal import DataKey
from gateway.recording.store import NotHere, RecordingStore, StoreError
from gateway.records.files import TRANSCRIPT, elsewhere, gateway_at


class SoundUnavailable(Exception):
    """A recording cannot be deleted or read now; the message says which and why."""


class FilesElsewhere(SoundUnavailable):
    """A recording, or what was said, lies on another gateway's disk; the message says on whose."""

    def __init__(self, name: str, files_on: str) -> None:
        advice = "ask that one"
        if not name.endswith(TRANSCRIPT):
            advice += ", or set CALLPLEX_S3_BUCKET for all to keep recordings in one place"
        super().__init__(f"{name} lies on {gateway_at(files_on)}; {advice}")


class Sound:
    """The recordings in `store`; `keys` open those that are sealed, `place` is what others call our disk.

    `files_on`: the place of the call's files, as its row says; empty where it does not.
    """

    def __init__(self, store: RecordingStore, keys: Sequence[DataKey], place: str = "") -> None:
        self.place = place
        self._store = store
        self._keys = keys

    def ended(self, name: str) -> None:
        """A call that was lost is closed: its recording may move, if it is here. Does not wait."""
        self._store.ended(name)

    async def delete(self, name: str, files_on: str = "") -> dict[str, Any]:
        """Delete the recording wherever it is; returns the proof. Raises SoundUnavailable.

        Where it may lie on another's disk, which we do not reach, the proof says so: `not_reached`.
        """
        try:
            deletion = await asyncio.to_thread(self._store.delete, name, time.time())
        except StoreError as error:
            raise SoundUnavailable(str(error)) from None
        if not deletion.places and elsewhere(files_on, self.place):
            return {**deletion.detail(), "gone": False, "not_reached": files_on}
        return deletion.detail()

    async def open(self, name: str, files_on: str = "") -> Recording:
        """The recording, read to its end once, so that no damage shows up halfway.

        Raises SoundUnavailable, and of that FilesElsewhere where another gateway has it.
        """
        return await asyncio.to_thread(self._open, name, files_on)

    def _open(self, name: str, files_on: str) -> Recording:
        try:
            file = self._store.open(name)
        except NotHere as error:
            if elsewhere(files_on, self.place):
                raise FilesElsewhere(name, files_on) from None
            raise SoundUnavailable(str(error)) from None
        except StoreError as error:
            raise SoundUnavailable(str(error)) from None
        try:
            recording = open_recording(file, name.rpartition("/")[2], self._keys)
            for _ in recording.wav():
                pass
        except (Unreadable, OpusMissing) as error:
            file.close()
            raise SoundUnavailable(str(error)) from None
        except OSError as error:
            file.close()
            raise SoundUnavailable(f"{name} cannot be read: {error.strerror}") from None
        return recording
