"""Sound that may not be kept yet: an encrypted file whose key exists only in this process's memory.

Owns the file and the cipher. The file is unlinked as soon as it is open and its key is never written
anywhere, so that what was not released is gone with the process, however that ends, and cannot be read by
whoever takes the disk. Memory stays small however long the release takes: eight bytes for each second that waits.
"""

from __future__ import annotations

import errno
import os
import secrets
from array import array
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.recording.file import write_at

_TAG_BYTES = 16


class Spool:
    """A queue of blocks of at most `largest` bytes. Not for several threads at once.

    Raises OSError as the disk does; after that it is of no use but to be closed.
    """

    def __init__(self, path: Path, largest: int) -> None:
        """`path` exists only for a moment; the folder must be there."""
        self._room = largest + _TAG_BYTES
        self._cipher = AESGCM(secrets.token_bytes(32))
        self._taken = 0
        self._sizes = array("I")
        self._places = array("I")
        """Where in the file the waiting blocks lie, the oldest first, in units of the largest block."""
        self._free = array("I")
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        path.unlink()

    def __len__(self) -> int:
        """Blocks that wait."""
        return len(self._places)

    @property
    def next_size(self) -> int:
        """Bytes of the oldest block."""
        return self._sizes[0] - _TAG_BYTES

    def put(self, content: bytes) -> None:
        """Append a block."""
        sealed = self._cipher.encrypt(_nonce(self._taken + len(self._places)), content, None)
        if len(sealed) > self._room:
            raise ValueError(f"a block has at most {self._room - _TAG_BYTES} bytes, not {len(content)}")
        place = self._free.pop() if self._free else len(self._places)
        write_at(self._descriptor, sealed, place * self._room)
        self._places.append(place)
        self._sizes.append(len(sealed))

    def take(self) -> bytes:
        """Remove the oldest block and return it. Raises IndexError if there is none."""
        place, size = self._places[0], self._sizes[0]
        sealed = os.pread(self._descriptor, size, place * self._room)
        try:
            content = self._cipher.decrypt(_nonce(self._taken), sealed, None)
        except InvalidTag:
            raise OSError(errno.EIO, "the spool is damaged") from None
        del self._places[0], self._sizes[0]
        self._free.append(place)
        self._taken += 1
        return content

    def close(self) -> None:
        """What still waits is gone for good. Safe to call twice."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)


def _nonce(number: int) -> bytes:
    """A block's number, which no other block of this key ever has."""
    return number.to_bytes(12, "big")
