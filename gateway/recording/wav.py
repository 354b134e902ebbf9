"""The sound of a call as a WAV file that is whole at every moment: caller left, agent right.

Owns the file while the call runs. The media path only hands over references; one thread for all calls
interleaves and writes about once a second, data first and then the sizes in the header, so that after
a kill the file plays up to the last second written. Knows nothing of calls beyond their file's path.

A disk that fails or stalls never touches the call: the recording is marked failed, with one line in the
log, and what was written before stays playable.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import zlib
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

FLUSH_PIECES = 13
"""Pieces of 80 ms collected before they are written: 1.04 s."""
MAX_PENDING = 10
"""Writes that may wait for a slow disk before the recording gives up: 10 s, 320 kB."""

_HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_MAX_SIZE = 0xFFFF_FFFF

_WRITER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recording")
"""Starts its thread with the first recording; Python waits for what is queued when it exits."""


class Recording:
    """One call's stereo recording, int16 at `rate` samples a second.

    `writer` runs the blocking work in order, one task at a time; by default one thread for all calls.
    """

    def __init__(self, path: Path, rate: int = 8_000, writer: Executor = _WRITER) -> None:
        self.path = path
        self._rate = rate
        self._writer = writer
        self._caller: list[bytes] = []
        self._agent: list[bytes] = []
        # Calls that start together do not all write in the same tick.
        self._due = 1 + zlib.crc32(str(path).encode()) % FLUSH_PIECES
        self._pending = 0
        self._lock = threading.Lock()
        self._descriptor = -1
        self._written = 0
        self._failed = ""
        self._closing: Future[None] | None = None
        self._submit(self._open)

    @property
    def failed(self) -> str:
        """Why recording stopped, in one sentence; empty while all is well."""
        return self._failed

    def write(self, caller_pcm: bytes, agent_pcm: bytes) -> None:
        """Both sides' next 80 ms, of equal length (the shorter is filled up with silence).

        Never blocks and never raises; after a failure or `close` it does nothing.
        """
        if self._failed or self._closing is not None:
            return
        missing = len(caller_pcm) - len(agent_pcm)
        if missing:
            caller_pcm, agent_pcm = caller_pcm + bytes(max(-missing, 0)), agent_pcm + bytes(max(missing, 0))
        self._caller.append(caller_pcm)
        self._agent.append(agent_pcm)
        if len(self._caller) >= self._due:
            self._due = FLUSH_PIECES
            self._hand_over()

    def close(self) -> Future[None]:
        """Write the rest and close the file. Does not wait: the future is done when the file is complete.

        Safe to call twice. The future never holds an error; `failed` says whether the recording is whole.
        """
        if self._closing is None:
            if not self._failed:
                self._hand_over()
            self._closing = self._submit(self._close)
        return self._closing

    def _hand_over(self) -> None:
        if self._pending >= MAX_PENDING:
            self._fail("the disk is too slow to record on")
            return
        caller, agent = self._caller, self._agent
        self._caller, self._agent = [], []
        with self._lock:
            self._pending += 1
        self._submit(self._append, caller, agent)

    def _submit(self, work: object, *arguments: object) -> Future[None]:
        try:
            return self._writer.submit(work, *arguments)  # type: ignore[arg-type]
        except RuntimeError:  # the interpreter or the writer is shutting down
            self._fail("the gateway is shutting down")
            ended: Future[None] = Future()
            ended.set_result(None)
            return ended

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = f"recording {self.path} stopped: {why}"
            self._caller, self._agent = [], []
            logger.error("%s; the call goes on", self._failed)

    # What follows runs in the writer.

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            _write_at(self._descriptor, self._header(), 0)
        except OSError as error:
            self._fail(_reason(error))

    def _append(self, caller: list[bytes], agent: list[bytes]) -> None:
        with self._lock:
            self._pending -= 1
        if self._failed or not caller:
            return
        data = interleave(b"".join(caller), b"".join(agent))
        try:
            _write_at(self._descriptor, data, _HEADER.size + self._written)
            self._written += len(data)
            _write_at(self._descriptor, self._header(), 0)
        except OSError as error:
            self._fail(_reason(error))

    def _close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.close(descriptor)
            except OSError as error:
                self._fail(_reason(error))

    def _header(self) -> bytes:
        """RIFF header of 16-bit stereo PCM with `_written` bytes of samples."""
        size = min(self._written, _MAX_SIZE - _HEADER.size)
        riff, rate = size + _HEADER.size - 8, self._rate
        return _HEADER.pack(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 2, rate, 4 * rate, 4, 16, b"data", size)


def interleave(left: bytes, right: bytes) -> bytes:
    """Two mono int16 tracks of equal length -> one stereo track."""
    stereo = np.empty((len(left) // 2, 2), dtype="<i2")
    stereo[:, 0] = np.frombuffer(left, dtype="<i2")
    stereo[:, 1] = np.frombuffer(right, dtype="<i2")
    return stereo.tobytes()


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data`; a full disk may take a part of it and only then raise OSError."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
