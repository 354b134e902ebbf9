"""A call's sound as stereo Ogg Opus (RFC 7845), the caller left, the agent right: a thirtieth of WAV's size.

Owns encoder and pages; PyAV does the work, in its Ogg muxer, which hands over each page as it is full. A
page holds an eighth of a second and is of use without those after it, so that a file that breaks off plays
up to there. Knows no files.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import OutputContainer

BIT_RATE = 24_000
"""Bits a second for both sides, variable: telephone speech needs no more, and silence takes next to nothing."""
COMPLEXITY = 1
"""0 to 10. Telephone speech sounds alike at all of them, and 10 takes more than twice the processor's time."""
FRAME_MS = 60
PAGE_SECONDS = 0.12

MISSING = "recording in Opus needs PyAV: pip install -e '.[opus]', or let the persona say `format: wav`"


class OpusMissing(Exception):
    """PyAV is not installed; the message says what to do."""


def opus_installed() -> bool:
    return importlib.util.find_spec("av") is not None


class OpusEncoder:
    """Interleaved int16 at `rate` (8,000, 12,000, 16,000, 24,000 or 48,000) -> Ogg pages. Raises OpusMissing.

    Takes about 60 kB; no time of the event loop, as encoding lets go of Python's lock.
    """

    suffix = ".opus"

    def __init__(self, rate: int) -> None:
        try:
            import av
        except ImportError:
            raise OpusMissing(MISSING) from None
        self._frame: Any = av.AudioFrame
        self._rate = rate
        self._pages = _Pages()
        self._encoded = 0
        pages = {"page_duration": str(round(PAGE_SECONDS * 1e6)), "flush_packets": "1"}
        self._container: OutputContainer = av.open(self._pages, "w", format="ogg", options=pages)
        options = {"application": "voip", "compression_level": str(COMPLEXITY), "frame_duration": str(FRAME_MS)}
        self._stream: AudioStream = self._container.add_stream("libopus", rate=rate, layout="stereo", options=options)
        self._stream.bit_rate = BIT_RATE

    def begin(self, sizes_follow: bool) -> bytes:
        """The two header pages."""
        self._container.start_encoding()
        return self._pages.take()

    def encode(self, stereo: bytes) -> bytes:
        """The pages that are now full; the rest, up to a quarter of a second, comes later."""
        samples = np.frombuffer(stereo, dtype="<i2").reshape(1, -1)
        if not samples.size:
            return b""
        frame = self._frame.from_ndarray(samples, format="s16", layout="stereo")
        frame.sample_rate = self._rate
        frame.pts = self._encoded
        self._encoded += samples.size // 2
        for packet in self._stream.encode(frame):
            self._container.mux(packet)
        return self._pages.take()

    def start(self) -> bytes:
        return b""

    def finish(self) -> bytes:
        """The last pages; the encoder is of no use afterwards."""
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return self._pages.take()


class _Pages:
    """What the muxer writes to: collects pages until they are taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        pages = b"".join(self._parts)
        self._parts.clear()
        return pages
