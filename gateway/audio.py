"""Sound between a phone line and an engine: G.711, 8 <-> 24 kHz, de-jittering, pacing.

Everything here is pure: no sockets, no tasks, no clock but the `now` handed in. Sound is mono int16
in native little-endian bytes. Nothing here knows carriers or engines.

The resamplers' arithmetic is exact. Samples are integers, taps are integers over 2**16, and float64
holds every partial sum (at most 16 + 18 + 8 bits) without rounding, so the order in which a matrix
product adds them cannot change a bit: however the stream is cut, the output is the same to the sample.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import deque
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():
    # Deprecated in 3.11 and 3.12, gone in 3.13, where audioop-lts takes its place under the same name.
    warnings.simplefilter("ignore", DeprecationWarning)
    import audioop

if sys.byteorder != "little":
    raise ImportError("callplex handles sound as little-endian int16; this machine is big-endian")

LINE_RATE = 8_000
ENGINE_RATE = 24_000
RATIO = ENGINE_RATE // LINE_RATE
CARRIER_FRAME_SAMPLES = 160
"""20 ms at 8 kHz."""
CARRIER_FRAME_SECONDS = 0.02
CARRIER_FRAME_BYTES = 2 * CARRIER_FRAME_SAMPLES
LINE_FRAME_SAMPLES = 640
"""80 ms at 8 kHz."""
LINE_FRAME_BYTES = 2 * LINE_FRAME_SAMPLES
SILENCE = bytes(LINE_FRAME_BYTES)
QUIET = 60
"""Root mean square below which sound is a pause: nobody misses 20 ms of it."""
LONGEST_HOLE = 100
"""20 ms that one hole in the agent's sound counts at most. An engine that is silent for longer than 2 s is lost and its
call over, so that a longer hole means that this process stood still, for which nobody is to blame."""
MOST_WAITING_SECONDS = 0.4
"""An agent's sound that may wait for its line at all."""

TAPS = 147
_CUTOFF = 3_700.0
_KAISER_BETA = 5.65
_SCALE_BITS = 16
_PER_PHASE = TAPS // RATIO
_BYTES_PER_SECOND = 2 * LINE_RATE
_ROUNDING = 1e-6
"""What sums of seconds, and parts of 20 ms, may be off by."""
_UP_BLOCK = 16
_DOWN_BLOCK = 40


def decode_ulaw(payload: bytes) -> bytes:
    """G.711 mu-law, one byte a sample, to int16 (ITU-T G.711)."""
    return audioop.ulaw2lin(payload, 2)


def encode_ulaw(pcm: bytes) -> bytes:
    """int16 to G.711 mu-law, one byte a sample (ITU-T G.711)."""
    return audioop.lin2ulaw(pcm, 2)


def decode_alaw(payload: bytes) -> bytes:
    """G.711 A-law, one byte a sample, to int16 (ITU-T G.711)."""
    return audioop.alaw2lin(payload, 2)


def encode_alaw(pcm: bytes) -> bytes:
    """int16 to G.711 A-law, one byte a sample (ITU-T G.711)."""
    return audioop.lin2alaw(pcm, 2)


def level(pcm: bytes) -> int:
    """Root mean square of int16 samples: 0 is digital silence, a phone voice lies around 1,000-5,000."""
    return audioop.rms(pcm, 2)


@cache
def lowpass() -> NDArray[np.float64]:
    """The 147 integer taps at 24 kHz, scaled by 2**16: Kaiser window, flat to 3.4 kHz, -60 dB from 4 kHz.

    Delay 73 samples, 3.04 ms. Windowed sinc as in Oppenheim and Schafer, Discrete-Time Signal
    Processing, section 7.5.
    """
    offset = np.arange(TAPS) - (TAPS - 1) / 2
    ideal = 2 * _CUTOFF / ENGINE_RATE * np.sinc(2 * _CUTOFF / ENGINE_RATE * offset)
    taps = ideal * np.kaiser(TAPS, _KAISER_BETA)
    integers: NDArray[np.float64] = np.rint(taps / taps.sum() * (1 << _SCALE_BITS))
    return integers


