"""Prompts, read once by the model and then copied into every call that begins with them.

Owns what a prompt is before the model (columns and embeddings, on the host), the kept memory of those the model has
read, and which are thrown out. R is the rows of a column, C the columns of the token grid, D the model's width.

Attention looks back only: two prompts that begin alike have the same memory as far as they do. So a persona's facts
that differ from call to call, being its last words, cost only themselves.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.capacity import GB
from model.config import LMConfig
from model.conversation import Voice
from model.engine import Stepper
from model.long_reads import CHUNK, LongReads, Read
from model.prompt import prompt_frames, role_frames
from model.shared_passes import Share
from model.streaming import SavedKV
from model.token_cache import TokenCache
from model.voice import VoiceReplay

log = logging.getLogger(__name__)

_WORTH = 0.25
"""A prompt is kept if at least this part of it was not known before, another's beginning used if it is more, and
another waited for that spares more."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of `frames` frames, worked out but not yet read by the model. All on the CPU."""

    key: str
    """Digest of all that follows."""
    voice: str
    """Digest of the embeddings; empty where there are none."""
    embeddings: Tensor | None
    """`[N - 1, D]` of a published voice: what the model reads first."""
    columns: Tensor
    """`[R, T]`, what it reads then. Together frames - 1: the last column is read by the first step of the call."""
    last: Tensor
    """`[R]`, that column."""
    ahead: Tensor
    """`[R]`: what the prompt says of the column after it, its delayed rows."""
    given: Tensor
    """`[R]`: of which rows it says something."""
    frames: int

    @property
    def positions(self) -> int:
        return self.frames - 1

    def shared(self, other: Prompt) -> int:
        """Positions at which this and `other` are alike from the beginning on."""
        if self.voice != other.voice:
            return 0
        before = 0 if self.embeddings is None else self.embeddings.shape[0]
        length = min(self.columns.shape[1], other.columns.shape[1])
        differs = (self.columns[:, :length] != other.columns[:, :length]).any(0)
        return before + (int(differs.long().argmax()) if bool(differs.any()) else length)

    def inputs(self, start: int) -> Iterator[Tensor]:
        """What is read from position `start` on, in chunks: `[T, D]` of the voice, then `[R, T]`."""
        voice = 0 if self.embeddings is None else self.embeddings.shape[0]
        if self.embeddings is not None and start < voice:
            yield from torch.split(self.embeddings[start:], CHUNK)
        rest = self.columns[:, max(0, start - voice) :]
        yield from (chunk for chunk in torch.split(rest, CHUNK, dim=1) if chunk.shape[1])


def make_prompt(config: LMConfig, voice: Voice, text_ids: list[int]) -> Prompt:
    """Work a prompt out. Its length must have been checked (`model.prompt.check_length`).

    Takes milliseconds, most of them for the digest of a voice's megabyte: not for the thread that steps calls.
    """
    grid = TokenCache(config, 1)
    if isinstance(voice, VoiceReplay):
        grid.tokens[0] = voice.cache
        grid.mark_given(0, voice.frames)
        columns = grid.extend(0, torch.tensor(role_frames(text_ids)).T)
    else:
        columns = grid.extend(0, torch.tensor(prompt_frames(voice.T.tolist(), text_ids)).T)
    embeddings = voice.embeddings if isinstance(voice, VoiceReplay) else None
    offset, cells = int(grid.offset[0]), grid.tokens.shape[2]
    last, ahead = grid.tokens[0, :, (offset - 1) % cells].clone(), grid.tokens[0, :, offset % cells].clone()
    given = grid.provided[0, :, offset % cells].clone()
    spoken = "" if embeddings is None else _digest(embeddings.float())
    return Prompt(f"{spoken}-{_digest(columns, last, ahead)}", spoken, embeddings, columns, last, ahead, given, offset)


def _digest(*parts: Tensor) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


