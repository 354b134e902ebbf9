"""What calls leave behind, first version: one folder a call, `DATA_DIR/calls/<call id>/`.

Owns where a call's files lie, what other gateways call this disk, and that a transcript is never half
written. Knows nothing of audio, legs or engines. Whoever writes a file first makes its folder, off the event loop.

A disk has one name for ever, which `DATA_DIR/place` holds: a container's host name is another after each upgrade.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

log = logging.getLogger(__name__)

TRANSCRIPT = "transcript.json"
_PLACE = re.compile(r"(?P<was>.+)#[0-9a-f]{16}", re.DOTALL)
LONGEST_BARE = 238
"""Characters of host and folder, so that with its number the place fits its column."""
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class RecordsError(Exception):
    """A call's records cannot be kept; the message says which and what to do. The call goes on."""


@dataclass(frozen=True, slots=True)
class CallFolder:
    """Where one call's files lie."""

    path: Path

    @property
    def recording(self) -> Path:
        return self.path / "call.wav"

    @property
    def transcript(self) -> Path:
        return self.path / TRANSCRIPT


class Records:
    """The calls under `data_dir`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._calls = data_dir / "calls"
        self.place = place_of(data_dir)

    def settle(self) -> None:
        """A gateway is going to keep calls here: from now on the disk has its name. Blocks for the disk."""
        make_place(self._data_dir)
        self.place = place_of(self._data_dir)

    async def finish(self, document: Mapping[str, Any]) -> Path:
        """Store the call's document, as `call_document.to_document` builds it; returns the file.

        On disk, whole, when this returns; the event loop never waits for the disk. Raises RecordsError.
        """
        path = self.folder(str(document["call_id"])).transcript
        try:
            await asyncio.to_thread(write_transcript, path, document)
        except OSError as error:
            raise RecordsError(f"cannot write {path}: {error.strerror}; free space or make it writable") from error
        return path

    def folder(self, call_id: str) -> CallFolder:
        """Where the call's files lie or would lie. Raises RecordsError for an id that is no file name."""
        if not _SAFE_NAME.fullmatch(call_id):
            raise RecordsError(f"{call_id[:40]!r} cannot name a call's folder: use letters, digits, '_', '-' and '.'")
        return CallFolder(self._calls / call_id)

    def call_ids(self) -> list[str]:
        """The calls that have a folder here, running ones too. Blocks for the disk, and raises OSError as it does."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self._calls) as found:
            return sorted(one.name for one in found if _SAFE_NAME.fullmatch(one.name) and one.is_dir())
        return []

    def elsewhere(self, files_on: str) -> bool:
        """Whether a call's row says that its files lie on another's disk."""
        return elsewhere(files_on, self.place)


def place_of(data_dir: Path) -> str:
    """How others call this disk: host:folder#number, as its first gateway found them; without a number until then."""
    try:
        return _named(data_dir) or _bare(data_dir)
    except OSError:
        return _bare(data_dir)


def make_place(data_dir: Path) -> None:
    """Give this disk its name, if it has none. Several may do so at once.

    A disk that fails is told in the log, and goes by its host and folder.
    """
    path = data_dir / "place"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        folder = os.open(data_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if not _named(data_dir):
                write_whole(path, f"{_bare(data_dir)}#{secrets.token_hex(8)}\n".encode("utf-8", "replace"))
        finally:
            os.close(folder)
    except OSError as error:
        log.error("cannot read or write %s: %s; other gateways may take its calls for theirs", path, error)


def bare_place(place: str) -> str:
    """The place without its number, as versions before it had one stored it; empty if it has none."""
    found = _PLACE.fullmatch(place)
    return found["was"] if found else ""


def gateway_at(place: str) -> str:
    """The place in words, for the operator."""
    host, _, folder = (bare_place(place) or place).partition(":")
    return f"the gateway {host}, in {folder}"


def elsewhere(files_on: str, place: str) -> bool:
    """Whether `files_on`, as a call's row says, is another's disk than `place`. Empty: nobody knows."""
    return files_on not in ("", place, bare_place(place))


def _named(data_dir: Path) -> str:
    """The name that the disk was given; empty: none yet, or it is damaged. Raises OSError."""
    try:
        found = (data_dir / "place").read_text("utf-8").strip()
    except (FileNotFoundError, ValueError):
        return ""
    return found if _PLACE.fullmatch(found) else ""


def _bare(data_dir: Path) -> str:
    return f"{socket.gethostname()}:{data_dir.absolute()}"[:LONGEST_BARE]


def write_transcript(path: Path, document: Mapping[str, Any]) -> None:
    """Write the JSON so that a reader, now or after a crash, finds all of it or none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, orjson.dumps(dict(document), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file's content in one step and on disk: write beside it, fsync, rename, fsync the folder.

    Blocks for the disk. Raises OSError, and then leaves what was there. The file is its owner's alone.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
