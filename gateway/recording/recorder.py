"""The sound of a call on its way to the disk: caller left, agent right, as WAV or Opus, sealed or not.

Owns the order of things. The media path only hands over references; threads shared by all calls interleave,
mute, encode, seal and write about once a second, and after a kill the file plays up to the last second written.
Knows nothing of calls beyond their file's path.

Where a persona redacts, sound is kept only once it was released: until then it waits in a spool that nobody
else can read, and on its way out what was to be muted is made silent. Where it asks for consent first, what
came before is never stored; silence stands for it, so that times in the file are times of the call.

A disk that fails or stalls never touches the call: the recording is marked failed, with one line in the
log, and what was written before stays playable.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import zlib
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from gateway.recording.file import RecordingFile
from gateway.recording.opus import OpusEncoder, OpusMissing
from gateway.recording.seal import SUFFIX, DataKey
from gateway.recording.spool import Spool
from gateway.recording.wav import BYTES_A_SAMPLE, WavEncoder

logger = logging.getLogger(__name__)

FLUSH_PIECES = 8
"""Pieces of 80 ms collected before they are written: 0.64 s."""
MAX_PENDING = 15
"""Writes that may wait for a slow disk before the recording gives up: 10 s, 310 kB."""
RATE = 8_000

Format = Literal["wav", "opus"]
Speaker = Literal["caller", "agent"]


class Encoder(Protocol):
    """How sound becomes a file's bytes: `wav.WavEncoder` says what each method does."""

    def begin(self, sizes_follow: bool) -> bytes: ...

    def encode(self, stereo: bytes) -> bytes: ...

    def start(self) -> bytes: ...

    def finish(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """How one call is recorded."""

    folder: Path
    """The call's own."""
    format: Format = "wav"
    key: DataKey | None = None
    """Seals the file."""
    held: bool = False
    """Sound waits until it is released."""
    after_consent: bool = False
    """Nothing is kept until `begin` is called."""

    @property
    def path(self) -> Path:
        """Where the recording lies or would lie."""
        return self.folder / f"call.{self.format}{SUFFIX if self.key else ''}"


def _step_back() -> None:
    """Let calls go first: encoding for hundreds of them takes a third of a core, and may take it late."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only, where a thread has a priority of its own
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)


def _writers() -> tuple[ThreadPoolExecutor, ...]:
    """Threads that start with the first recording; Python waits for what is queued when it exits."""
    return tuple(ThreadPoolExecutor(1, thread_name_prefix="recording", initializer=_step_back) for _ in range(2))


_WRITERS = _writers()


class Recorder:
    """One call's recording, int16 at 8 kHz.

    `writer` runs the blocking work in order, one task at a time; by default threads for all calls.
    """

    def __init__(self, plan: RecordingPlan, writer: Executor | None = None) -> None:
        self.plan = plan
        place = zlib.crc32(str(plan.path).encode())
        self._writer = writer or _WRITERS[place % len(_WRITERS)]
        self._caller: list[bytes] = []
        self._agent: list[bytes] = []
        # Calls that start together do not all write in the same tick.
        self._due = 1 + place % FLUSH_PIECES
        self._pending = 0
        self._lock = threading.Lock()
        self._released = 0.0 if plan.held else math.inf
        """In samples."""
        self._mutes: list[_Mute] = []
        self._skipped = 0
        self._begun = not plan.after_consent
        self._failed = ""
        self._closing: Future[None] | None = None
        self._disk = _Disk(plan)
        if self._begun:
            self._submit(self._open, 0)

    @property
    def failed(self) -> str:
        """Why recording stopped, in one sentence; empty while all is well."""
        return self._failed

    @property
    def begun(self) -> bool:
        """Whether anything is kept: false until a consent that is awaited."""
        return self._begun

    @property
    def kept(self) -> Path | None:
        """Where the recording lies, once it is closed; None: nothing was kept."""
        return self.plan.path if self._disk.opened else None

    def begin(self) -> None:
        """Consent was heard: from now on sound is kept. Silence stands in the file for what came before."""
        if not self._begun and self._closing is None:
            self._begun = True
            self._submit(self._open, self._skipped)

    def write(self, caller_pcm: bytes, agent_pcm: bytes) -> None:
        """Both sides' next 80 ms, of equal length (the shorter is filled up with silence).

        Never blocks and never raises; after a failure or `close` it does nothing.
        """
        if self._failed or self._closing is not None:
            return
        if not self._begun:
            self._skipped += max(len(caller_pcm), len(agent_pcm)) // 2
            return
        missing = len(caller_pcm) - len(agent_pcm)
        if missing:
            caller_pcm, agent_pcm = caller_pcm + bytes(max(-missing, 0)), agent_pcm + bytes(max(missing, 0))
        self._caller.append(caller_pcm)
        self._agent.append(agent_pcm)
        if len(self._caller) >= self._due:
            self._due = FLUSH_PIECES
            self._hand_over()

    def mute(self, speaker: Speaker, start: float, end: float) -> None:
        """Make one side silent from `start` to `end`, in seconds of the call. Must come before their release."""
        late = start * RATE < self._disk.moved
        with self._lock:
            self._mutes.append(_Mute(int(speaker == "agent"), math.floor(start * RATE), math.ceil(end * RATE)))
        if late:
            logger.error("%s: %.2f to %.2f s were to be muted too late and are kept", self.plan.path, start, end)

    def release(self, until: float) -> None:
        """What was said before `until`, in seconds of the call, may be kept; it is with the next second's write."""
        with self._lock:
            self._released = max(self._released, until * RATE + 0.5)

    def close(self) -> Future[None]:
        """Write the rest that was released and close the file; what was not is gone.

        Does not wait: the future is done when the file is complete. Safe to call twice. The future never
        holds an error; `failed` says whether the recording is whole.
        """
        if self._closing is None:
            if not self._failed and self._caller:
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
            self._failed = f"recording {self.plan.path} stopped: {why}"
            self._caller, self._agent = [], []
            logger.error("%s; the call goes on", self._failed)

    # What follows runs in the writer.

    def _open(self, silence: int) -> None:
        try:
            self._disk.open(silence)
        except OpusMissing as error:
            self._fail(str(error))
        except OSError as error:
            self._fail(_reason(error))

    def _append(self, caller: list[bytes], agent: list[bytes]) -> None:
        with self._lock:
            self._pending -= 1
            released, mutes = self._released, list(self._mutes)
        if self._failed:
            return
        try:
            self._disk.take(interleave(b"".join(caller), b"".join(agent)), mutes)
            self._disk.move(released, mutes)
        except OSError as error:
            self._fail(_reason(error))
        self._forget_mutes()

    def _close(self) -> None:
        with self._lock:
            released, mutes = self._released, list(self._mutes)
        try:
            if not self._failed:
                self._disk.move(released, mutes)
            self._disk.close(whole=not self._failed)
        except OSError as error:
            self._fail(_reason(error))

    def _forget_mutes(self) -> None:
        with self._lock:
            self._mutes = [mute for mute in self._mutes if mute.end > self._disk.moved]


@dataclass(frozen=True, slots=True)
class _Mute:
    track: int
    start: int
    end: int


class _Disk:
    """The writer's side of one recording: spool, encoder and file. Raises OSError and OpusMissing."""

    def __init__(self, plan: RecordingPlan) -> None:
        self._plan = plan
        self._encoder: Encoder | None = None
        self._file: RecordingFile | None = None
        self._spool: Spool | None = None
        self.opened = False
        self.moved = 0
        """Samples of each side that are kept, the silence before a consent included."""

    def open(self, silence: int) -> None:
        """`silence`: samples that came before and are not kept."""
        plan = self._plan
        encoder = self._encoder = OpusEncoder(RATE) if plan.format == "opus" else WavEncoder(RATE)
        self._file = RecordingFile(plan.path, plan.key)
        self.opened = True
        self._file.append(encoder.begin(sizes_follow=plan.key is None))
        block = FLUSH_PIECES * 640 * BYTES_A_SAMPLE
        for place in range(0, silence * BYTES_A_SAMPLE, block):
            self._keep(bytes(min(block, silence * BYTES_A_SAMPLE - place)), [])
        if plan.held:
            self._spool = Spool(plan.folder / "call.spool", block)

    def take(self, stereo: bytes, mutes: list[_Mute]) -> None:
        """The call's next sound: into the spool, or kept at once."""
        if self._spool is not None:
            self._spool.put(stereo)
        else:
            self._keep(stereo, mutes)

    def move(self, released: float, mutes: list[_Mute]) -> None:
        """Keep what was released, block for block, with `mutes` made silent."""
        while self._spool and (self.moved + self._spool.next_size // BYTES_A_SAMPLE) <= released:
            self._keep(self._spool.take(), mutes)

    def close(self, whole: bool) -> None:
        if self._spool is not None:
            self._spool.close()
        if self._file is None or self._encoder is None:
            return
        try:
            if whole:
                self._write(self._encoder.finish())
        finally:
            self._file.close(whole)

    def _keep(self, stereo: bytes, mutes: list[_Mute]) -> None:
        if self._encoder is not None:
            spans = [(mute.track, mute.start - self.moved, mute.end - self.moved) for mute in mutes]
            self._write(self._encoder.encode(muted(stereo, spans)))
            self.moved += len(stereo) // BYTES_A_SAMPLE

    def _write(self, data: bytes) -> None:
        if self._file is not None and self._encoder is not None and data:
            self._file.append(data, self._encoder.start())


def interleave(left: bytes, right: bytes) -> bytes:
    """Two mono int16 tracks of equal length -> one stereo track."""
    stereo = np.empty((len(left) // 2, 2), dtype="<i2")
    stereo[:, 0] = np.frombuffer(left, dtype="<i2")
    stereo[:, 1] = np.frombuffer(right, dtype="<i2")
    return stereo.tobytes()


def muted(stereo: bytes, spans: list[tuple[int, int, int]]) -> bytes:
    """The stereo track with zeros in each (track, start, end), in samples; what lies outside is left out."""
    if not any(end > 0 and start < len(stereo) // BYTES_A_SAMPLE for _, start, end in spans):
        return stereo
    samples = np.frombuffer(stereo, dtype="<i2").reshape(-1, 2).copy()
    for track, start, end in spans:
        samples[max(start, 0) : max(end, 0), track] = 0
    return samples.tobytes()


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
