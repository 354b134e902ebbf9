"""Calls that the database does not know yet, kept as files until it does.

Owns `DATA_DIR/unfiled/`: `<call id>.json` is a call that ended while the database could not be written,
whole; `<call id>.begun` says that one was answered, and by which gateway, so that a crash leaves a lost
call and not none. A call is filed from there before its file goes, and filing one twice changes nothing,
so a crash between the two does no harm.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gateway.records.files import write_whole
from gateway.records.portion import Portion, begun_from_json, begun_to_json, from_json, to_json

log = logging.getLogger(__name__)

Found = TypeVar("Found")


class Unfiled:
    """The files under `data_dir`. Everything here blocks for the disk, and raises OSError as it does."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / "unfiled"

    def note(self, instance: str, portion: Portion) -> None:
        """Store that the gateway `instance` answers a call. Raises OSError, and then nothing is left behind."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._note(portion.start.call_id), begun_to_json(instance, portion))

    def keep(self, portion: Portion) -> None:
        """Store an ended call, whole. Raises OSError, and then nothing is left behind."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path(portion.start.call_id), to_json(portion))
        self._note(portion.start.call_id).unlink(missing_ok=True)

    def read(self, limit: int) -> list[Portion]:
        """Some of the ended calls that wait, oldest first; damaged files are set aside with a line in the log."""
        return self._read("*.json", from_json, limit)

    def noted(self, limit: int) -> list[tuple[str, Portion]]:
        """Some of the calls that were answered, each with its gateway; otherwise as `read`."""
        return self._read("*.begun", begun_from_json, limit)

    def _read(self, pattern: str, parse: Callable[[bytes], Found], limit: int) -> list[Found]:
        found: list[Found] = []
        for path in self._oldest(pattern, limit):
            try:
                found.append(parse(path.read_bytes()))
            except FileNotFoundError:
                continue  # another gateway on this disk has stored it meanwhile
            except ValueError as error:
                log.error("%s is damaged: %s", path, error)
                path.replace(path.with_suffix(".damaged"))
        return found

    def _oldest(self, pattern: str, limit: int) -> list[Path]:
        found = []
        for path in self._folder.glob(pattern):
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

    def waits(self, call_id: str) -> bool:
        """Whether the database is still to be told of the call."""
        return self._path(call_id).exists() or self._note(call_id).exists()

    def aside(self) -> list[str]:
        """The calls that were set aside."""
        return [path.stem for path in self._folder.glob("*.damaged")]

    def drop(self, call_id: str) -> None:
        """The ended call is in the database."""
        self._path(call_id).unlink(missing_ok=True)

    def drop_note(self, call_id: str) -> None:
        """The database knows of the call."""
        self._note(call_id).unlink(missing_ok=True)

    def erase(self, call_id: str) -> list[Path]:
        """Delete what waits or was set aside of a call; returns the files that were there. Raises OSError."""
        found = [path for path in (*self._paths(call_id), self._note(call_id)) if path.exists()]
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

    def _note(self, call_id: str) -> Path:
        return self._folder / f"{call_id}.begun"
