"""A call's sound as WAV: 16-bit stereo PCM, the caller left, the agent right. Pure: samples in, bytes out.

The header's sizes are written over with every piece, so that the file is whole at every moment. Where that
cannot be (a sealed file only grows), they say "until the end" as streams do, and `with_sizes` mends it.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
_MOST = 0xFFFF_FFFF
BYTES_A_SAMPLE = 4
"""Of both sides."""


class WavEncoder:
    """Stereo PCM at `rate` samples a second."""

    suffix = ".wav"

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._written = 0

    def begin(self, sizes_follow: bool) -> bytes:
        """The file's first bytes. `sizes_follow`: `start` will be written over them."""
        return wav_header(self._rate, 0 if sizes_follow else None)

    def encode(self, stereo: bytes) -> bytes:
        """Interleaved int16 samples of both sides -> what is appended to the file."""
        self._written += len(stereo)
        return stereo

    def start(self) -> bytes:
        """What the file must begin with once all that was encoded is in it; empty: as it began."""
        return wav_header(self._rate, self._written)

    def finish(self) -> bytes:
        """The file's last bytes."""
        return b""


def wav_header(rate: int, size: int | None) -> bytes:
    """RIFF header before `size` bytes of 16-bit stereo samples; None: as many as follow."""
    size = _MOST - HEADER.size if size is None else min(size, _MOST - HEADER.size)
    riff = size + HEADER.size - 8
    return HEADER.pack(b"RIFF", riff, b"WAVE", b"fmt ", 16, 1, 2, rate, 4 * rate, BYTES_A_SAMPLE, 16, b"data", size)


def with_sizes(header: bytes, size: int) -> bytes:
    """A header of ours with `size` bytes of samples after it. Raises ValueError if it is none."""
    try:
        fields = HEADER.unpack(header)
    except struct.error:
        raise ValueError("a WAV header has 44 bytes") from None
    if (fields[0], fields[2], fields[11]) != (b"RIFF", b"WAVE", b"data"):
        raise ValueError("not a WAV header")
    return wav_header(fields[7], size)
