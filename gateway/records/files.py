"""What calls leave behind, first version: one folder a call, `DATA_DIR/calls/<call id>/`.

Owns where a call's files lie and that a transcript is never half written. Knows nothing of audio, legs
or engines. Whoever writes a file first makes its folder, off the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

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
        return self.path / "transcript.json"


class Records:
    """The calls under `data_dir`."""

    def __init__(self, data_dir: Path) -> None:
        self._calls = data_dir / "calls"
        self.place = place_of(data_dir)

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


def place_of(data_dir: Path) -> str:
    """How others call this disk: host:folder, where the host is a pod's name in Kubernetes."""
    return f"{socket.gethostname()}:{data_dir.absolute()}"


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
