"""A slot rebuilt from what is known of its call: the prompt, then the columns of the frames since a cut.

Owns a call's columns, the caller's part of a session taken over from another worker, and the order in which a
language memory and the codec are filled again. Knows no sessions. R is the rows of a column (17), N the frames of a
history; a frame's index counts from the beginning of the call.

All columns are known, so nothing is chosen and time runs in parallel: 1,000 frames cost what a few steps do. Only the
codec cannot be rebuilt from codes: its ear is given the caller's newest sound again, its mouth the agent's codes.

Of that there are 10 s, one window of the codec, whose deeper layers remember of more. So a call that is older is heard
a little otherwise for the next 10 s, and goes on token for token as the unbroken one only if no code differs: of a tiny
codec with random weights 9 % do in the first 4 s, 3 % up to 10 s, none later (`tests/model/mimi/test_heard_again.py`).
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.config import TEXT_PAD, LMConfig
from model.engine import Stepper
from model.long_reads import CHUNK, Read
from model.prompt import SILENCE, SINE
from model.prompt_cache import Prompt, PromptCache
from model.shared_passes import Share
from model.wire import NO_TOKEN, TOKENS_BYTES, History, Resume

FAST_FRAMES = 250
"""Frames with which a call taken over speaks again; the rest follows in the background."""
CODEC_FRAMES = 125
"""Frames of sound from which the codec is rebuilt: one window, which is not quite all that it remembers."""
HASTY_FRAMES = CODEC_FRAMES + 1
"""The same where many wait: as many as hold all the codes from which the codec is rebuilt."""
_GROUPS = 8
"""Of slots that are re-primed at a time of their own."""
_FEW = 16
"""Columns that are read last, in a pass that the next step waits for: like one for two it costs the weights' way from
memory. More than a call can get between two parts: `model.calls` steps nine times from one to the next where there is
always a frame to step. Were it fewer, there would be as many to read after each pass as before it, for ever."""

Column = npt.NDArray[np.int64]


class Columns:
    """The columns of a call from frame `start` up to `end`, 34 bytes each.

    Wherever they were, nothing is left of them once they are let go of or have moved to where there is more room.
    """

    def __init__(self, start: int = 0, data: bytes = b"") -> None:
        self.start = start
        self._room = np.frombuffer(data, "<u2").reshape(-1, TOKENS_BYTES // 2).copy()
        """`[n, R]`: what is held from row `first` on, and zeros around it."""
        self._first, self._count = 0, len(self._room)

    @property
    def end(self) -> int:
        return self.start + self._count

    @property
    def _held(self) -> npt.NDArray[np.uint16]:
        """`[end - start, R]`, not a copy."""
        return self._room[self._first : self._first + self._count]

    def append(self, column: Column) -> bytes:
        """Take the next `[R]` ids. Returns them as the wire has them."""
        ids = np.where(column < 0, NO_TOKEN, column).astype("<u2")
        self._take(ids[None])
        return ids.tobytes()

    def extend(self, columns: Tensor) -> None:
        """Take the next `[R, n]` ids, none of them negative."""
        self._take(columns.T.numpy().astype("<u2"))

    def _take(self, columns: npt.NDArray[np.uint16]) -> None:
        """`[n, R]`. Not a bytearray, which leaves copies behind where it grows."""
        before, count = self._count, self._count + len(columns)
        if self._first + count > len(self._room):
            room = np.zeros((2 * count, columns.shape[1]), "<u2")
            room[:before] = self._held
            self._held[:] = 0
            self._room, self._first = room, 0
        self._count = count
        self._held[before:] = columns

    def data(self, start: int) -> bytes:
        """The columns from frame `start` on, as the wire has them."""
        return self._held[start - self.start :].tobytes()

    def between(self, start: int, end: int) -> Tensor:
        """Ids `[R, end - start]`."""
        ids = self._held[start - self.start : end - self.start].astype(np.int64)
        return torch.from_numpy(ids.T.copy())

    def wipe(self) -> None:
        """The call is over: overwrite them."""
        self._held[:] = 0
        self._count = 0

    def forget(self, index: int) -> None:
        """Let go of what lies before frame `index`: overwrite it."""
        if index > self.start:
            gone = min(index - self.start, self._count)
            self._held[:gone] = 0
            self._first, self._count = self._first + gone, self._count - gone
            self.start = index


def kept_frames(context: int, prompt: int) -> int:
    """How many of the newest frames stay with a prompt of `prompt` frames when a slot is re-primed.

    Together 45 % of a window of `context`: what is kept is read again each time the rest of the window is full, so
    keeping more costs more, and that more often. One re-priming took an H200 371 ms beside 127 calls that spoke
    (deploy/benchmarks.md). If each of 128 is re-primed every 1,500 frames, as a window of 3,000 lets them be, that is
    two fifths of the time, by calculation; with 2,500 frames kept it would have to be done every 350, which cannot be.
    Prompts that would leave less than a twentieth of the window are not taken (`model.prompt.check_length`).
    """
    return max(1, context * 9 // 20 - prompt)


def renewed_ahead(context: int, prompt: int, slot: int | None, margin: int) -> int:
    """How many frames before a window of `context` is full a slot is re-primed: `margin` or more, at most half its way.

    The first time each eighth of the slots at another time, so that calls that began together do not all wait for the
    same device. Then they are that far apart, and later ones, whose `slot` is None, need not be sooner than they must.
    """
    return min(margin + (slot or 0) % _GROUPS * (context // 40), _life(context, prompt) // 2)


def renewal_margin(context: int) -> int:
    """Frames before the end of a window of `context` by which a call is re-primed: it goes on while that is done."""
    return max(2, context // 20)


def renewed_every(context: int, prompt: int) -> int:
    """Frames from one re-priming of a call, but its first, to the next, where each comes at once when it is asked for.

    For a prompt of 300 frames and a window of 3,000 that is 1,499: two minutes.
    """
    return _life(context, prompt) - renewed_ahead(context, prompt, None, renewal_margin(context))


def _life(context: int, prompt: int) -> int:
    """Frames from a re-priming until the window is full."""
    return context - 1 - prompt - kept_frames(context, prompt)


def refill(
    prompts: PromptCache, prompt: Prompt, lm_slot: int, columns: Columns, start: int, share: Share | None = None
) -> Generator[bool]:
    """Leave `lm_slot` where steps through `prompt` and the columns from frame `start` on would, in parts.

    Columns that are added meanwhile are read, too: after the last part all are, but for the newest, which the next step
    reads. The token grid is left to the caller of this. With a `share` it is done in passes with others.
    """
    yield from prompts.fill(prompt, lm_slot, share)
    if columns.end == start:
        return
    before, done = prompt.last[:, None], start

    def read(end: int) -> Read:
        return Read(lm_slot, torch.cat((before, columns.between(done, end)), dim=1), prompt.frames + done - start)

    # A call that shares its passes does not speak yet: it gets no columns meanwhile.
    few = _FEW if share is None else 0
    while columns.end - 1 - done > few:
        end = min(done + CHUNK - before.shape[1], columns.end - 1)
        yield from prompts.reads.alone(read(end)) if share is None else share.read(read(end))
        before, done = before[:, :0], end
    if columns.end - 1 > done or before.shape[1]:
        prompts.reads.do([read(columns.end - 1)])


class TakenOver:
    """A session that another worker began, as this one goes on with it.

    columns: its history, with what nobody answered as the agent's silence. ahead, given: `[R]`, what is known of the
    column that the next step decides.
    """

    def __init__(self, config: LMConfig, resume: Resume, columns: Columns, codes: Tensor) -> None:
        """`columns`: those that were answered. `codes [8, n]`: the caller's, of the newest frames."""
        self._config, self.columns = config, columns
        missed = resume.next_index - columns.end
        silent = _silent(config, codes, missed + 1)
        columns.extend(silent[:, :missed])
        self.ahead = silent[:, missed]
        self.given = torch.tensor(config.delays) > 0
        if not resume.missed:
            self.given[1 : 1 + config.codebooks] = False

    @classmethod
    def of(
        cls, config: LMConfig, share: Share, slot: int, resume: Resume, history: History
    ) -> Generator[bool, None, TakenOver]:
        """Give the codec of fresh `slot` the caller's newest sound. Raises ValueError for an unfit history."""
        known = Columns(resume.cut, history.columns)
        try:
            columns = _repaired(config, known)
        finally:
            known.wipe()
        codes = torch.zeros((config.codebooks, 0), dtype=torch.long)
        sound = torch.from_numpy(np.frombuffer(history.caller_pcm, "<i2").astype(np.int16))
        try:
            if sound.shape[0]:
                codes = yield from share.hear(slot, sound)
        finally:
            sound.zero_()
        return cls(config, resume, columns, codes)

    def fill(
        self, stepper: Stepper, prompts: PromptCache, share: Share, prompt: Prompt, slot: int, start: int
    ) -> Generator[bool]:
        """Leave fresh `slot` able to speak, knowing the prompt and the columns from frame `start` on."""
        lm_slot, columns = stepper.lm_slot[slot], self.columns
        yield from refill(prompts, prompt, lm_slot, columns, start, share)
        if columns.end == start:
            return
        device = stepper.device
        last = columns.between(columns.end - 1, columns.end)[:, 0]
        offset = prompt.frames + columns.end - start
        place = (last.to(device), self.ahead.to(device), self.given.to(device))
        stepper.state.cache.place(lm_slot, offset, *place)
        codes = _agent_codes(self._config, columns, start)
        if codes.shape[1]:
            yield from share.speak(slot, codes)


