"""Messages between two processes of one machine: a ring of bytes in shared memory, and a bell.

Owns the layout of the memory and how the other side is woken. One process puts, one gets; neither ever waits for the
other. Knows no message. The memory has no name and is no file, so that nothing is left behind by a process that is
killed; nor is it part of /dev/shm, of which a container has 64 MB by default and kills whoever writes beyond.

    0    u64  bytes put since the beginning       written by the one that puts
    64   u64  bytes taken since the beginning     written by the one that gets
    128  the ring: for each message u32 length, u32 session, u32 check, the bytes

Each count is one aligned store of 8 bytes, made after the bytes it counts. Between a store and whoever is woken to read
it lies the system call that rings the bell. Whoever is awake already may see, on processors that do not keep stores in
order (ARM's), a count before its bytes: the check, a CRC-32 of place, session and bytes, tells, and its bell follows.

What was taken is wiped by the one that put it, the only one that writes there, when next it looks for what has come:
otherwise sound would lie here until it is overwritten, long after its call.
"""

from __future__ import annotations

import mmap
import os
import select
import struct
import zlib
from dataclasses import dataclass

from model.engine_options import EngineRefused

_HEADER = struct.Struct("<III")
_DATA = 128
_BELLS = 4096


class PeerGone(Exception):
    """The process on the other side is no more."""


class RingFull(Exception):
    """The other side has not taken what it was sent."""


class Ring:
    """One direction. `memory` is as long as the ring and its counts."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._bytes = memoryview(memory)
        self._put_count = self._bytes[:8].cast("Q")
        self._taken_count = self._bytes[64:72].cast("Q")
        self._ring = self._bytes[_DATA:]
        self._size = len(self._ring)
        self._wiped = 0
        """Of the one that puts: bytes before this count are zeros, or overwritten."""

    def put(self, session: int, data: bytes) -> None:
        """Raises RingFull if there is no room for it."""
        at = self._put_count[0]
        needed = _HEADER.size + len(data)
        if needed > self._size - (at - self._taken_count[0]):
            raise RingFull
        self._write(at, _HEADER.pack(len(data), session, _check(at, session, data)))
        self._write(at + _HEADER.size, data)
        self._put_count[0] = at + needed
        self._wiped = max(self._wiped, at + needed - self._size)

    def fill(self, more: int) -> float:
        """What part of it would be taken if a message of so many bytes were put."""
        return (self._put_count[0] - self._taken_count[0] + _HEADER.size + more) / self._size

    def get(self) -> tuple[int, bytes] | None:
        """Session and bytes of the oldest message, if there is one."""
        at = self._taken_count[0]
        there = self._put_count[0] - at - _HEADER.size
        if there < 0:
            return None
        length, session, check = _HEADER.unpack(self._read(at, _HEADER.size))
        data = self._read(at + _HEADER.size, min(length, there))
        if check != _check(at, session, data):
            return None
        self._taken_count[0] = at + _HEADER.size + length
        return session, data

    def wipe(self) -> None:
        """For the one that puts: zero what was taken."""
        taken = self._taken_count[0]
        self._write(self._wiped, bytes(taken - self._wiped))
        self._wiped = taken

    def close(self) -> None:
        """Let go of the memory, which can then be closed."""
        for view in (self._ring, self._put_count, self._taken_count, self._bytes):
            view.release()

    def _write(self, at: int, data: bytes) -> None:
        start = at % self._size
        first = min(len(data), self._size - start)
        self._ring[start : start + first] = data[:first]
        self._ring[: len(data) - first] = data[first:]

    def _read(self, at: int, length: int) -> bytes:
        start = at % self._size
        first = min(length, self._size - start)
        return bytes(self._ring[start : start + first]) + bytes(self._ring[: length - first])


def _check(at: int, session: int, data: bytes) -> int:
    """Never that of the zeros a ring begins with, nor of what lay in the same place before."""
    return zlib.crc32(data, zlib.crc32(struct.pack("<QI", at, session)))


@dataclass(frozen=True, slots=True)
class Ends:
    """What the other process needs to hold its half of a channel: file descriptors, and bytes each way."""

    memory: int
    size: int
    ears: int
    bell: int

    @property
    def descriptors(self) -> tuple[int, int, int]:
        return (self.memory, self.ears, self.bell)

    def channel(self) -> Channel:
        """In the other process: its half. The descriptors are the channel's from now on."""
        out, into = (mmap.mmap(self.memory, self.size, offset=half * self.size) for half in (1, 0))
        os.close(self.memory)
        return Channel(out, into, self.ears, self.bell)

    def close(self) -> None:
        """In the process that made them, once the other has its own copies."""
        for descriptor in self.descriptors:
            os.close(descriptor)


class Channel:
    """Both directions and their bells, as one of the two processes holds them.

    A bell is a pipe, which ends when the process at its other end does, however that ends. `ears` is the descriptor
    to wait on until something comes.
    """

    def __init__(self, out: mmap.mmap, into: mmap.mmap, ears: int, bell: int) -> None:
        self.ears, self._bell = ears, bell
        self._maps = (out, into)
        self._out, self._in = Ring(out), Ring(into)
        os.set_blocking(ears, False)
        os.set_blocking(bell, False)

    def put(self, session: int, data: bytes) -> None:
        """Send a message. Raises RingFull, PeerGone."""
        self._out.put(session, data)
        try:
            os.write(self._bell, b"!")
        except BlockingIOError:
            pass  # The bell has not been heard for long: it still rings.
        except BrokenPipeError as error:
            raise PeerGone from error

    def fill(self, more: int) -> float:
        """What part of the way to the other side would be taken with a message of so many bytes."""
        return self._out.fill(more)

    def get(self) -> tuple[int, bytes] | None:
        """The oldest message that has come, if there is one."""
        return self._in.get()

    def hush(self) -> None:
        """Stop the bell; then take all that has come. Raises PeerGone."""
        self._out.wipe()
        try:
            while heard := os.read(self.ears, _BELLS):
                if len(heard) < _BELLS:
                    return
        except BlockingIOError:
            return
        raise PeerGone

    def wait_until_gone(self) -> None:
        """Returns when the other process is no more, however it ended. Takes no message: for a thread of its own."""
        poll = select.poll()
        poll.register(self.ears, 0)
        poll.poll()

    def close(self) -> None:
        """The other side will find us gone."""
        os.close(self.ears)
        os.close(self._bell)
        for ring in (self._out, self._in):
            ring.close()
        for memory in self._maps:
            memory.close()


def make_channel(size: int) -> tuple[Channel, Ends]:
    """Our half of a new channel with at least `size` bytes each way, and the other process's. Raises EngineRefused."""
    size = -(-size // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
    memory = _unnamed()
    os.truncate(memory, 2 * size)
    out, into = (mmap.mmap(memory, size, offset=half * size) for half in (0, 1))
    to_them, to_us = os.pipe(), os.pipe()
    return Channel(out, into, to_us[0], to_them[1]), Ends(memory, size, to_them[0], to_us[1])


def _unnamed() -> int:
    """Memory that processes can share, as a file descriptor. What lies in it gets into no file."""
    if not hasattr(os, "memfd_create"):
        raise EngineRefused(
            "this system has no memory without a name that processes can share (memfd_create), and what is said in"
            " calls must not lie in a file: run the worker on Linux"
        )
    return os.memfd_create("callplex-ring")
