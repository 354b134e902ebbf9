"""Ogg Opus in and out: frames whatever the cuts, and nothing but a clear error for anything else."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
import sphn

from model.moshi.sound import MAX_WAITING, Ears, Mouth
from model.wire import FRAME_BYTES, WireError
from tests.model.moshi.client import RATE, pitch, tone


def stream(seconds: float, hertz: float = 440) -> bytes:
    samples, mouth = tone(seconds, hertz), Mouth()
    pcm = (samples * 32_767).astype("<i2").tobytes()
    return b"".join(mouth.say(pcm[place : place + FRAME_BYTES]) for place in range(0, len(pcm), FRAME_BYTES))


def heard(frames: list[bytes]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(b"".join(frames), "<i2").astype(np.float32)


@pytest.mark.parametrize("cut", [1, 7, 1_000, 100_000])
def test_a_stream_is_the_same_frames_however_it_is_cut(cut: int) -> None:
    data, ears, whole = stream(2), Ears(), Ears()
    whole.hear(data)
    for start in range(0, len(data), cut):
        ears.hear(data[start : start + cut])
    assert list(ears.frames) == list(whole.frames)
    assert len(ears.frames) == 25
    assert pitch(heard(list(ears.frames)[3:])) == pytest.approx(440, abs=2)


def test_pages_of_twenty_milliseconds_make_frames_of_eighty() -> None:
    writer, ears = sphn.OpusStreamWriter(RATE), Ears()
    samples = tone(0.4, 440)
    for start in range(0, len(samples), 480):
        ears.hear(bytes(writer.append_pcm(samples[start : start + 480])))
    assert len(ears.frames) == 5


def test_what_is_no_stream_is_said() -> None:
    with pytest.raises(WireError, match="not an Ogg Opus stream"):
        Ears().hear(b"hello" * 100)


def test_sound_that_comes_far_too_fast_is_refused() -> None:
    ears = Ears()
    data = stream(20)
    with pytest.raises(WireError, match="faster than it can be answered"):
        ears.hear(data)
    assert MAX_WAITING < len(ears.frames) < MAX_WAITING + 50


def serial(stream: bytes) -> int:
    """Which stream the first page is of."""
    (number,) = struct.unpack_from("<I", stream, 14)
    return int(number)


def page(number: int, flags: int, lacing: list[int], body: bytes, serial: int) -> bytes:
    """An Ogg page (RFC 3533, section 6)."""
    head = b"OggS" + struct.pack("<BBqIIIB", 0, flags, 0, serial, number, 0, len(lacing)) + bytes(lacing)
    crc = 0
    for byte in head + body:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    return head[:22] + struct.pack("<I", crc) + head[26:] + body


CONTINUED = 1
UNENDED = [255] * 128
"""Lacing of half a page of a packet that does not end in it."""


def test_of_a_packet_that_never_ends_no_more_is_kept_than_a_page() -> None:
    ears, start = Ears(), Mouth().say(bytes(FRAME_BYTES))
    ears.hear(start)
    ears.hear(page(9, 0, UNENDED, bytes(255 * 128), serial(start)))
    with pytest.raises(WireError, match="bytes came with no sound in them"):
        ears.hear(page(10, CONTINUED, UNENDED, bytes(255 * 128), serial(start)))


def test_a_stream_of_the_most_that_opus_can_be_is_heard() -> None:
    """1,275 bytes for each 20 ms, each in a page of its own."""
    ears, start = Ears(), Mouth().say(bytes(FRAME_BYTES))
    ears.hear(start)
    packet = bytes([0b11111000]) + random.Random(3).randbytes(1_274)
    frames = 0
    for number in range(400):
        ears.hear(page(number + 10, 0, [255] * 5 + [0], packet, serial(start)))
        frames += len(ears.frames)
        ears.frames.clear()
    assert frames > 95


def test_damaged_streams_raise_only_the_peers_fault() -> None:
    chance, data = random.Random(4), stream(0.96)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 3, 30))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        del damaged[chance.randrange(len(damaged)) :][: chance.randrange(40)]
        try:
            Ears().hear(bytes(damaged))
        except WireError:
            refused += 1
    assert refused > 50
