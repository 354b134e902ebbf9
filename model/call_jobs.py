"""What an engine knows of one call, and work for it that is done in parts between steps.

Owns the two records and what a part comes to. Which part is next is decided by `model.calls`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import NamedTuple

from model.call_speech import CallSpeech
from model.history import Columns
from model.prompt_cache import Prompt
from model.shared_passes import Share
from model.wire import SessionRequest


@dataclass(slots=True)
class Call:
    """One that is open, or being opened."""

    session: int
    slot: int
    request: SessionRequest
    speech: CallSpeech
    share: Share
    prompt: Prompt | None = None
    columns: Columns = field(default_factory=Columns)
    """Since the cut."""
    base: int = 0
    """What the index of its next frame lacks to its place in the language memory."""
    live: bool = False
    early: list[tuple[int, bytes, float]] = field(default_factory=list)
    """Caller frames that came before it could speak, and when."""
    renewing: bool = False
    renewed_from: int = 0
    """Where the memory begins that it waits for, or that is filled for it."""
    apart: bool = False
    """Whether its window was nearly full once, and it was re-primed at a time of its own: from then on it is apart from
    those that it began with."""
    has_spare: bool = False
    """It is being renewed, and no longer waits for a spare language memory."""
    unprompted: bool = False
    """Whether it was told of that its prompt came back too late."""


class CannotOpen(Exception):
    """The request cannot be served as it is; the message says why."""


@dataclass(slots=True)
class Job:
    """Work in parts, done between steps. pressing: somebody waits for it; else it is for when the window is full."""

    call: Call
    parts: Generator[bool]
    """Each says whether anything was done: nothing, where it waits for a thread, or for a pass it shares."""
    pressing: bool = True


class Part(NamedTuple):
    """The part of a job that was done. did: None once all is. refusal: why its call cannot be opened."""

    job: Job
    did: bool | None
    refusal: str = ""


def do_part(job: Job) -> Part:
    """The next part of it."""
    try:
        return Part(job, next(job.parts))
    except StopIteration:
        return Part(job, None)
    except CannotOpen as refusal:
        return Part(job, None, str(refusal))
