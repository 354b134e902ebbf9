"""WAV files into numbers: PCM of 8 to 32 bits and floats, any rate, any number of channels.

Owns the container's layout (RIFF/WAVE chunks; the extensible format's sub-format). Knows no model and does not
resample.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

_EXTENSIBLE = 0xFFFE
_FORMAT = struct.Struct("<HHIIHH")
_SUB_FORMAT_AT = 24
"""Where in an extensible format chunk the real format stands."""
_CHUNK = struct.Struct("<4sI")


class WavError(ValueError):
    """The bytes are no WAV file, or one of a kind that is not read."""


@dataclass(frozen=True, slots=True)
class Wav:
    """pcm: float32 `[channels, samples]`, nominally in -1..1; rate in samples a second."""

    pcm: npt.NDArray[np.float32]
    rate: int


def read_wav(path: Path) -> Wav:
    """The sound in the file at `path`. Raises OSError, or WavError with the file's name."""
    try:
        return parse_wav(path.read_bytes())
    except WavError as error:
        raise WavError(f"{path}: {error}") from error


def parse_wav(data: bytes) -> Wav:
    """The sound in a WAV file's bytes. What is cut off at the end is left out. Raises WavError."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise WavError("not a WAV file")
    layout: bytes | None = None
    for name, body in _chunks(data):
        if name == b"fmt ":
            layout = body
        elif name == b"data":
            if layout is None:
                raise WavError("the sound comes before its format")
            return _decoded(layout, body)
    raise WavError("no sound in it")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + _CHUNK.size <= len(data):
        name, size = _CHUNK.unpack_from(data, at)
        at += _CHUNK.size
        yield name, data[at : at + size]
        at += size + size % 2


def _decoded(layout: bytes, body: bytes) -> Wav:
    if len(layout) < _FORMAT.size:
        raise WavError("its format is cut off")
    kind, channels, rate, _, _, bits = _FORMAT.unpack_from(layout)
    if kind == _EXTENSIBLE and len(layout) >= _SUB_FORMAT_AT + 2:
        (kind,) = struct.unpack_from("<H", layout, _SUB_FORMAT_AT)
    if channels == 0 or rate == 0:
        raise WavError(f"{channels} channels at {rate} samples a second")
    samples = _samples(kind, bits, body)
    whole = samples[: samples.size // channels * channels]
    return Wav(np.ascontiguousarray(whole.reshape(-1, channels).T), rate)


def _samples(kind: int, bits: int, body: bytes) -> npt.NDArray[np.float32]:
    """Interleaved samples as float32, scaled so that integers fill -1..1."""
    width = bits // 8
    whole = body[: len(body) // width * width] if width else b""
    match kind, bits:
        case 1, 8:
            return (np.frombuffer(whole, np.uint8).astype(np.float32) - 128) / np.float32(128)
        case 1, 16:
            return np.frombuffer(whole, "<i2").astype(np.float32) / np.float32(1 << 15)
        case 1, 24:
            wide = np.zeros((len(whole) // 3, 4), np.uint8)
            wide[:, 1:] = np.frombuffer(whole, np.uint8).reshape(-1, 3)
            return (wide.view("<i4")[:, 0] / (1 << 31)).astype(np.float32)
        case 1, 32:
            return (np.frombuffer(whole, "<i4") / (1 << 31)).astype(np.float32)
        case 3, 32 | 64:
            return np.frombuffer(whole, f"<f{width}").astype(np.float32)
    raise WavError(f"format {kind} with {bits} bits is not read; PCM of 8 to 32 bits and floats are")
