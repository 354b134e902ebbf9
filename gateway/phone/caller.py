"""Who speaks into the terminal phone, 20 ms at a time: a recording, or clips that wait for the agent. Pure.

A voice is stepped once every 20 ms with what the caller hears and answers with what the caller says,
so its clock is the call's and needs no other. Knows no files and no sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gateway import audio
from gateway.phone.metrics import FRAME_SECONDS, SOUND_LEVEL, Turn
from gateway.phone.playout import FRAME_BYTES, SILENCE

When = Literal["at_once", "agent_finished", "agent_speaking"]
PATIENCE = 15.0
"""Seconds a caller waits for an agent that stays silent before speaking all the same."""
FINISHED = 1.5
"""Seconds of silence after which an agent that was to be interrupted has nothing more to say."""


class Voice(Protocol):
    """The caller's mouth and ear."""

    turns: list[Turn]
    """What was said so far, in seconds of the call; empty when only the sound is known."""

    def step(self, heard: bytes) -> bytes:
        """20 ms heard in, 20 ms said out: 320 bytes of int16 at 8 kHz each."""

    @property
    def hung_up(self) -> bool:
        """The caller puts the phone down now."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Something to say, and when: `after` seconds at once, after the agent finished, or while it speaks."""

    pcm: bytes
    when: When = "at_once"
    after: float = 0.0
    turns: tuple[Turn, ...] = ()
    """What is said in it and where, in seconds of the clip."""


class ScriptedCaller:
    """Says clips in order, each when its moment has come, then listens and hangs up.

    `agent_finished`: the agent spoke since the clip before and has been silent for `after` seconds.
    `agent_speaking`: the agent speaks, and began at least `after` seconds ago: an interruption.
    At the end the caller hangs up when the agent spoke and was silent for `quiet` seconds, or after `linger`.
    """

    def __init__(self, clips: Sequence[Clip], quiet: float = 2.0, linger: float = 10.0) -> None:
        self._clips = list(clips)
        self._quiet = quiet
        self._linger = linger
        self._now = 0.0
        self._ticks = 0
        self._said_until = 0.0
        self._agent_began: float | None = None
        self._agent_ended = 0.0
        self._speaking = b""
        self._at = 0
        self.turns: list[Turn] = []

    @property
    def hung_up(self) -> bool:
        if self._clips or self._speaking:
            return False
        silent = self._now - max(self._agent_ended, self._said_until)
        return silent >= self._quiet if self._agent_began is not None else silent >= self._linger

    def step(self, heard: bytes) -> bytes:
        loud = audio.level(heard) >= SOUND_LEVEL
        if loud:
            self._agent_ended = self._now
            if self._agent_began is None:
                self._agent_began = self._now
        if not self._speaking and self._clips and self._due(self._clips[0], loud):
            self._begin(self._clips.pop(0))
        said = (
            self._speaking[self._at : self._at + FRAME_BYTES].ljust(FRAME_BYTES, b"\0") if self._speaking else SILENCE
        )
        self._ticks += 1
        self._now = self._ticks * FRAME_SECONDS
        if self._speaking:
            self._advance()
        return said

    def _due(self, clip: Clip, loud: bool) -> bool:
        if clip.when == "at_once":
            return self._now - self._said_until >= clip.after
        if self._agent_began is None:
            return self._now - self._said_until >= PATIENCE
        silent = self._now - self._agent_ended
        if clip.when == "agent_finished":
            return silent >= clip.after
        return (loud and self._now - self._agent_began >= clip.after) or silent >= FINISHED

    def _begin(self, clip: Clip) -> None:
        self._speaking, self._at = clip.pcm, 0
        self.turns += [Turn(self._now + t.start, self._now + t.end, t.text) for t in clip.turns]

    def _advance(self) -> None:
        self._at += FRAME_BYTES
        if self._at >= len(self._speaking):
            self._speaking = b""
            self._said_until = self._now
            # Only what the agent says from here on answers this clip.
            self._agent_began = None
            self._agent_ended = self._now
