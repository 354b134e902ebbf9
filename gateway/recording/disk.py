"""The writing side of one recording: spool, mutes, encoder and file, in that order.

Knows neither calls nor processes. Everything here blocks for the disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from gateway.recording.file import RecordingFile
from gateway.recording.opus import OpusEncoder
from gateway.recording.orders import Mute, RecordingPlan
from gateway.recording.spool import Spool
from gateway.recording.wav import BYTES_A_SAMPLE, WavEncoder

RATE = 8_000
FLUSH_PIECES = 8
"""Pieces of 80 ms that are written at once: 0.64 s."""
_BLOCK = FLUSH_PIECES * 640 * BYTES_A_SAMPLE


class Encoder(Protocol):
    """How sound becomes a file's bytes: `wav.WavEncoder` says what each method does."""

    def begin(self, sizes_follow: bool) -> bytes: ...

    def encode(self, stereo: bytes) -> bytes: ...

    def start(self) -> bytes: ...

    def finish(self) -> bytes: ...


class Disk:
    """One recording's spool, encoder and file. Raises OSError, `open` also OpusMissing."""

    def __init__(self, plan: RecordingPlan) -> None:
        self._plan = plan
        self._encoder: Encoder | None = None
        self._file: RecordingFile | None = None
        self._spool: Spool | None = None
        self._mutes: list[Mute] = []
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
        for place in range(0, silence * BYTES_A_SAMPLE, _BLOCK):
            self._keep(bytes(min(_BLOCK, silence * BYTES_A_SAMPLE - place)))
        if plan.held:
            self._spool = Spool(plan.folder / "call.spool", _BLOCK)

    def mute(self, mutes: Iterable[Mute]) -> list[Mute]:
        """Make these silent once they are kept; returns those of which some was kept before."""
        added = list(mutes)
        self._mutes = [mute for mute in self._mutes if mute.end > self.moved] + added
        return [mute for mute in added if mute.start < self.moved]

    def take(self, stereo: bytes) -> None:
        """The call's next sound: into the spool, or kept at once."""
        if self._spool is not None:
            self._spool.put(stereo)
        else:
            self._keep(stereo)

    def move(self, released: float) -> None:
        """Keep what was released, in samples of the call, block for block."""
        while self._spool and (self.moved + self._spool.next_size // BYTES_A_SAMPLE) <= released:
            self._keep(self._spool.take())

    def close(self, whole: bool) -> None:
        """`whole`: nothing failed. What was not released is gone."""
        if self._spool is not None:
            self._spool.close()
        if self._file is None or self._encoder is None:
            return
        try:
            if whole:
                self._write(self._encoder.finish())
        finally:
            self._file.close(whole)

    def _keep(self, stereo: bytes) -> None:
        if self._encoder is not None:
            spans = [(mute.track, mute.start - self.moved, mute.end - self.moved) for mute in self._mutes]
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