def _silent(config: LMConfig, codes: Tensor, count: int) -> Tensor:
    """`count` columns `[R, count]` with the agent silent, up to that of the frame after `codes [8, n]`, the caller's.

    Theirs as far as they are known, in the columns that they are delayed to, else silence. In a few operations however
    many they are: hundreds of calls are taken over between two steps.
    """
    heard = codes.shape[1]
    delays = torch.tensor(config.delays[1 + config.codebooks :])[:, None]
    places = torch.arange(heard + 1 - count, heard + 1) - delays
    known = (places >= 0) & (places < heard)
    caller = torch.cat((codes, torch.tensor(SINE)[:, None]), dim=1).gather(1, torch.where(known, places, heard))
    return torch.cat((torch.tensor([TEXT_PAD, *SILENCE])[:, None].expand(-1, count), caller))


def _repaired(config: LMConfig, history: Columns) -> Columns:
    """With silence where it has no ids. Raises ValueError for ids that this model does not have."""
    columns = history.between(history.start, history.end)
    silent = torch.tensor([TEXT_PAD, *SILENCE, *SINE])[:, None]
    columns = torch.where(columns == NO_TOKEN, silent, columns)
    if columns.numel() and bool((columns > torch.tensor(config.start_ids)[:, None]).any()):
        raise ValueError("the history holds ids that this model does not have: it was made with another")
    repaired = Columns(history.start)
    repaired.extend(columns)
    return repaired


def _agent_codes(config: LMConfig, columns: Columns, start: int) -> Tensor:
    """The agent's codes of the newest frames that have been decoded, `[8, n]`: all but the last."""
    begin = max(start, columns.end - 1 - CODEC_FRAMES)
    count = max(0, columns.end - 1 - begin)
    held = columns.between(begin, columns.end)
    rows = [held[1 + book, delay : delay + count] for book, delay in enumerate(config.delays[1 : 1 + config.codebooks])]
    return torch.stack(rows)
