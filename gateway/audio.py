"""Sound between a phone line and an engine: G.711, 8 <-> 24 kHz, de-jittering, pacing.

Everything here is pure: no sockets, no tasks, no clock but the `now` handed in. Sound is mono int16
in native little-endian bytes. Nothing here knows carriers or engines.

The resamplers' arithmetic is exact. Taps are integers, samples are integers, and float64 holds every
partial sum (at most 16 + 17 + 8 bits) without rounding, so the order in which a matrix product adds
them cannot change a bit: however the stream is cut, the output is the same to the sample.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections import deque
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
CARRIER_FRAME_BYTES = 2 * CARRIER_FRAME_SAMPLES
LINE_FRAME_SAMPLES = 640
"""80 ms at 8 kHz."""
LINE_FRAME_BYTES = 2 * LINE_FRAME_SAMPLES
SILENCE = bytes(LINE_FRAME_BYTES)

TAPS = 147
_CUTOFF = 3_700.0
_KAISER_BETA = 5.65
_SCALE_BITS = 16
_PER_PHASE = TAPS // RATIO
_UP_BLOCK = 16
_DOWN_BLOCK = 16


def decode_ulaw(payload: bytes) -> bytes:
    """G.711 mu-law, one byte a sample, to int16 (ITU-T G.711)."""
    return audioop.ulaw2lin(payload, 2)


def encode_ulaw(pcm: bytes) -> bytes:
    """int16 to G.711 mu-law, one byte a sample (ITU-T G.711)."""
    return audioop.lin2ulaw(pcm, 2)


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


@cache
def _up_matrix() -> NDArray[np.float64]:
    """Banded matrix: `_UP_BLOCK + 48` line samples -> `3 * _UP_BLOCK` engine samples."""
    phases = lowpass().reshape(_PER_PHASE, RATIO) * RATIO
    matrix = np.zeros((_UP_BLOCK + _PER_PHASE - 1, RATIO * _UP_BLOCK))
    for sample in range(_UP_BLOCK):
        for phase in range(RATIO):
            matrix[sample : sample + _PER_PHASE, RATIO * sample + phase] = phases[::-1, phase]
    return matrix


@cache
def _down_matrix() -> NDArray[np.float64]:
    """Banded matrix: `3 * _DOWN_BLOCK + 144` engine samples -> `_DOWN_BLOCK` line samples."""
    matrix = np.zeros((RATIO * (_DOWN_BLOCK - 1) + TAPS, _DOWN_BLOCK))
    for sample in range(_DOWN_BLOCK):
        matrix[RATIO * sample : RATIO * sample + TAPS, sample] = lowpass()[::-1]
    return matrix


def _extend(history: NDArray[np.float64], pcm: bytes) -> NDArray[np.float64]:
    signal: NDArray[np.float64] = np.concatenate((history, np.frombuffer(pcm, np.int16)), dtype=np.float64)
    return signal


def _to_pcm(scaled: NDArray[np.float64]) -> bytes:
    """Undo the taps' scale, round half up, clip: exact, since a power of two only shifts the exponent."""
    samples = np.floor(scaled * (1 / (1 << _SCALE_BITS)) + 0.5)
    np.clip(samples, -32_768, 32_767, out=samples)
    return samples.astype(np.int16).tobytes()


class Upsampler:
    """Line to engine, 8 to 24 kHz, for one direction of one call; keeps 48 samples of the past."""

    def __init__(self) -> None:
        self._history: NDArray[np.float64] = np.zeros(_PER_PHASE - 1)

    def __call__(self, pcm: bytes) -> bytes:
        """`n` samples in, `3 n` out; any n."""
        count = len(pcm) // 2
        signal = _extend(self._history, pcm)
        self._history = signal[count:]
        matrix = _up_matrix()
        out = np.empty(RATIO * count)
        blocks, rest = divmod(count, _UP_BLOCK)
        if blocks:
            width = len(matrix)
            windows = np.lib.stride_tricks.as_strided(signal, (blocks, width), (8 * _UP_BLOCK, 8))
            bulk = out[: RATIO * _UP_BLOCK * blocks].reshape(blocks, RATIO * _UP_BLOCK)
            np.matmul(np.ascontiguousarray(windows), matrix, out=bulk)
        if rest:
            width = rest + _PER_PHASE - 1
            out[-RATIO * rest :] = signal[-width:] @ matrix[:width, : RATIO * rest]
        return _to_pcm(out)


