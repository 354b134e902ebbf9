"""The room that calls have in the model's window: when each is to get its prompt back, from where on, and who first.

Owns the arithmetic; frames are its unit throughout. A call's prompt and all frames after it fill a window from its
beginning; beyond its end the oldest is forgotten first, and that is the prompt. Knows no device and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence

from model.call_jobs import Call, Job
from model.history import kept_frames, renewal_margin, renewed_ahead

_LITTLE = 16
"""Frames that are few, before a call loses its prompt."""


class WindowRoom:
    """Of the calls of one engine."""

    def __init__(self, window: int) -> None:
        """`window`: frames in the model's sight."""
        self._window = window

    @property
    def margin(self) -> int:
        """Before the window's end, by which a call is re-primed: it goes on while that is done."""
        return renewal_margin(self._window)

    def left(self, call: Call) -> int:
        """Frames until the window pushes its prompt out."""
        return self._window - 1 - call.columns.end - call.base

    def beginning(self, start: int, end: int, prompt: int) -> int:
        """Where a memory with a prompt of `prompt` frames begins to know the frames up to `end`: at `start`, if there
        is room for all since, else later, with half of the room still free."""
        room = self._window - 1 - prompt - self.margin
        # The newest frame at least, though the prompt leave less room than the margin: the next step goes on there.
        return start if end - start <= room else max(start, end - max(1, room // 2))

    def renewed_from(self, call: Call) -> int:
        """Where the next memory of a call begins whose window is nearly full."""
        assert call.prompt is not None, "it speaks"
        return call.columns.end - kept_frames(self._window, call.prompt.frames)

    def in_sight_from(self, call: Call) -> int:
        """The first of a call's frames that the model can have in its sight, be its prompt as short as it may."""
        return call.columns.end - self._window

    def nearly_full(self, call: Call) -> bool:
        """Whether it is time to re-prime it; each slot at a time of its own, the first time."""
        assert call.prompt is not None, "it speaks"
        slot = None if call.apart else call.slot
        return self.left(call) <= renewed_ahead(self._window, call.prompt.frames, slot, self.margin)

    def urgent(self, jobs: Sequence[Job]) -> bool:
        """Whether one of them must be done before a call loses its prompt."""
        little = max(self.margin // 2, _LITTLE)
        return any(self._until_lost(job.call) <= little for job in jobs if not job.pressing)

    def least_first(self, jobs: Sequence[Job], spare_is_free: bool) -> list[tuple[int, Job]]:
        """Those that get their past back, each with the frames until its call loses its prompt.

        First who must begin first to know all that it is to know. Who has a spare memory has no more time than who
        waits for one, and cannot begin before this is done.
        """
        deep = [(self._until_cut(job.call), self._until_lost(job.call), job) for job in jobs if not job.pressing]
        waiting = [] if spare_is_free else [each for each in deep if not each[2].call.has_spare]
        cut = min((each[0] for each in waiting), default=self._window)
        lost = min((each[1] for each in waiting), default=self._window)
        held = [(min(each[0], cut), min(each[1], lost), each[2]) if each[2].call.has_spare else each for each in deep]
        return [(each[1], each[2]) for each in sorted(held, key=lambda each: each[0])]

    def _until_lost(self, call: Call) -> int:
        """Until it loses its prompt: also if the memory that is filled for it is full before it is in place."""
        return min(self.left(call), self._then(call)) if call.has_spare else self.left(call)

    def _until_cut(self, call: Call) -> int:
        """Until it can no longer know all that it is to know: once that is so, it has time again."""
        return min(self.left(call), then) if (then := self._then(call)) >= self.margin else self._until_lost(call)

    def _then(self, call: Call) -> int:
        """The room that it will have in the memory that is filled for it."""
        assert call.prompt is not None, "it speaks"
        return self._window - 1 - call.prompt.frames - (call.columns.end - call.renewed_from)
