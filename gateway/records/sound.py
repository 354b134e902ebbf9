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
from gateway.recording.store import RecordingStore, StoreError


class SoundUnavailable(Exception):
    """A recording cannot be deleted or read now; the message says which and why."""


class Sound:
    """The recordings in `store`; `keys` open those that are sealed."""

    def __init__(self, store: RecordingStore, keys: Sequence[DataKey]) -> None:
        self._store = store
        self._keys = keys

    async def delete(self, name: str) -> dict[str, Any]:
        """Delete the recording wherever it is; returns the proof. Raises SoundUnavailable."""
        try:
            deletion = await asyncio.to_thread(self._store.delete, name, time.time())
        except StoreError as error:
            raise SoundUnavailable(str(error)) from None
        return deletion.detail()

    async def open(self, name: str) -> Recording:
        """The recording, read to its end once, so that no damage shows up halfway. Raises SoundUnavailable."""
        return await asyncio.to_thread(self._open, name)

    def _open(self, name: str) -> Recording:
        try:
            file = self._store.open(name)
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
