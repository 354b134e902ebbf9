"""A recording of a voice, made as loud as the model's voice prompts are.

Owns the level (-24 LUFS, measured by ITU-R BS.1770 as pyloudnorm does) and what makes a recording unfit. Knows no
codec. Not part of the model's core: a machine that only answers calls needs neither this nor pyloudnorm. The
caller's sound is never normalised.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyloudnorm  # type: ignore[import-untyped]
import soxr

from model.wav import WavError, parse_wav

RATE = 24_000
TARGET_LUFS = -24.0
SHORTEST_S = 0.4
"""The length of one block of the measurement."""


class LoudnessError(ValueError):
    """The loudness of the sound cannot be measured; the message says why."""


def read_voice(path: Path) -> npt.NDArray[np.float32]:
    """A mono WAV of any rate as a voice prompt's sound: float32 `[samples]`, 24 kHz, -24 LUFS.

    Raises OSError, WavError, or LoudnessError where the recording is unfit; both errors name the file.
    """
    return parse_voice(path.read_bytes(), path)


def parse_voice(data: bytes, path: Path) -> npt.NDArray[np.float32]:
    """`read_voice` of what the file at `path` held. Raises WavError, LoudnessError."""
    try:
        wav = parse_wav(data)
    except WavError as error:
        raise WavError(f"{path}: {error}") from error
    channels = wav.pcm.shape[0]
    if channels != 1:
        raise LoudnessError(f"{path} has {channels} channels; a voice prompt is mono")
    pcm = wav.pcm[0]
    if wav.rate != RATE and pcm.size:
        pcm = soxr.resample(pcm, wav.rate, RATE)
    try:
        return normalise(pcm)
    except LoudnessError as error:
        raise LoudnessError(f"{path}: {error}") from error


def normalise(pcm: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Mono sound `[samples]` at 24 kHz, brought to -24 LUFS without clipping. Raises LoudnessError."""
    # The gain is float64 and so is the product, as in the reference; one rounding at the end.
    return (pcm * np.float64(gain(loudness(pcm)))).astype(np.float32)


def gain(lufs: float) -> float:
    """The factor that brings sound of that loudness to -24 LUFS."""
    return float(10.0 ** ((TARGET_LUFS - lufs) / 20.0))


def loudness(pcm: npt.NDArray[np.float32]) -> float:
    """Integrated loudness of mono sound `[samples]` at 24 kHz, in LUFS. Raises LoudnessError."""
    if pcm.ndim != 1:
        raise LoudnessError(f"sound of shape {list(pcm.shape)}; a voice prompt is mono")
    if pcm.size < SHORTEST_S * RATE:
        raise LoudnessError(f"{pcm.size / RATE:.2f} s of sound; at least {SHORTEST_S} s are needed")
    if not np.isfinite(pcm).all():
        raise LoudnessError("not all samples are finite numbers")
    if not pcm.any():
        raise LoudnessError("digital silence")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # logarithms of silent blocks, which the gate drops
        measured = float(pyloudnorm.Meter(RATE).integrated_loudness(pcm))
    if not np.isfinite(measured):
        raise LoudnessError("too quiet: nothing in it is louder than -70 LUFS")
    return measured
