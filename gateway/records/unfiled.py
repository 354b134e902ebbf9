"""Calls that ended while the database could not be written, kept as files until it can.

Owns `DATA_DIR/unfiled/<call id>.json`. A call is filed from there before its file goes, and filing one
twice changes nothing, so a crash between the two does no harm.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from gateway.records.files import write_whole
from gateway.records.portion import Portion, from_json, to_json

log = logging.getLogger(__name__)


class Unfiled:
    """The files under `data_dir`. Everything here blocks for the disk, and raises OSError as it does."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "unfiled"

    def keep(self, portion: Portion) -> None:
        """Store an ended call, whole. Raises OSError, and then nothing is left behind."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(portion.start.call_id), to_json(portion))

    def read(self, limit: int) -> list[Portion]:
        """Some of what is waiting, oldest first; damaged files are set aside with a line in the log."""
        found: list[Portion] = []
        for path in self._oldest(limit):
            try:
                found.append(from_json(path.read_bytes()))
            except FileNotFoundError:
                continue  # another gateway on this disk has stored it meanwhile
            except ValueError as error:
                log.error("%s is damaged: %s", path, error)
                path.replace(path.with_suffix(".damaged"))
        return found

    def _oldest(self, limit: int) -> list[Path]:
        found = []
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)[:limit]]

    def find(self, call_id: str) -> Portion | None:
        """The call, if it waits or was set aside and can be read."""
        for path in self._paths(call_id):
            with contextlib.suppress(OSError, ValueError):
                return from_json(path.read_bytes())
        return None

    def of(self, number: str) -> list[str]:
        """The calls of one caller that wait or were set aside, oldest first: from the number, and to it."""
        found = []
        for path in (*self._folder.glob("*.json"), *self._folder.glob("*.damaged")):
            with contextlib.suppress(OSError, ValueError):
                start = from_json(path.read_bytes()).start
                if number == (start.to_number if start.direction == "outbound" else start.from_number):
                    found.append((start.started_at, start.call_id))
        return [call_id for _, call_id in sorted(set(found))]

    def drop(self, call_id: str) -> None:
        """The call is in the database."""
        self._path(call_id).unlink(missing_ok=True)

    def erase(self, call_id: str) -> list[Path]:
        """Delete what waits or was set aside of a call; returns the files that were there. Raises OSError."""
        found = [path for path in self._paths(call_id) if path.exists()]
        for path in found:
            path.unlink(missing_ok=True)
        return found

    def set_aside(self, portion: Portion) -> None:
        """It cannot be stored: keep it under another name, for a person to look at. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(portion.start.call_id).with_suffix(".damaged"), to_json(portion))

    def _paths(self, call_id: str) -> tuple[Path, Path]:
        path = self._path(call_id)
        return path, path.with_suffix(".damaged")

    def _path(self, call_id: str) -> Path:
        return self._folder / f"{call_id}.json"
