"""What the gateway tells the process that writes recordings, and what it hears back. Pure.

Each is pickled as it is; both ends are ours, and nobody else has the socket between them. `number` names a
recording, for as long as that process lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from gateway.recording.seal import SUFFIX, DataKey

Format = Literal["wav", "opus"]


@dataclass(frozen=True, slots=True)
class RecordingPlan:
    """How one call is recorded."""

    folder: Path
    """The call's own."""
    format: Format = "wav"
    key: DataKey | None = None
    """Seals the file."""
    held: bool = False
    """Sound waits until it is released."""
    after_consent: bool = False
    """Nothing is kept until `begin` is called."""

    @property
    def path(self) -> Path:
        """Where the recording lies or would lie."""
        return self.folder / f"call.{self.format}{SUFFIX if self.key else ''}"


class Mute(NamedTuple):
    """One side made silent, in samples of the call."""

    track: int
    """0: the caller, 1: the agent."""
    start: int
    end: int


class Begin(NamedTuple):
    """A recording starts with so many samples of silence."""

    number: int
    plan: RecordingPlan
    silence: int


class Append(NamedTuple):
    """Its next sound, int16 at 8 kHz, both sides of equal length; what may be kept, and what is muted of that."""

    number: int
    caller: list[bytes]
    agent: list[bytes]
    released: float
    """In samples."""
    mutes: list[Mute]


class End(NamedTuple):
    """Nothing follows. `whole`: nothing was left out."""

    number: int
    released: float
    mutes: list[Mute]
    whole: bool


class Opened(NamedTuple):
    """The file is there."""

    number: int


class Failed(NamedTuple):
    """Nothing more will be written; what was before stays."""

    number: int
    why: str


class Late(NamedTuple):
    """That was to be muted and was kept before."""

    number: int
    mute: Mute


class Closed(NamedTuple):
    """The answer to `End`, and the last."""

    number: int


Order = Begin | Append | End
Answer = Opened | Failed | Late | Closed
