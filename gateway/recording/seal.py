"""Encryption at rest: files that grow while a call runs and can be read only with the data key.

Owns the format and its ciphers. Pure: bytes in, bytes out; it knows no files and no sound.

A sealed file has a key of its own, drawn at random and wrapped with the data key (AES key wrap, RFC 3394),
so that nonces only need to differ within one file: there they count. The chunks follow the STREAM
construction (Hoang, Reyhanitabar, Rogaway, Vizár: Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance, 2015): a chunk's nonce holds its number and whether it is the last, so that one that was
moved, dropped or repeated does not open, and a file that was cut is known by its missing last chunk.

    header   magic (8 bytes), id of the data key (8), the file's key wrapped (40)
    chunk    size of what follows (u32, little-endian), AES-256-GCM ciphertext and tag; size as associated data
    ...
    last     a chunk under a nonce that says so, perhaps empty; missing after a crash

After kill -9 everything up to the last whole chunk can be read.
"""

from __future__ import annotations

import hashlib
import struct
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

SUFFIX = ".sealed"
KEY_BYTES = 32
MAGIC = b"CPXSEAL1"
LARGEST_CHUNK = 1 << 24
"""Bytes of ciphertext; a size beyond it is damage."""

_ID_BYTES = 8
_HEADER_BYTES = len(MAGIC) + _ID_BYTES + KEY_BYTES + 8
_TAG_BYTES = 16
_SIZE = struct.Struct("<I")


class Unreadable(Exception):
    """A recording cannot be read: no key that fits, damage, or it is none. The message is one sentence."""


class KeyInvalid(ValueError):
    """What was given as data key is none; the message says what it must be."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key that wraps the keys of files. It never encrypts anything else."""

    secret: bytes

    @property
    def id(self) -> bytes:
        """Eight bytes that name the key and say nothing of it."""
        return hashlib.sha256(b"callplex data key\0" + self.secret).digest()[:_ID_BYTES]


def data_keys(text: str) -> tuple[DataKey, ...]:
    """The keys of a setting: base64 of 32 bytes each, separated by commas. The first seals, all of them open.

    Raises KeyInvalid, which does not repeat the text.
    """
    keys = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            secret = b64decode(part, validate=True)
        except ValueError:
            secret = b""
        if len(secret) != KEY_BYTES:
            raise KeyInvalid("a data key must be base64 of 32 random bytes; make one with: openssl rand -base64 32")
        keys.append(DataKey(secret))
    return tuple(keys)


class Sealer:
    """Seals one file: `header` first, then a chunk for each piece of content, the last one marked.

    `file_key`: 32 random bytes that were never used before.
    """

    def __init__(self, key: DataKey, file_key: bytes) -> None:
        self.header = MAGIC + key.id + aes_key_wrap(key.secret, file_key)
        self._cipher = AESGCM(file_key)
        self._count = 0

    def seal(self, content: bytes, last: bool = False) -> bytes:
        """The next chunk as it lies in the file."""
        size = _SIZE.pack(len(content) + _TAG_BYTES)
        chunk = size + self._cipher.encrypt(_nonce(self._count, last), content, size)
        self._count += 1
        return chunk


class Opener:
    """Opens one sealed file from its start. `complete` once the last chunk has been read.

    Raises Unreadable if the file is not ours or none of the keys fits.
    """

    def __init__(self, file: BinaryIO, keys: Sequence[DataKey], name: str) -> None:
        self.complete = False
        self._file = file
        self._name = name
        header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES or not header.startswith(MAGIC):
            raise Unreadable(f"{name} is not a sealed recording, or its beginning is damaged")
        key_id, wrapped = header[len(MAGIC) : len(MAGIC) + _ID_BYTES], header[len(MAGIC) + _ID_BYTES :]
        fitting = [key for key in keys if key.id == key_id]
        if not fitting:
            raise Unreadable(f"{name} was sealed with another data key, whose id is {key_id.hex()}{_have(keys)}")
        try:
            self._cipher = AESGCM(aes_key_unwrap(fitting[0].secret, wrapped))
        except InvalidUnwrap:
            raise Unreadable(f"{name} is damaged: its key does not unwrap") from None

    def chunks(self) -> Iterator[bytes]:
        """The content, chunk for chunk, each verified before it is returned.

        Ends early, with `complete` false, where the file breaks off: after a crash, or when it was cut.
        Raises Unreadable where it was altered.
        """
        count = 0
        while not self.complete:
            size = self._file.read(_SIZE.size)
            if len(size) < _SIZE.size:
                return
            length = _SIZE.unpack(size)[0]
            if not _TAG_BYTES <= length <= LARGEST_CHUNK:
                raise self._altered(count)
            sealed = self._file.read(length)
            if len(sealed) < length:
                return
            yield self._open(sealed, size, count)
            count += 1
        if self._file.read(1):
            raise Unreadable(f"{self._name} goes on after its end: something was added to it")

    def _open(self, sealed: bytes, size: bytes, count: int) -> bytes:
        try:
            return self._cipher.decrypt(_nonce(count, False), sealed, size)
        except InvalidTag:
            pass
        try:
            content = self._cipher.decrypt(_nonce(count, True), sealed, size)
        except InvalidTag:
            raise self._altered(count) from None
        self.complete = True
        return content

    def _altered(self, count: int) -> Unreadable:
        return Unreadable(f"{self._name} is damaged or was altered: chunk {count + 1} does not open")


def content_size(file: BinaryIO) -> int:
    """Bytes of content in the whole chunks of a sealed file, by their sizes alone; leaves the position at the end."""
    file.seek(0, 2)
    end = file.tell()
    place, total = _HEADER_BYTES, 0
    while place + _SIZE.size <= end:
        file.seek(place)
        length = _SIZE.unpack(file.read(_SIZE.size))[0]
        place += _SIZE.size + length
        if place > end or not _TAG_BYTES <= length <= LARGEST_CHUNK:
            break
        total += length - _TAG_BYTES
    return total


def _nonce(count: int, last: bool) -> bytes:
    return count.to_bytes(11, "big") + bytes([last])


def _have(keys: Sequence[DataKey]) -> str:
    if not keys:
        return "; set it as CALLPLEX_DATA_KEY"
    return f"; CALLPLEX_DATA_KEY has {', '.join(key.id.hex() for key in keys)}"
