"""A deterministic stand-in for a model of tokens: each column depends on all that a session remembers.

What it says in a frame is a hash of every column since the cut and of the newest caller sound, so that a
session resumed with one byte of its history missing or misplaced says something else from there on.
"""

from __future__ import annotations

import hashlib
from collections import deque

from model.wire import (
    FRAME_BYTES,
    TOKENS_BYTES,
    AgentFrame,
    AgentText,
    CallerText,
    Columns,
    Cut,
    History,
    Output,
    Resume,
)

WORD_EVERY = 5
"""Frames from one word of the agent to its next."""
HEARD_EVERY = 25
"""Frames of the caller in one text of theirs; it comes `HEARD_LATE` frames after them."""
HEARD_LATE = 7
CALLER_MEMORY = 60
"""Frames of the caller's sound that a column depends on; with those missed, fewer than a history holds."""
RE_PRIMED_AT, KEPT = 150, 75
"""Columns at which the session is cut, and how many are kept."""


class TokenModel:
    """One session. `step` takes the caller's frame `self.index` and gives what the agent says in it."""

    def __init__(self, resume: Resume | None = None, history: History | None = None) -> None:
        self.index = 0
        self.cut = 0
        self.heard = 0
        self.words: list[str] = []
        self._columns = bytearray()
        self._caller: deque[bytes] = deque(maxlen=CALLER_MEMORY)
        self._missed: list[Output] = []
        if resume is not None and history is not None:
            self._rebuild(resume, history)

    def _rebuild(self, resume: Resume, history: History) -> None:
        self.cut, self.heard = resume.cut, resume.heard
        self.index = resume.cut + resume.frames
        self._columns += history.columns
        self.words = [word for text in resume.queued for word in text.split()]
        pcm = history.caller_pcm
        frames = [pcm[place : place + FRAME_BYTES] for place in range(0, len(pcm), FRAME_BYTES)]
        answered = len(frames) - resume.missed
        self._caller.extend(map(_digest, frames[:answered]))
        missed = b"".join(self.miss(frame) for frame in frames[answered:])
        if missed:
            self._missed.append(Columns(resume.cut + resume.frames, missed))

    def say(self, text: str) -> None:
        self.words += text.split()

    def step(self, pcm: bytes) -> list[Output]:
        outputs: list[Output] = [*self._missed]
        self._missed.clear()
        index = self.index
        column = self._decide(pcm, b"")
        while self.index - HEARD_LATE - self.heard >= HEARD_EVERY:
            start, self.heard = self.heard, self.heard + HEARD_EVERY
            outputs.append(CallerText(start, self.heard, f"c{start}"))
        # Next to its frame, with which a gateway hands it out: between them would be what comes first there.
        if index % WORD_EVERY == 0:
            outputs.append(AgentText(index, f" {self.words.pop(0) if self.words else f'a{index}'}"))
        outputs.append(AgentFrame(index, sound(column), column))
        if len(self._columns) // TOKENS_BYTES >= RE_PRIMED_AT:
            del self._columns[: -KEPT * TOKENS_BYTES]
            self.cut = self.index - KEPT
            outputs.append(Cut(self.cut))
        return outputs

    def last_words(self) -> list[CallerText]:
        """What the caller said and has not been told, once the call is over."""
        starts = range(self.heard, self.index, HEARD_EVERY)
        return [CallerText(start, min(start + HEARD_EVERY, self.index), f"c{start}") for start in starts]

    def miss(self, pcm: bytes) -> bytes:
        """A frame of the caller in which the agent was silent; returns its column."""
        return self._decide(pcm, b"silent")

    def _decide(self, pcm: bytes, mark: bytes) -> bytes:
        self._caller.append(_digest(pcm))
        column = hashlib.shake_128(bytes(self._columns) + b"".join(self._caller) + mark).digest(TOKENS_BYTES)
        self._columns += column
        self.index += 1
        return column


def _digest(pcm: bytes) -> bytes:
    return hashlib.blake2b(pcm, digest_size=16).digest()


def sound(column: bytes) -> bytes:
    """80 ms that only this column sounds like, loud enough never to be taken for silence, on a phone too."""
    level = 4_000 + int.from_bytes(column[:2], "little") % 20_000
    return level.to_bytes(2, "little") * (FRAME_BYTES // 2)