def _up_matrix() -> NDArray[np.float64]:
    """Banded matrix, the taps' scale undone: `_UP_BLOCK + 48` line samples -> `3 * _UP_BLOCK` engine samples."""
    phases = lowpass().reshape(_PER_PHASE, RATIO) * (RATIO / (1 << _SCALE_BITS))
    matrix = np.zeros((_UP_BLOCK + _PER_PHASE - 1, RATIO * _UP_BLOCK))
    for sample in range(_UP_BLOCK):
        for phase in range(RATIO):
            matrix[sample : sample + _PER_PHASE, RATIO * sample + phase] = phases[::-1, phase]
    return matrix


def _down_matrix() -> NDArray[np.float64]:
    """Banded matrix, the taps' scale undone: `3 * _DOWN_BLOCK + 144` engine samples -> `_DOWN_BLOCK` line samples."""
    matrix = np.zeros((RATIO * _DOWN_BLOCK + TAPS - RATIO, _DOWN_BLOCK))
    for sample in range(_DOWN_BLOCK):
        matrix[RATIO * sample : RATIO * sample + TAPS, sample] = lowpass()[::-1] / (1 << _SCALE_BITS)
    return matrix


class _Scratch:
    """Buffers in which usual frames of one direction are resampled, shared by all calls.

    One after the other, all calls' frames pass through the same few kilobytes, which stay in the
    processor's cache; buffers of each call's own were measured to cost twice the time at 200 calls.
    """

    def __init__(self, matrix: NDArray[np.float64], block: int, usual: int) -> None:
        width, made = matrix.shape
        shape = (usual // block, width)
        self.signal: NDArray[np.float64] = np.zeros(width - block + usual)
        self.overlapping = np.lib.stride_tricks.as_strided(self.signal, shape, (8 * block, 8))
        self.windows = np.empty(shape)
        self.out = np.empty((usual // block, made))


class _Resampler:
    """One direction of one call: blocks of samples times a banded matrix, the past carried over.

    All resamplers of a direction are used from one thread.
    """

    matrix: NDArray[np.float64]
    scratch: _Scratch
    block: int
    """Input samples by which one row of windows is ahead of the last."""
    unit: int
    """Fewest input samples that give output."""
    usual: int
    """Input samples of 80 ms."""

    def __init__(self) -> None:
        self._past: NDArray[np.float64] = np.zeros(len(self.matrix) - self.block)
        self._odd = b""

    def __call__(self, pcm: bytes) -> bytes:
        """int16 samples in, cut anywhere; out comes all that they complete."""
        if len(pcm) != 2 * self.usual or self._odd:
            return self._any_length(self._odd + pcm)
        past, scratch = self._past, self.scratch
        signal = scratch.signal
        signal[: len(past)] = past
        signal[len(past) :] = np.frombuffer(pcm, np.int16)
        past[:] = signal[-len(past) :]
        np.copyto(scratch.windows, scratch.overlapping)
        np.matmul(scratch.windows, self.matrix, out=scratch.out)
        return _to_pcm(scratch.out)

    def _any_length(self, pcm: bytes) -> bytes:
        units = len(pcm) // (2 * self.unit)
        self._odd = pcm[2 * self.unit * units :]
        fresh = np.frombuffer(pcm, np.int16, units * self.unit)
        signal = np.concatenate((self._past, fresh), dtype=np.float64)
        past = len(self._past)
        self._past = signal[len(fresh) :]
        made_by_unit = self.matrix.shape[1] * self.unit // self.block
        parts = []
        for start in range(0, len(fresh), self.block):
            window = signal[start : start + len(self.matrix)]
            made = (len(window) - past) // self.unit * made_by_unit
            parts.append(window @ self.matrix[: len(window), :made])
        return _to_pcm(np.concatenate(parts)) if parts else b""


class Upsampler(_Resampler):
    """Line to engine, 8 to 24 kHz: three samples out for each in, 73 engine samples late."""

    matrix = _up_matrix()
    block, unit, usual = _UP_BLOCK, 1, LINE_FRAME_SAMPLES
    scratch = _Scratch(matrix, block, usual)


class Downsampler(_Resampler):
    """Engine to line, 24 to 8 kHz: one sample out for each three in, 71 engine samples late."""

    matrix = _down_matrix()
    block, unit, usual = RATIO * _DOWN_BLOCK, RATIO, RATIO * LINE_FRAME_SAMPLES
    scratch = _Scratch(matrix, block, usual)


def _to_pcm(samples: NDArray[np.float64]) -> bytes:
    """Round (half to even) and clip, in place."""
    np.rint(samples, out=samples)
    np.maximum(samples, -32_768.0, out=samples)
    np.minimum(samples, 32_767.0, out=samples)
    return samples.astype(np.int16).tobytes()


class JitterBuffer:
    """20 ms frames from the carrier in, 80 ms out each tick of the call's clock.

    Holds `target` frames (40 ms) against late arrivals. When it ran dry (start, hold, silence
    suppression) it lets sound through again only above the target, so that one gap does not turn
    into a stutter. Delay that is not needed is given back: what came before the call's first tick at
    once; the burst after a stall within half a second, all of it in a pause, down to twice the target
    in the middle of speech; the last frames (the peer's clock is fast) one every two seconds.
    """

    FRAMES_PER_TICK = 4
    TARGET = 2
    SOON = 5
    """Ticks after which a burst that was not needed is dropped."""
    LATER = 25
    """Ticks after which one frame that was not needed is dropped."""

    def __init__(self, target: int = TARGET, limit: int = 16) -> None:
        self._frames: deque[bytes] = deque()
        self._target = target
        self._limit = limit
        self._dry = True
        self._spare = limit
        """Fewest frames that were left after a tick, since SOON began."""
        self._long_spare = limit
        self._ticks = 0
        self.missing = 0
        """20 ms frames replaced by silence while sound was expected."""
        self.dropped = 0
        """20 ms frames thrown away because the buffer was too full."""

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._frames)

    def push(self, frame: bytes) -> None:
        """One frame of 320 bytes; the oldest goes when more than `limit` wait."""
        self._frames.append(frame)
        if len(self._frames) > self._limit:
            self._drop(1)

    def pop(self) -> bytes:
        """The next 80 ms, 1,280 bytes, with silence for what is missing."""
        frames = self._frames
        if self._dry:
            self._drop(len(frames) - self._target - self.FRAMES_PER_TICK)
            take = min(max(0, len(frames) - self._target), self.FRAMES_PER_TICK)
            self._dry = take == 0
            silence = bytes(CARRIER_FRAME_BYTES * (self.FRAMES_PER_TICK - take))
            return silence + b"".join([frames.popleft() for _ in range(take)])
        take = min(len(frames), self.FRAMES_PER_TICK)
        pcm = b"".join([frames.popleft() for _ in range(take)])
        self._shed(pcm)
        if take < self.FRAMES_PER_TICK:
            self.missing += self.FRAMES_PER_TICK - take
            self._dry = take == 0
            return pcm + bytes(LINE_FRAME_BYTES - len(pcm))
        return pcm

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._frames.popleft()
            self.dropped += 1

    def _shed(self, pcm: bytes) -> None:
        self._spare = min(self._spare, len(self._frames))
        self._ticks += 1
        if self._ticks % self.SOON:
            return
        self._long_spare = min(self._long_spare, self._spare)
        if self._spare > self._target:
            kept = self._target if level(pcm) < QUIET else 2 * self._target
            self._drop(self._spare - kept)
        self._spare = self._limit
        if self._ticks % self.LATER == 0:
            if self._long_spare > self._target:
                self._drop(1)
            self._long_spare = self._limit


class Pacer:
    """Lets an agent's frames out so that the line has a little in hand, and never much.

    The line begins with `cushion` seconds of silence: a frame that comes by as much later than the first leaves no
    hole. One that is later still does, and from then on the line has so much more in hand. That, and what waits here
    after a stall of the engine, is delay: quiet frames are shortened by what is over the cushion, in whole 20 ms, and
    of more than `limit` seconds the oldest go, so that it does not stay for the rest of the call.

    A frame leaves at once if the line then has no more than `ahead` seconds beside its cushion. Those are the 80 ms of
    the frame and the less than 20 that no pause gives back, which else would cost a timer for each frame of the call.
    """

    def __init__(
        self, ahead: float = 0.1, cushion: float = CARRIER_FRAME_SECONDS, limit: float = MOST_WAITING_SECONDS
    ) -> None:
        self._frames: deque[tuple[int, bytes]] = deque()
        """What waits, and as the how manieth it came."""
        self._ahead = cushion + ahead
        self._cushion = cushion
        self._limit = limit
        self._begun = False
        self._heard_until = -math.inf
        self.handed = 0
        """Frames that were queued so far."""
        self.missing = 0
        """20 ms of silence that the line played because a frame came too late, begun ones too; see LONGEST_HOLE."""
        self.dropped = 0
        """20 ms of sound left out because too much waited."""
        self.shortened = 0
        """20 ms of pauses left out to catch up."""

    def push(self, frame: bytes, now: float) -> Sequence[int]:
        """Queue a frame of int16 sound at 8 kHz, whole 20 ms.

        Returns which frames are left out as too much waits: how many frames before this one each came.
        """
        over = int((self.unheard(now) - self._cushion) / CARRIER_FRAME_SECONDS + _ROUNDING)
        if over > 0 and level(frame) < QUIET:
            self.shortened += min(over, len(frame) // CARRIER_FRAME_BYTES)
            frame = frame[over * CARRIER_FRAME_BYTES :]
        if frame:
            self._frames.append((self.handed, frame))
        self.handed += 1
        left_out = []
        while self._waiting() > self._limit + _ROUNDING:
            number, oldest = self._frames.popleft()
            self.dropped += len(oldest) // CARRIER_FRAME_BYTES
            left_out.append(self.handed - 1 - number)
        return left_out

    def pop(self, now: float) -> bytes | None:
        """The next sound if it may leave now, else None."""
        due = self.next_time(now)
        if due is None or due > now:
            return None
        _, frame = self._frames.popleft()
        if not self._begun:
            self._begun = True
            frame = bytes(round(self._cushion * _BYTES_PER_SECOND)) + frame
        elif (late := now - self._heard_until) > _ROUNDING:
            self.missing += min(math.ceil(late / CARRIER_FRAME_SECONDS - _ROUNDING), LONGEST_HOLE)
        self._heard_until = max(self._heard_until, now) + _seconds(frame)
        return frame

    def next_time(self, now: float) -> float | None:
        """When `pop` will give the next frame; None when nothing waits."""
        if not self._frames:
            return None
        due = self._heard_until + _seconds(self._frames[0][1]) - self._ahead
        return due if due > now + _ROUNDING else now

    @property
    def gone(self) -> int:
        """How many of the frames do not wait any more, nor any before them: they have left, or were left out."""
        return self._frames[0][0] if self._frames else self.handed

    def unheard(self, now: float) -> float:
        """Seconds of sound that left or wait here and that the line has not played yet."""
        return max(0.0, self._heard_until - now) + self._waiting()

    def clear(self, now: float) -> None:
        """Forget what waits, and what the line was holding: it has been told to drop it."""
        self._frames.clear()
        self._begun = False
        self._heard_until = min(self._heard_until, now)

    def _waiting(self) -> float:
        return sum(_seconds(frame) for _, frame in self._frames)


def _seconds(pcm: bytes) -> float:
    return len(pcm) / _BYTES_PER_SECOND
