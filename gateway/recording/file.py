"""A recording's file while it grows: only ever whole pieces, sealed where there is a key.

Owns the descriptor, its lock, and that what a full disk took of a piece is taken back. Knows nothing of
sound. Everything here blocks for the disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from gateway.recording.seal import KEY_BYTES, DataKey, Sealer


class RecordingFile:
    """One file, from its first byte to its last. Raises OSError; then what was appended before is still whole."""

    def __init__(self, path: Path, key: DataKey | None) -> None:
        """An earlier file of that name is replaced. The lock tells others that the call runs, and dies with us."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._sealer = Sealer(key, secrets.token_bytes(KEY_BYTES)) if key else None
        self._size = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._descriptor, 0)
        except OSError:
            os.close(self._descriptor)
            raise
        if self._sealer:
            self._write(self._sealer.header)

    def append(self, content: bytes, start: bytes = b"") -> None:
        """Write `content` at the end, then `start` over the file's first bytes (of a sealed file they stay)."""
        if self._sealer:
            self._write(self._sealer.seal(content))
            return
        self._write(content)
        if start:
            write_at(self._descriptor, start, 0)

    def close(self, complete: bool) -> None:
        """`complete`: nothing is missing, so a sealed file gets its last chunk. Safe to call twice."""
        if self._descriptor < 0:
            return
        try:
            if self._sealer and complete:
                self._write(self._sealer.seal(b"", last=True))
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _write(self, data: bytes) -> None:
        try:
            write_at(self._descriptor, data, self._size)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data`; a full disk may take a part of it and only then raise OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def lock(path: Path) -> BinaryIO:
    """Open a finished recording for reading, so that nobody else moves or deletes it until it is closed.

    Raises BlockingIOError while it is being recorded, moved or deleted, FileNotFoundError if it is gone.
    """
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had the lock before us may have taken the file away.
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    except OSError:
        file.close()
        raise
    return file