class PromptCache:
    """What the model remembers of prompts, up to `most_bytes` on the device; the least recently used goes first."""

    def __init__(self, stepper: Stepper, most_bytes: int) -> None:
        self.hits = self.misses = self.evictions = 0
        """evictions: prompts that went so that others have room."""
        self.reads = LongReads(stepper)
        self._stepper = stepper
        self._most = most_bytes
        self._kept: OrderedDict[str, tuple[Prompt, SavedKV]] = OrderedDict()
        self._coming: list[Prompt] = []
        """Being read for calls that share passes, and kept then."""
        self._distrusted = 0
        """How often anything was."""

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return sum(saved.nbytes for _, saved in self._kept.values())

    def __contains__(self, prompt: Prompt) -> bool:
        return prompt.key in self._kept

    def fill(self, prompt: Prompt, lm_slot: int, share: Share | None = None) -> Generator[bool]:
        """Leave fresh `lm_slot` after `prompt`, in parts: whoever iterates may step calls in between.

        With a `share` it is read in passes with others, and after one that will be kept and spares it much. Else alone.
        """
        if share is None:
            yield from self._fill(prompt, lm_slot, None)
            return
        known = yield from self._after_alike(prompt)
        if self._keeps(prompt, known):
            self._coming.append(prompt)
        try:
            yield from self._fill(prompt, lm_slot, share)
        finally:
            self._coming = [other for other in self._coming if other is not prompt]

    def _after_alike(self, prompt: Prompt) -> Generator[bool, None, int]:
        """Wait while another is read that spares this one much of what is not kept. So many positions are kept then.

        What spares little is not waited for: calls that wait for each other are prepared one by one.
        """
        while True:
            known = self._known(prompt)[1]
            least = known + _WORTH * prompt.positions
            ahead = [other for other in self._coming if prompt.shared(other) > least]
            if not ahead:
                return known
            while any(one is other for one in ahead for other in self._coming):
                yield False

    def _fill(self, prompt: Prompt, lm_slot: int, share: Share | None) -> Generator[bool]:
        stepper = self._stepper
        state = stepper.state
        stepper.reset_lm(lm_slot)
        distrusted = self._distrusted
        done = known = self._copy(prompt, lm_slot)
        for chunk in prompt.inputs(known):
            read = Read(lm_slot, chunk, done)
            yield from self.reads.alone(read) if share is None else share.read(read)
            done += read.length
        device = stepper.device
        state.cache.place(
            lm_slot, prompt.frames, prompt.last.to(device), prompt.ahead.to(device), prompt.given.to(device)
        )
        # Its beginning may have been copied from what was distrusted since.
        if distrusted == self._distrusted and self._keeps(prompt, known) and prompt not in self:
            self._keep(prompt, lm_slot)

    def _keeps(self, prompt: Prompt, known: int) -> bool:
        """Whether it will be kept once it has been read, of which `known` positions were."""
        return _worth_keeping(prompt, known) and self._size(prompt) <= self._most

    def _size(self, prompt: Prompt) -> int:
        """Bytes that its memory takes."""
        return prompt.positions * sum(ring[:, 0, :, :1].nbytes for ring in self._stepper.state.kv.rings())

    def distrust(self, prompt: Prompt) -> None:
        """Forget what is kept that begins like it: what a call was filled with gave numbers that are none, and so may
        all that have it in common. What is being read now is not kept."""
        self._distrusted += 1
        for key in [key for key, (other, _) in self._kept.items() if prompt.shared(other)]:
            del self._kept[key]

    def warm(self, prompt: Prompt) -> bool:
        """Read a prompt into the cache, through a spare language memory, before there are calls.

        False, and nothing is done, where it would push another out. Of those read so the first will go last.
        """
        if prompt in self:
            return True
        if not self._has_room(prompt):
            return False
        spare = self._stepper.spare_lm_slots[0]
        # Aside as for calls: what is kept then belongs to the stream that reads it, and lets go of it.
        with self._stepper.aside():
            for _ in self.fill(prompt, spare):
                pass
            self._stepper.reset_lm(spare)
        self._stepper.join()
        if prompt in self:
            self._kept.move_to_end(prompt.key, last=False)
        return True

    def _has_room(self, prompt: Prompt) -> bool:
        """Whether it can be kept beside all others, or need not be."""
        known = self._known(prompt)[1]
        return not _worth_keeping(prompt, known) or self.nbytes + self._size(prompt) <= self._most

    def _copy(self, prompt: Prompt, lm_slot: int) -> int:
        """Take over what is known of the prompt's beginning: so many positions."""
        best, most = self._known(prompt)
        if best == prompt.key:
            self.hits += 1
        else:
            self.misses += 1
        if most:
            self._kept.move_to_end(best)
            self._stepper.state.kv.load(lm_slot, self._kept[best][1], most)
        return most

    def _known(self, prompt: Prompt) -> tuple[str, int]:
        """The kept prompt that begins most like it, and how many positions are alike; empty and 0 if not worth it."""
        if prompt.key in self._kept:
            return prompt.key, prompt.positions
        best, most = "", 0
        for key, (other, _) in self._kept.items():
            alike = prompt.shared(other)
            if alike > max(most, _WORTH * prompt.positions):
                best, most = key, alike
        return best, most

    def _keep(self, prompt: Prompt, lm_slot: int) -> None:
        """Copy it from `lm_slot`, which has read it. A device that is full costs the copy, not the call."""
        self._drop_until(self._most - self._size(prompt))
        try:
            saved = self._stepper.state.kv.save(lm_slot, prompt.positions)
        except torch.OutOfMemoryError:
            self._drop_until(self.nbytes // 2)
            self._most = self.nbytes
            log.warning(
                "the device's memory is full: of prompts %.1f GB are kept from now on; start it with fewer --slots",
                self._most / GB,
            )
            return
        self._kept[prompt.key] = (prompt, saved)

    def _drop_until(self, most: int) -> None:
        """Let those go that were not used for longest, until the others take no more than `most` bytes."""
        while self.nbytes > most:
            self._kept.popitem(last=False)
            self.evictions += 1


def _worth_keeping(prompt: Prompt, known: int) -> bool:
    """Whether enough of it is its own, where `known` positions of it were kept before."""
    return prompt.positions - known >= _WORTH * prompt.positions
