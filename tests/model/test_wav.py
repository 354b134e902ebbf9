"""WAV files of all the kinds that are read, against scipy's own writer and by hand; garbage is told as such."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile  # type: ignore[import-untyped]

from model.wav import WavError, parse_wav

SOUND = np.array([[0.0, 0.5], [-0.5, 0.25], [-1.0, 0.75]], np.float32)


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def layout(kind: int, channels: int, rate: int, bits: int, more: bytes = b"") -> bytes:
    block = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, rate, rate * block, block, bits) + more)


@pytest.mark.parametrize(
    ("kind", "scale", "shift", "tolerance"),
    [
        (np.uint8, 128, 128, 1 / 128),
        (np.int16, 1 << 15, 0, 2**-15),
        (np.int32, 1 << 31, 0, 0.0),
        (np.float32, 1, 0, 0.0),
        (np.float64, 1, 0, 0.0),
    ],
)
def test_every_type_of_sample(kind: type, scale: int, shift: int, tolerance: float) -> None:
    file = io.BytesIO()
    wavfile.write(file, 44_100, (SOUND.astype(np.float64) * scale + shift).astype(kind))
    wav = parse_wav(file.getvalue())
    assert wav.rate == 44_100
    assert wav.pcm.dtype == np.dtype(np.float32)
    np.testing.assert_allclose(wav.pcm, SOUND.T, atol=tolerance)


def test_24_bits_and_the_extensible_format() -> None:
    """As most recorders write them: the real format stands further on, and other chunks lie around the sound."""
    body = b"".join(int(v).to_bytes(3, "little", signed=True) for v in (-(1 << 23), -1, 0, 1, (1 << 23) - 1))
    more = (
        struct.pack("<HHI", 22, 24, 4)
        + struct.pack("<H", 1)
        + b"\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
    )
    data = riff(chunk(b"JUNK", b"odd"), layout(0xFFFE, 1, 48_000, 24, more), chunk(b"data", body), chunk(b"LIST", b"x"))
    wav = parse_wav(data)
    assert wav.rate == 48_000
    assert wav.pcm.tolist() == [[-1.0, -(2.0**-23), 0.0, 2.0**-23, 1.0 - 2.0**-23]]


def test_sound_cut_off_keeps_its_whole_samples() -> None:
    data = riff(layout(1, 2, 8000, 16), chunk(b"data", struct.pack("<4h", 1, 2, 3, 4)))
    assert (parse_wav(data[:-1]).pcm * 32768).tolist() == [[1.0], [2.0]]
    assert parse_wav(data[:-8]).pcm.shape == (2, 0)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a WAV file"),
        (b"RIFF\0\0\0\0AVI LIST", "not a WAV file"),
        (riff(), "no sound in it"),
        (riff(layout(1, 1, 8000, 16)), "no sound in it"),
        (riff(chunk(b"data", b"\0\0")), "before its format"),
        (riff(chunk(b"fmt ", b"\1\0"), chunk(b"data", b"")), "format is cut off"),
        (riff(layout(1, 0, 8000, 16), chunk(b"data", b"")), "0 channels"),
        (riff(layout(1, 1, 0, 16), chunk(b"data", b"")), "at 0 samples a second"),
        (riff(layout(7, 1, 8000, 8), chunk(b"data", b"")), "format 7 with 8 bits is not read"),
        (riff(layout(1, 1, 8000, 4), chunk(b"data", b"\0")), "format 1 with 4 bits is not read"),
    ],
)
def test_what_is_not_read_says_why(data: bytes, said: str) -> None:
    with pytest.raises(WavError, match=said):
        parse_wav(data)


@given(st.binary(max_size=60), st.binary(max_size=40), st.integers(0, 120))
def test_garbage_is_sound_or_a_wav_error(head: bytes, body: bytes, end: int) -> None:
    for data in (head, riff(chunk(b"fmt ", head), chunk(b"data", body))[:end]):
        try:
            wav = parse_wav(data)
        except WavError:
            continue
        assert wav.pcm.ndim == 2
        assert wav.rate > 0
