"""WAV files of every kind in, 8 kHz int16 out; broken ones are refused in a sentence."""

from __future__ import annotations

import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway import audio
from gateway.phone.sound import SoundUnreadable, _parse, read_wav, write_wav


def riff(kind: int, channels: int, rate: int, bits: int, body: bytes, extension: bytes = b"") -> bytes:
    block = channels * bits // 8
    header = struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + extension
    chunks = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in ((b"LIST", b"odd"), (b"fmt ", header), (b"data", body))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def sine(rate: int, seconds: float = 1.0) -> NDArray[np.float64]:
    result: NDArray[np.float64] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(rate * seconds)) / rate)
    return result


def wide_24(samples: NDArray[np.float64]) -> bytes:
    return (samples * (1 << 31)).astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()


ENCODINGS = {
    "8 bit": (1, 8, lambda s: (s * 128 + 128).astype(np.uint8).tobytes()),
    "16 bit": (1, 16, lambda s: (s * 32_768).astype("<i2").tobytes()),
    "24 bit": (1, 24, wide_24),
    "32 bit": (1, 32, lambda s: (s * (1 << 31)).astype("<i4").tobytes()),
    "float": (3, 32, lambda s: s.astype("<f4").tobytes()),
    "double": (3, 64, lambda s: s.astype("<f8").tobytes()),
    "mu-law": (7, 8, lambda s: audio.encode_ulaw((s * 32_768).astype(np.int16).tobytes())),
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_any_encoding_and_rate(tmp_path: Path, name: str, rate: int) -> None:
    kind, bits, encode = ENCODINGS[name]
    path = tmp_path / "in.wav"
    path.write_bytes(riff(kind, 1, rate, bits, encode(sine(rate))))  # type: ignore[no-untyped-call]
    heard = np.frombuffer(read_wav(path), np.int16) / 32_768
    assert len(heard) == 8_000
    # 300 samples at either end are the resampler's.
    assert np.abs(heard - sine(8_000))[300:-300].max() < 0.02


def test_alaw_matches_the_recommendation(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    # G.711 table 1a: code 0xD5 is the smallest positive value, 0x55 the smallest negative, 0xAA and 0x2A the largest.
    path.write_bytes(riff(6, 1, 8_000, 8, bytes([0xD5, 0x55, 0xAA, 0x2A, 0xC5, 0xF5])))
    assert np.frombuffer(read_wav(path), np.int16).tolist() == [8, -8, 32_256, -32_256, 264, 528]


def test_stereo_is_mixed_and_extensible_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    body = np.array([[1_000, 3_000], [-200, -400]], "<i2").tobytes()
    extension = struct.pack("<HHIH14s", 22, 16, 3, 1, b"\0" * 14)
    path.write_bytes(riff(0xFFFE, 2, 8_000, 16, body, extension))
    assert np.frombuffer(read_wav(path), np.int16).tolist() == [2_000, -300]


def test_a_streamed_file_without_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    path.write_bytes(riff(1, 1, 8_000, 16, b"\x10\x00" * 9).replace(struct.pack("<I", 18), b"\xff\xff\xff\xff"))
    assert np.frombuffer(read_wav(path), np.int16).tolist() == [16] * 9


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a WAV file"),
        (b"ID3\x04" * 20, "not a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "without a format"),
        (riff(1, 1, 8_000, 16, b""), "holds no sound"),
        (riff(1, 0, 8_000, 16, b"\0\0"), "makes no sense"),
        (riff(1, 1, 0, 16, b"\0\0"), "makes no sense"),
        (riff(0x11, 1, 8_000, 8, b"\0\0"), "encoding is unknown"),
        (riff(1, 1, 8_000, 16, b"\0\0")[:50], "without sound"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "in.wav"
    path.write_bytes(data)
    with pytest.raises(SoundUnreadable, match=words):
        read_wav(path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SoundUnreadable, match="No such file"):
        read_wav(tmp_path / "none.wav")


@given(st.binary(max_size=64), st.integers(0, 60))
def test_garbage_raises_only_value_error(noise: bytes, at: int) -> None:
    data = bytearray(riff(1, 2, 16_000, 16, b"\x01\x02\x03\x04" * 8))
    data[at : at + len(noise)] = noise
    try:
        rate, samples = _parse(bytes(data))
    except ValueError:
        return
    assert rate > 0
    assert np.isfinite(samples).all()


def test_written_files_are_read_by_others(tmp_path: Path) -> None:
    write_wav(tmp_path / "two.wav", b"\x01\x00" * 3, b"\x02\x00" * 5)
    with wave.open(str(tmp_path / "two.wav")) as file:
        assert (file.getnchannels(), file.getframerate(), file.getsampwidth()) == (2, 8_000, 2)
        assert np.frombuffer(file.readframes(9), np.int16).tolist() == [1, 2, 1, 2, 1, 2, 0, 2, 0, 2]