class Downsampler:
    """Engine to line, 24 to 8 kHz, for one direction of one call; keeps up to 146 samples of the past."""

    def __init__(self) -> None:
        # One output for inputs 0, 3, 6 ...: the first lacks 146 samples of past.
        self._history: NDArray[np.float64] = np.zeros(TAPS - 1)

    def __call__(self, pcm: bytes) -> bytes:
        """`n` samples in, one out for every third, whole stream counted."""
        signal = _extend(self._history, pcm)
        count = max(0, (len(signal) - TAPS) // RATIO + 1)
        self._history = signal[RATIO * count :]
        matrix = _down_matrix()
        out = np.empty(count)
        blocks, rest = divmod(count, _DOWN_BLOCK)
        if blocks:
            step = 8 * RATIO * _DOWN_BLOCK
            windows = np.lib.stride_tricks.as_strided(signal, (blocks, len(matrix)), (step, 8))
            np.matmul(
                np.ascontiguousarray(windows), matrix, out=out[: blocks * _DOWN_BLOCK].reshape(blocks, _DOWN_BLOCK)
            )
        if rest:
            width = RATIO * (rest - 1) + TAPS
            start = RATIO * _DOWN_BLOCK * blocks
            out[-rest:] = signal[start : start + width] @ matrix[:width, :rest]
        return _to_pcm(out)


class JitterBuffer:
    """20 ms frames from the carrier in, 80 ms out each tick of the call's clock.

    Holds `target` frames (40 ms) against late arrivals. When it ran dry (start, hold, silence
    suppression) it lets sound through again only above the target, so that one gap does not turn
    into a stutter. When it has held more than the target for two seconds (the peer's clock is fast,
    or a burst came) it drops one frame, so that delay does not creep up.
    """

    FRAMES_PER_TICK = 4

    def __init__(self, target: int = 2, limit: int = 16) -> None:
        self._frames: deque[bytes] = deque()
        self._target = target
        self._limit = limit
        self._dry = True
        self._lowest = limit
        self._ticks = 0
        self.missing = 0
        """20 ms frames replaced by silence while sound was expected."""
        self.dropped = 0
        """20 ms frames thrown away because the buffer was too full."""

    def push(self, frame: bytes) -> None:
        """One frame of 320 bytes; the oldest goes when more than `limit` wait."""
        self._frames.append(frame)
        if len(self._frames) > self._limit:
            self._frames.popleft()
            self.dropped += 1

    def pop(self) -> bytes:
        """The next 80 ms, 1,280 bytes, with silence for what is missing."""
        frames = self._frames
        waiting = len(frames)
        if self._dry:
            take = min(max(0, waiting - self._target), self.FRAMES_PER_TICK)
            self._dry = take == 0
            silence = bytes(CARRIER_FRAME_BYTES * (self.FRAMES_PER_TICK - take))
            return silence + b"".join([frames.popleft() for _ in range(take)])
        take = min(waiting, self.FRAMES_PER_TICK)
        pcm = b"".join([frames.popleft() for _ in range(take)])
        if take < self.FRAMES_PER_TICK:
            self.missing += self.FRAMES_PER_TICK - take
            self._dry = take == 0
            return pcm + bytes(LINE_FRAME_BYTES - len(pcm))
        self._shed(waiting - take)
        return pcm

    def _shed(self, left: int) -> None:
        self._lowest = min(self._lowest, left)
        self._ticks += 1
        if self._ticks < 25:
            return
        if self._lowest > self._target:
            self._frames.popleft()
            self.dropped += 1
        self._ticks = 0
        self._lowest = self._limit


class Pacer:
    """Lets an agent's frames out so that the line holds at most `ahead` seconds not yet heard.

    A frame that comes on time leaves at once. After a stall of the engine frames come in a burst:
    they wait here, quiet ones are dropped first, and beyond `limit` the oldest go, so that the delay
    of a stall does not stay for the rest of the call.
    """

    QUIET = 60

    def __init__(self, frame_seconds: float = 0.08, ahead: float = 0.1, limit: int = 5) -> None:
        self._frames: deque[bytes] = deque()
        self._seconds = frame_seconds
        self._slack = ahead - frame_seconds
        self._limit = limit
        self._heard_until = -math.inf
        self.dropped = 0
        """Frames thrown away to catch up."""

    def push(self, frame: bytes, now: float) -> None:
        """Queue one frame of int16 sound."""
        if self._frames and level(frame) < self.QUIET:
            self.dropped += 1
            return
        self._frames.append(frame)
        if len(self._frames) > self._limit:
            self._frames.popleft()
            self.dropped += 1

    def pop(self, now: float) -> bytes | None:
        """The next frame if it may leave now, else None."""
        if not self._frames or self._heard_until - self._slack > now:
            return None
        self._heard_until = max(self._heard_until, now) + self._seconds
        return self._frames.popleft()

    def next_time(self, now: float) -> float | None:
        """When `pop` will give the next frame; None when nothing waits."""
        if not self._frames:
            return None
        return max(now, self._heard_until - self._slack)

    def unheard(self, now: float) -> float:
        """Seconds of sound that left or wait here and that the line has not played yet."""
        return max(0.0, self._heard_until - now) + self._seconds * len(self._frames)

    def clear(self, now: float) -> None:
        """Forget what waits, and what the line was holding: it has been told to drop it."""
        self._frames.clear()
        self._heard_until = min(self._heard_until, now)
