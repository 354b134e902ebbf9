"""A session that goes on where another worker left it: what the open request says of it, and its history.

Part of `model.wire`, which hands these names on. Standard library only.

An engine of tokens sends with each agent frame the column of the token grid that the frame's step decided, and
what the agent says in a step before that step's frame. The gateway keeps the columns since the last cut and the
newest caller sound. When the worker dies, hangs or says `draining`, the gateway opens the session on another with
`resume` in the request, and one binary message of kind history follows at once. With cut = 1,000, frames = 200,
missed = 3:

    frames   1,000 ... 1,199   their columns are in the message; another worker answered them
    frames   1,200 ... 1,202   caller sound that nobody answered: the agent is silent there
    frame    1,203             the next caller frame, the first that the new worker answers

The message's payload is the columns of frames 1,000 ... 1,199, then the caller's sound of the newest
`caller_frames` frames, at most 10 s, which end with frame 1,202. The new worker makes the columns of
frames 1,200 ... 1,202 itself and says them, for the case that the session is resumed once more. From one
that does not say them, or is lost before it can, the next history holds NO_TOKEN in all of such a column:
the agent was silent, the caller's codes are not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from model.wire_fields import FRAME_BYTES, HEADER, TOKENS_BYTES, WireError, build, split

KIND_HISTORY = 3
MAX_HISTORY_FRAMES = 3_000
"""Columns of the longest history: the model's window, 240 s."""
MAX_HISTORY_CALLER_FRAMES = 125
"""Frames of caller sound in a history: 10 s, from which a codec is rebuilt, though not exactly: of an older call it
hears some codes otherwise for as long again, see `model.history`."""

AGENT_SILENT = 90
"""dB below full scale."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A session that another worker began: what the history message holds, and what was still to be said."""

    cut: int = 0
    """Frame of the first column."""
    frames: int = 0
    """Columns, at most MAX_HISTORY_FRAMES: those of frames cut ... cut + frames - 1."""
    caller_frames: int = 0
    """Frames of caller sound, at most MAX_HISTORY_CALLER_FRAMES, the last one cut + frames + missed - 1."""
    missed: int = 0
    """Caller frames that no worker answered; their sound is the last in the message."""
    heard: int = 0
    """Caller frames before this one are in the transcript; a transcriber goes on from here, or from where the caller's
    sound begins, if that is later: then nobody writes down what lies between. It is silence unless the worker's
    transcribers were seconds behind, which tell an utterance after 8 s at the latest, or nobody took the session for
    seconds."""
    queued: tuple[str, ...] = ()
    """What the greeting and `say` asked for and has not been said, in order; of a text half said, the
    rest, from the word on that was being said when nobody answered any more. A resumed session greets nobody of its
    own accord."""

    agent_levels: tuple[int, ...] = ()
    """How loud the agent was in the frames of caller sound, so that its echo in them is not taken for the caller: of
    each the loudest 20 ms, root mean square in dB below full scale, AGENT_SILENT for silence. Empty: it was silent in
    all, or that is not known. Only a worker that speaks 1.3 knows the field."""

    @property
    def next_index(self) -> int:
        """The index of the caller frame that comes next."""
        return self.cut + self.frames + self.missed


@dataclass(frozen=True, slots=True)
class History:
    """What a session was so far, as `Resume` describes it."""

    columns: bytes = b""
    """TOKENS_BYTES for each of `frames` frames, oldest first."""
    caller_pcm: bytes = b""
    """FRAME_BYTES for each of `caller_frames` frames: int16 at 24 kHz."""


def build_resume(data: Any) -> Resume | None:
    """Of an open request's JSON; None where it has none. Raises WireError."""
    if data is None:
        return None
    resume = build(Resume, data, "resume")
    if resume.frames > MAX_HISTORY_FRAMES:
        raise WireError(f"resume.frames may be {MAX_HISTORY_FRAMES} at most, not {resume.frames}")
    if resume.caller_frames > MAX_HISTORY_CALLER_FRAMES:
        raise WireError(f"resume.caller_frames may be {MAX_HISTORY_CALLER_FRAMES} at most, not {resume.caller_frames}")
    if not resume.missed <= resume.caller_frames <= resume.next_index:
        raise WireError("resume.caller_frames must hold every missed frame, and none that was never sent")
    if len(resume.agent_levels) not in (0, resume.caller_frames) or max(resume.agent_levels, default=0) > AGENT_SILENT:
        raise WireError(f"resume.agent_levels must hold 0 to {AGENT_SILENT} for each frame of caller sound, or nothing")
    if resume.next_index >= 1 << 32:
        raise WireError("resume goes on beyond the last index a frame can have")
    return resume


def encode_history(resume: Resume, history: History) -> bytes:
    """The message that follows an open request with `resume`."""
    return b"".join((HEADER.pack(KIND_HISTORY, resume.cut), history.columns, history.caller_pcm))


def decode_history(message: str | bytes, resume: Resume) -> History:
    """Read the message that an open request announced. Raises WireError if it is not that one."""
    if isinstance(message, str):
        raise WireError("an open request with resume is followed by its history, a binary message")
    kind, index, payload = split(message)
    if kind != KIND_HISTORY:
        raise WireError(f"an open request with resume is followed by its history, not by binary kind {kind}")
    if index != resume.cut:
        raise WireError(f"the history begins at frame {index}, the request says {resume.cut}")
    columns = TOKENS_BYTES * resume.frames
    expected = columns + FRAME_BYTES * resume.caller_frames
    if len(payload) != expected:
        raise WireError(f"a history of these lengths has {expected} bytes, this one {len(payload)}")
    return History(payload[:columns], payload[columns:])
