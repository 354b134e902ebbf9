"""WAV files at the caller's end of the line: any in, 8 kHz int16 out.

Owns reading and writing files. Knows nothing of calls. Not for a call's live path, where
`gateway.audio` resamples frame by frame.
"""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from gateway import audio

RATE = audio.LINE_RATE
MAX_FILE = 1 << 29
"""Bytes of the largest file read: hours of telephone sound; a mistaken path never fills memory."""

_INTEGER, _FLOAT, _ALAW, _ULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE


class SoundUnreadable(Exception):
    """A sound file cannot be used; the message names it and says why."""


def read_wav(path: Path) -> bytes:
    """A WAV file as 8 kHz mono int16: PCM of 8 to 32 bits, float, A-law or mu-law, any rate, channels mixed.

    Raises SoundUnreadable.
    """
    try:
        if path.stat().st_size > MAX_FILE:
            raise SoundUnreadable(f"{path} is larger than {MAX_FILE >> 20} MiB; cut out the part to play.")
        data = path.read_bytes()
    except OSError as error:
        raise SoundUnreadable(f"{path} cannot be read: {error.strerror or error}.") from None
    try:
        rate, samples = _parse(data)
    except ValueError as error:
        raise SoundUnreadable(f"{path} cannot be played: {error}.") from None
    if rate != RATE:
        samples = soxr.resample(samples, rate, RATE)
    scaled = np.clip(np.rint(samples * 32_768), -32_768, 32_767)
    return scaled.astype(np.int16).tobytes()


def write_wav(path: Path, *channels: bytes) -> None:
    """Write one (mono) or two (left, right) int16 channels at 8 kHz; the shorter is filled with silence."""
    length = max(len(channel) for channel in channels)
    columns = [np.frombuffer(channel.ljust(length, b"\0"), np.int16) for channel in channels]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(np.column_stack(columns).tobytes())


def _parse(data: bytes) -> tuple[int, NDArray[np.float32]]:
    """RIFF/WAVE bytes -> (rate, mono samples in -1..1). Raises ValueError saying what is wrong."""
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("it is not a WAV file")
    chunks = _chunks(data)
    if "fmt " not in chunks or len(chunks["fmt "]) < 16:
        raise ValueError("it is a WAV file without a format")
    if "data" not in chunks:
        raise ValueError("it is a WAV file without sound")
    header = chunks["fmt "]
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", header)
    if kind == _EXTENSIBLE and len(header) >= 26:
        (kind,) = struct.unpack_from("<H", header, 24)
    if not 1 <= channels <= 64 or not 1_000 <= rate <= 768_000 or block != channels * ((bits + 7) // 8):
        raise ValueError(f"its header makes no sense ({channels} channels, {rate} Hz, {bits} bits)")
    body = chunks["data"]
    samples = _samples(kind, bits, body[: len(body) // block * block])
    if not samples.size:
        raise ValueError("it holds no sound")
    return rate, samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)


def _chunks(data: bytes) -> dict[str, bytes]:
    """RIFF chunks by name, the first of each; a length beyond the file means up to its end (streamed files)."""
    chunks: dict[str, bytes] = {}
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4].decode("latin-1"), int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.setdefault(name, data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return chunks


def _samples(kind: int, bits: int, body: bytes) -> NDArray[np.float32]:
    """Sample bytes of any encoding in -1..1. Raises ValueError for one that is not known."""
    if kind == _INTEGER and bits == 8:
        scaled = (np.frombuffer(body, np.uint8).astype(np.float64) - 128) / 128
    elif kind == _INTEGER and bits in (16, 32):
        scaled = np.frombuffer(body, f"<i{bits // 8}") / float(1 << (bits - 1))
    elif kind == _INTEGER and bits == 24:
        wide = np.zeros((len(body) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
        scaled = wide.view("<i4")[:, 0] / float(1 << 31)
    elif kind == _FLOAT and bits in (32, 64):
        scaled = np.nan_to_num(np.frombuffer(body, f"<f{bits // 8}")).clip(-1, 1)
    elif kind == _ULAW and bits == 8:
        scaled = np.frombuffer(audio.decode_ulaw(body), np.int16) / 32_768
    elif kind == _ALAW and bits == 8:
        scaled = _decode_alaw(np.frombuffer(body, np.uint8).astype(np.int32)) / 32_768
    else:
        raise ValueError(f"its encoding is unknown (format {kind}, {bits} bits); convert it to 16-bit PCM")
    return scaled.astype(np.float32)


def _decode_alaw(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    """G.711 A-law to int16 values (ITU-T G.711, table 1a): sign, three bits of segment, four of step."""
    codes = codes ^ 0x55
    segment = (codes & 0x70) >> 4
    step = ((codes & 0x0F) << 4) + 8
    magnitude = np.where(segment == 0, step, (step + 0x100) << np.maximum(segment - 1, 0))
    return np.where(codes & 0x80, magnitude, -magnitude)
