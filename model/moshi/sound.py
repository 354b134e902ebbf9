"""Ogg Opus to the engine's frames and back, for one session, with `sphn`.

Owns the two codecs' state and the samples that are not yet a frame. A stream is decoded in small pieces, so that no
few bytes can become minutes of sound at once: a page holds 255 packets of 120 ms at most. Nor may many bytes become
none: `sphn` keeps what is not yet a packet.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import sphn
from numpy.typing import NDArray

from model.wire import FRAME_BYTES, FRAME_SAMPLES, SAMPLE_RATE, WireError

MAX_WAITING = 125
"""Frames that may wait to be answered: 10 s."""
MAX_SOUNDLESS = 64 * 1024
"""Bytes that may come without a frame of sound, as a stream's start does; of an Ogg page, which is no longer, whole."""
FRAME_BYTES_MOST = 8 * 1024
"""Bytes for each frame: Opus has at most 1,275 in 20 ms (RFC 6716, section 3.4), a page's own some 30."""
_PIECE = 1024


class Ears:
    """The client's stream, decoded."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque()
        """80 ms each, int16; whoever takes them removes them."""
        self._reader = sphn.OpusStreamReader(SAMPLE_RATE)
        self._rest = b""
        self._allowed = MAX_SOUNDLESS
        """Bytes that may come before the next frame."""

    def hear(self, data: bytes) -> None:
        """The next bytes of the stream.

        Raises WireError: it is none, has hardly any sound for its length, or comes much faster than it is spoken.
        """
        for start in range(0, len(data), _PIECE):
            piece = data[start : start + _PIECE]
            try:
                samples = self._reader.append_bytes(piece)
            except ValueError as error:
                raise WireError(f"the sound is not an Ogg Opus stream: {error}") from None
            if samples is not None and len(samples):
                self._rest += _to_pcm(samples)
            whole = len(self._rest) - len(self._rest) % FRAME_BYTES
            self.frames += (self._rest[place : place + FRAME_BYTES] for place in range(0, whole, FRAME_BYTES))
            self._rest = self._rest[whole:]
            self._allowed = min(MAX_SOUNDLESS, self._allowed + whole // FRAME_BYTES * FRAME_BYTES_MOST) - len(piece)
            if self._allowed < 0:
                raise WireError(f"{MAX_SOUNDLESS} bytes came with no sound in them; send one Ogg Opus stream")
            if len(self.frames) > MAX_WAITING:
                raise WireError("the sound comes faster than it can be answered; send it as it is spoken")


class Mouth:
    """The agent's stream, encoded."""

    def __init__(self) -> None:
        self._writer = sphn.OpusStreamWriter(SAMPLE_RATE)

    def say(self, pcm: bytes) -> bytes:
        """A frame of 1,920 int16 samples as the next bytes of the stream. Takes about a millisecond."""
        samples = np.frombuffer(pcm, "<i2", FRAME_SAMPLES).astype(np.float32) / np.float32(32_768)
        return bytes(self._writer.append_pcm(samples))


def _to_pcm(samples: NDArray[np.float32]) -> bytes:
    return np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes()
