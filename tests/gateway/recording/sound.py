"""Sound that can be recognised, and recordings taken apart again with real decoders."""

from __future__ import annotations

import io
import time
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from gateway.recording.disk import FLUSH_PIECES
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.recording.seal import DataKey, Opener

SAMPLES = 640
KEY = DataKey(b"a key of thirty-two random bytes")
PIECE_SECONDS = 0.08
BATCH_SECONDS = FLUSH_PIECES * PIECE_SECONDS


def piece(index: int, side: int) -> bytes:
    """80 ms that can be recognised: a ramp that goes on from piece to piece, negated for the agent."""
    ramp = (np.arange(SAMPLES) + index * SAMPLES) % 20_000
    return (ramp * (1 if side == 0 else -1)).astype("<i2").tobytes()


def expected(pieces: int, side: int) -> NDArray[np.int16]:
    return np.frombuffer(b"".join(piece(index, side) for index in range(pieces)), dtype="<i2")


def tone(index: int, hertz: int) -> bytes:
    """80 ms of a tone that goes on from piece to piece; a codec keeps its pitch, if not its samples."""
    at = np.arange(index * SAMPLES, (index + 1) * SAMPLES) / 8_000
    return (8_000 * np.sin(2 * np.pi * hertz * at)).astype("<i2").tobytes()


def plan(folder: Path, kind: str = "wav", **more: bool) -> RecordingPlan:
    """`kind`: wav, opus, wav.sealed or opus.sealed."""
    name, _, sealed = kind.partition(".")
    return RecordingPlan(folder, "opus" if name == "opus" else "wav", KEY if sealed else None, **more)


def content(path: Path) -> bytes:
    """What is in the file, opened if it is sealed, even if it breaks off."""
    if path.suffix != ".sealed":
        return path.read_bytes()
    with path.open("rb") as file:
        return b"".join(Opener(file, [KEY], str(path)).chunks())


def samples(path: Path) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """Both sides of a WAV, plain or sealed."""
    data = content(path)
    if path.suffix == ".sealed":
        stereo = np.frombuffer(data[44:], "<i2").reshape(-1, 2)
        return stereo[:, 0], stereo[:, 1]
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (2, 2, 8_000)
        read = file.readframes(file.getnframes())
        assert len(read) == 4 * file.getnframes()
    stereo = np.frombuffer(read, dtype="<i2").reshape(-1, 2)
    return stereo[:, 0], stereo[:, 1]


def decoded(path: Path) -> NDArray[np.float32]:
    """Any recording as a player plays it: float samples (2, n) at 8 kHz for WAV, 48 kHz for Opus."""
    if ".wav" in path.name:
        return np.stack(samples(path)).astype(np.float32) / np.float32(32_768)
    try:
        with av.open(io.BytesIO(content(path)), "r") as container:
            frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    except av.error.EOFError:  # no page of sound yet
        frames = []
    return np.concatenate(frames, axis=1) if frames else np.empty((2, 0), np.float32)


def seconds(path: Path) -> float:
    return int(decoded(path).shape[1]) / (8_000 if ".wav" in path.name else 48_000)


def pitch(track: NDArray[np.float32], rate: int) -> float:
    """The strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(track))
    return float(np.argmax(spectrum) * rate / len(track))


def record(recorder: Recorder, pieces: int) -> None:
    for index in range(pieces):
        recorder.write(piece(index, 0), piece(index, 1))


def wait_for(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Another process's file is what is awaited, so there is nothing to be woken by."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.001)
