"""Recordings read back: opened if they are sealed, and as WAV whatever they were kept as.

Owns what a reader gets to hear of damage. Decrypted sound is handed on piece by piece and never touches
a disk. Blocks for the file; knows neither folders nor buckets.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from gateway.recording.opus import OpusMissing
from gateway.recording.seal import SUFFIX, DataKey, Opener, Unreadable, content_size
from gateway.recording.wav import BYTES_A_SAMPLE, HEADER, wav_header, with_sizes

if TYPE_CHECKING:
    from av.container import InputContainer

__all__ = ["Recording", "Unreadable", "open_recording"]

_PIECE = 1 << 16
_OPUS_RATE = 48_000
"""Samples a second that Opus counts in, whatever was put in (RFC 7845, section 4)."""


def open_recording(file: BinaryIO, name: str, keys: Sequence[DataKey]) -> Recording:
    """A recording in a seekable file. `name` says what it is: call.wav, call.opus, each perhaps with .sealed.

    Raises Unreadable if its beginning is not what the name says, or no key fits.
    """
    return Recording(file, name, keys)


class Recording:
    """One recording. `content` and `wav` may be called again and again; each begins anew.

    Both raise Unreadable where the file was altered; what was returned before is sound. One that breaks off, after
    a crash or because it was cut, ends early: then `complete` is false.
    """

    def __init__(self, file: BinaryIO, name: str, keys: Sequence[DataKey]) -> None:
        self.name = name
        self.complete = True
        """Known once everything was read."""
        self._file = file
        self._keys = keys
        self._sealed = name.endswith(SUFFIX)
        self._opus = name.removesuffix(SUFFIX).endswith(".opus")
        self._begin()

    def close(self) -> None:
        """Close the file; nothing can be read after that."""
        self._file.close()

    @property
    def media_type(self) -> str:
        """What `content` is, for HTTP."""
        return "audio/ogg" if self._opus else "audio/wav"

    def content(self) -> Iterator[bytes]:
        """The recording as it was made, WAV or Ogg Opus."""
        return self._pieces() if self._opus else self._wav()

    def wav(self) -> Iterator[bytes]:
        """The recording as 16-bit stereo WAV at 8 kHz. Raises OpusMissing where Opus cannot be decoded."""
        return self._decoded() if self._opus else self._wav()

    def cut_warning(self) -> str:
        """What to tell whoever has read a recording that is not complete; empty: nothing."""
        if self.complete:
            return ""
        return f"{self.name} breaks off: the gateway was killed while it recorded, or the file was cut"

    def _begin(self) -> Iterator[bytes]:
        self._file.seek(0)
        if self._sealed:
            return self._opened(Opener(self._file, self._keys, self.name))
        magic = b"OggS" if self._opus else b"RIFF"
        if self._file.read(4) != magic:
            raise Unreadable(f"{self.name} is not a recording of ours: its beginning is not that of its kind")
        self._file.seek(0)
        return iter(lambda: self._file.read(_PIECE), b"")

    def _opened(self, opener: Opener) -> Iterator[bytes]:
        yield from opener.chunks()
        self.complete = opener.complete

    def _pieces(self) -> Iterator[bytes]:
        self.complete = True
        yield from self._begin()

    def _wav(self) -> Iterator[bytes]:
        """With sizes that fit what is there: a sealed file's header was written before anything was known."""
        size = self._sound_size()
        pieces = self._pieces()
        start = b""
        while len(start) < HEADER.size:
            piece = next(pieces, None)
            if piece is None:
                raise self._no_sound()
            start += piece
        try:
            yield with_sizes(start[: HEADER.size], size)
        except ValueError as error:
            raise Unreadable(f"{self.name} cannot be read: {error}") from None
        for piece in itertools.chain([start[HEADER.size :]], pieces):
            yield piece[:size]
            size -= len(piece[:size])

    def _no_sound(self) -> Unreadable:
        return Unreadable(f"{self.name} holds no sound: it breaks off in its header")

    def _sound_size(self) -> int:
        """Bytes of whole samples that are there."""
        total = content_size(self._file) if self._sealed else self._file.seek(0, io.SEEK_END)
        return max(0, total - HEADER.size) // BYTES_A_SAMPLE * BYTES_A_SAMPLE

    def _decoded(self) -> Iterator[bytes]:
        try:
            import av
        except ImportError:
            raise OpusMissing("reading Opus needs PyAV: pip install -e '.[opus]'") from None
        data = b"".join(self._pieces())
        if not data:
            raise self._no_sound()
        try:
            with av.open(io.BytesIO(data), "r") as container:
                total = _samples(container)
        except av.error.EOFError:  # nothing but headers: it was killed before the first second
            total = 0
        except av.error.InvalidDataError:
            raise Unreadable(f"{self.name} cannot be decoded: it is damaged") from None
        yield wav_header(8_000, total * BYTES_A_SAMPLE)
        if total:
            yield from _fitted(_decode(data), total * BYTES_A_SAMPLE)


def _samples(container: InputContainer) -> int:
    """Samples at 8 kHz, counted without decoding; the codec's pre-roll is not the call's."""
    stream = container.streams.audio[0]
    end = 0
    for packet in container.demux(stream):
        if packet.pts is not None and packet.duration is not None:
            end = max(end, packet.pts + packet.duration)
    return max(0, end * 8_000 // _OPUS_RATE)


def _decode(data: bytes) -> Iterator[bytes]:
    """Ogg Opus -> interleaved int16 at 8 kHz."""
    import av

    resampler = av.AudioResampler("s16", "stereo", 8_000)
    with av.open(io.BytesIO(data), "r") as container, contextlib.suppress(av.error.EOFError):
        for frame in (*container.decode(audio=0), None):
            for part in resampler.resample(frame):
                yield part.to_ndarray().tobytes()


def _fitted(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Exactly `size` bytes: a resampler may give a sample more or less."""
    for piece in pieces:
        if piece[:size]:
            yield piece[:size]
        size -= len(piece[:size])
    if size:
        yield bytes(size)
