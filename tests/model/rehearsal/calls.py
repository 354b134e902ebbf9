"""A caller for tests: recordings and mixtures as frames, a session driven in lock-step, and what came of it.

In lock-step a session has computed all it can before the next frame, so a test is exact and faster than the call.
"""

from __future__ import annotations

import json
import wave
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from model.rehearsal.pieces import End, Sentence
from model.rehearsal.session import Models, RehearsalSession
from model.wire import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE, AgentFrame, CallerFrame, Flush, Output

Floats = NDArray[np.float32]
Sound = NDArray[np.floating[Any]]
CALLERS = Path(__file__).parents[3] / "gateway" / "phone" / "callers"
LINE_RATE = 8_000


@cache
def recording(name: str) -> Floats:
    """A caller's recording, 24 kHz, float in [-1, 1]."""
    with wave.open(str(CALLERS / f"{name}.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (LINE_RATE, 1, 2)
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return resampled(pcm.astype(np.float32) / 32_768.0, LINE_RATE, SAMPLE_RATE)


@cache
def turns(name: str) -> list[dict[str, Any]]:
    """What is said in a recording: text, start and end in seconds."""
    for entry in json.loads((CALLERS / "callers.json").read_text()):
        if entry["file"] == f"{name}.wav":
            result: list[dict[str, Any]] = entry["turns"]
            return result
    raise LookupError(name)


def resampled(samples: Sound, source: int, target: int) -> Floats:
    return np.asarray(soxr.resample(samples, source, target), np.float32)


def over_the_line(samples: Sound) -> Floats:
    """24 kHz sound as a telephone passes it on: nothing above 4 kHz."""
    return resampled(resampled(samples, SAMPLE_RATE, LINE_RATE), LINE_RATE, SAMPLE_RATE)


def seconds(length: float) -> Floats:
    return np.zeros(int(length * SAMPLE_RATE), np.float32)


def trimmed(samples: Floats) -> Floats:
    """From the first audible sample to the last."""
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    return samples[loud[0] : loud[-1]]


class Script:
    """A dialogue that says what it is told to, and keeps what it heard."""

    def __init__(self, greeting: Sequence[str], replies: Sequence[Sequence[Sentence | End]] = ()) -> None:
        self._greeting = greeting
        self._replies = list(replies)
        self.heard: list[str] = []
        self.told: list[tuple[str, bool]] = []
        self.silences = 0

    def greeting(self) -> Iterator[Sentence | End]:
        return iter([Sentence(text) for text in self._greeting])

    def reply(self, heard: str, wanted: Callable[[], bool]) -> Iterator[Sentence | End]:
        self.heard.append(heard)
        return iter(self._replies.pop(0) if self._replies else [])

    def still_there(self) -> Iterator[Sentence | End]:
        self.silences += 1
        return iter([Sentence("Are you still there?")])

    def spoken(self, text: str, complete: bool) -> None:
        self.told.append((text, complete))


@dataclass
class Call:
    """What a session answered."""

    outputs: list[Output] = field(default_factory=list)

    def of(self, kind: type[Any]) -> list[Any]:
        return [output for output in self.outputs if isinstance(output, kind)]

    async def read(self, outputs: AsyncIterator[Output], index: int) -> AgentFrame | None:
        """Take what comes up to the agent's frame `index`; None if the session ends before."""
        async for output in outputs:
            self.outputs.append(output)
            if isinstance(output, AgentFrame) and output.index == index:
                return output
        return None

    def agent(self) -> NDArray[np.int16]:
        return np.frombuffer(b"".join(frame.pcm for frame in self.of(AgentFrame)), "<i2")

    def sound(self) -> list[int]:
        """Indices of the frames in which the agent is heard."""
        return [frame.index for frame in self.of(AgentFrame) if any(frame.pcm)]

    def flushes(self) -> list[float]:
        """When the agent was cut, in seconds."""
        return [(flush.index + 1) * FRAME_SECONDS for flush in self.of(Flush)]

    def said_after(self, time: float) -> float:
        """Seconds from `time` until the agent is heard next."""
        return next(i * FRAME_SECONDS for i in self.sound() if i * FRAME_SECONDS >= time) - time


async def converse(
    models: Models, script: Any, caller: Floats, *, echo_db: float | None = None, echo_delay: float = 0.2
) -> Call:
    """Play a caller (24 kHz float) to a session in lock-step; with echo, the agent comes back over the line."""
    session = RehearsalSession(models, script)
    outputs = session.outputs()
    call = Call()
    gain = 0.0 if echo_db is None else 10 ** (echo_db / 20)
    returning = np.zeros(len(caller) + 2 * SAMPLE_RATE, np.float32)
    try:
        for index in range(len(caller) // FRAME_SAMPLES):
            start = index * FRAME_SAMPLES
            heard = caller[start : start + FRAME_SAMPLES] + returning[start : start + FRAME_SAMPLES]
            await session.settled()
            session.push(CallerFrame(index, to_int16(heard).tobytes()))
            answer = await call.read(outputs, index)
            if answer is None:
                break
            said = np.frombuffer(answer.pcm, "<i2").astype(np.float32) / 32_768.0
            start += int(echo_delay * SAMPLE_RATE)
            returning[start : start + FRAME_SAMPLES] += gain * said
        await session.settled()
    finally:
        await session.close()
    async for output in outputs:
        call.outputs.append(output)
    return call


def to_int16(samples: Floats) -> NDArray[np.int16]:
    return np.asarray(np.clip(np.rint(samples * 32_768.0), -32_768, 32_767), np.int16)
