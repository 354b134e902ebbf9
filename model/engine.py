"""One step of many calls: the caller's sound in, the agent's sound and tokens out, for the slots that have a frame.

Owns the memory of every slot, preallocated, and the step over it: encode, language model, sampling, decode, as one
function over static buffers. Knows no clock, no sessions and no words' meaning. S is the number of slots, b those of
a step, B the captured batch that holds them, R the rows of a column (17).

A call's language memory lies in an LM slot that the call's slot points to. A spare one can be filled beside it and
take its place between two steps: that is how a call gets its prompt back without a pause. The last slot of either
kind is nobody's: it fills up batches.

What an LM slot held is gigabytes, and is not needed to be gone before it is used again: it is zeroed in the background,
or by whoever takes it sooner.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import ops
from model.conversation import Models
from model.cuda_graphs import LOW_PRIORITY, StepGraphs, stream
from model.forced_speech import ForcedSpeech
from model.lm import Chance, LMState, OpenSampler, Sampler, StepOutput
from model.mimi.codec import MimiState
from model.sampling import SlotSampling
from model.streaming import WindowKind
from model.wire import FRAME_SAMPLES, Sampling
from model.word_queue import WordQueue

Sound = npt.NDArray[np.int16]
Ids = npt.NDArray[np.int64]

_SCALE = 32_768.0
_SOUND_BYTES = 2 * FRAME_SAMPLES
_SILENCE = bytes(_SOUND_BYTES)
_ALIGNED = 256
"""Bytes: where a tensor begins for wide loads, and for kernels compiled for such."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave, row by row as its slots were named. Copies: good for ever."""

    columns: Ids
    """`[b, R]`, the columns of the token grid that were decided."""
    tokens: Ids
    """`[b, R]`, the frames emitted: those whose sound this is."""
    pcm: Sound
    """`[b, 1920]`."""
    finite: npt.NDArray[np.bool_]
    """`[b]`: false where a number came out that is none. That slot is lost; the others are as they should be."""


class _Buffers:
    """What a step of `batch` rows reads and writes, on the device, and its mirror in pinned memory."""

    def __init__(self, batch: int, rows: int, device: torch.device) -> None:
        sound = ((batch, FRAME_SAMPLES), torch.int16)
        asked = ((batch,), torch.long), sound, ((batch, rows), torch.long), ((batch, rows), torch.bool)
        told = ((batch, 2 * rows + 1), torch.long), sound
        self._in, self._out = _Mirrored(asked, device), _Mirrored(told, device)
        self.slots_in, self.pcm_in, self.forced_in, self.mask_in = self._in.here
        self.slots, self.pcm, self.forced, self.mask = self._in.there
        self.tokens_out, self.sound_out = self._out.here
        self.tokens, self.sound = self._out.there
        self._heard = self.pcm_in.numpy().data.cast("B")

    def hear(self, pcm: Sequence[bytes]) -> None:
        """The callers' sound of the first rows, 3,840 bytes each or none for silence; the other rows hear silence.

        A GPU waits for this: of bytes it takes a fifth of the time that an array of each row's samples takes.
        """
        for row, data in enumerate(pcm):
            self._heard[row * _SOUND_BYTES : (row + 1) * _SOUND_BYTES] = data or _SILENCE
        self.pcm_in.numpy()[len(pcm) :] = 0

    def upload(self) -> None:
        self._in.upload()

    def download(self) -> None:
        self._out.download()

    def clear(self) -> None:
        """Overwrite what the last step read and wrote, in the stream that steps."""
        self._in.clear()
        self._out.clear()


class _Mirrored:
    """Tensors that lie together on the host and on the device, so that one copy moves them all."""

    def __init__(self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in kinds]
        starts = [0, *accumulate(_ALIGNED * math.ceil(size / _ALIGNED) for size in sizes)]
        self._here = torch.zeros(starts[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._there = self._here if device.type == "cpu" else torch.zeros_like(self._here, device=device)
        self.here, self.there = (
            [
                whole[start : start + size].view(dtype).view(shape)
                for start, size, (shape, dtype) in zip(starts[:-1], sizes, kinds, strict=True)
            ]
            for whole in (self._here, self._there)
        )

    def upload(self) -> None:
        if self._here is not self._there:
            self._there.copy_(self._here, non_blocking=True)

    def download(self) -> None:
        if self._here is not self._there:
            self._here.copy_(self._there, non_blocking=True)

    def clear(self) -> None:
        self._here.zero_()
        if self._here is not self._there:
            self._there.zero_()


class Stepper:
    """The slots of one model on one device, and their step. Slots are numbered 0 to `slots` - 1."""

    def __init__(
        self,
        models: Models,
        slots: int,
        *,
        spares: int = 1,
        window: WindowKind = "reference",
        kv_dtype: torch.dtype | None = None,
        batches: Sequence[int] = (),
    ) -> None:
        """`spares`: LM slots beyond one for each call. `batches`: sizes that a step is padded to, none: no padding.

        Takes all memory that there will be, and captures the step for each batch where the device can.
        """
        self.models, self.slots, self.device = models, slots, models.device
        self.spare_lm_slots = list(range(slots, slots + spares))
        """Those that nobody uses. Whoever takes one out puts back the one that is free afterwards."""
        self.state: LMState = models.lm.streaming(slots + spares + 1, window, kv_dtype)
        self.codec: MimiState = models.mimi.streaming(slots + 1)
        self.sampling = SlotSampling(slots + 1, self.device)
        self.words = WordQueue(self.sampling, models.tokenizer.word_starts(), slots + 1, self.device)
        self.speech = ForcedSpeech(self.words, models.tokenizer, slots + 1, models.config.rows, models.config.card)
        self.lm_slot: list[int] = [*range(slots), slots + spares]
        """Where each slot's language memory lies."""
        self._where = torch.tensor(self.lm_slot, device=self.device)
        self._unwiped: dict[int, None] = {}
        """LM slots that were let go and still hold what was theirs, in that order."""
        self._numbers = torch.arange(slots + spares + 1, device=self.device)
        """Of slots of either kind: a number made into a tensor would be copied, and the copy waited for."""
        self._counter = torch.ones(slots + 1, dtype=torch.long, device=self.device)
        self._batches = sorted(batches)
        self._buffers = {batch: self._buffer(batch) for batch in self._batches}
        self._aside = stream(self.device, LOW_PRIORITY) if self.device.type == "cuda" else None
        self._steps = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        self._used: set[int] = set()
        """Batches that hold what the last step of so many was about."""
        self._graphs = StepGraphs(self._run, self._batches, self.device)

    def _buffer(self, batch: int) -> _Buffers:
        buffers = _Buffers(batch, self.models.config.rows, self.device)
        buffers.slots_in.fill_(self.slots)
        buffers.upload()
        return buffers

    def batch_for(self, count: int) -> int:
        """Rows that a step of `count` slots has. Raises ValueError for more than any captured batch holds."""
        if not self._batches:
            return count
        fitting = next((batch for batch in self._batches if batch >= count), None)
        if fitting is None:
            raise ValueError(f"{count} slots are more than a step takes; {self._batches[-1]} at most")
        return fitting

    def launches(self, count: int) -> int | None:
        """Launches and copies of the captured step for `count` slots; None where nothing is captured."""
        return self._graphs.nodes(self.batch_for(count))

    def set_slot(self, slot: int, sampling: Sampling, counter: int) -> None:
        """Settings of a slot. `counter` (at least 1) numbers its next draw: it alone and the seed decide chance."""
        self.sampling.set(slot, sampling)
        # Filled here and elsewhere: a number assigned to one place of a tensor is copied to a GPU, and waited for.
        self._counter[slot].fill_(counter)

    def reset(self, slot: int) -> None:
        """Make a slot as good as new: of what it held, a caller's words or numbers that are none, nothing is read.

        Its language memory is wiped later, as any that is let go. Does not wait for the device, nor for what is under
        way in the current stream.
        """
        self.let_go_lm(self.lm_slot[slot])
        self.codec.reset(self._numbers[slot : slot + 1])
        self.speech.reset(slot)
        # Nothing of a step is under way on the host: each is waited for. The next one comes after this in its stream.
        with nullcontext() if self._steps is None else torch.cuda.stream(self._steps):
            for batch in self._used:
                self._buffers[batch].clear()
        self._used.clear()

    def reset_lm(self, lm_slot: int) -> None:
        """The same for a language memory alone, before it is filled: wiped it is now, if it was not."""
        if lm_slot in self._unwiped:
            self._wipe(lm_slot)
        self.state.reset(self._numbers[lm_slot : lm_slot + 1])

    def let_go_lm(self, lm_slot: int) -> None:
        """Nobody needs a language memory any more: it is as good as new, and will be wiped."""
        self.state.reset(self._numbers[lm_slot : lm_slot + 1])
        self._unwiped[lm_slot] = None

    @property
    def unwiped(self) -> bool:
        """Whether `wipe` has something to do."""
        return bool(self._unwiped)

    def wipe(self) -> bool:
        """Zero a language memory that was let go; false if all are. To be called `aside`: it takes what writing
        1.6 GB of a full-sized call takes, half a millisecond on a large GPU."""
        if not self._unwiped:
            return False
        self._wipe(next(iter(self._unwiped)))
        return True

    def _wipe(self, lm_slot: int) -> None:
        del self._unwiped[lm_slot]
        self.state.kv.wipe(lm_slot)

    def point(self, slot: int, lm_slot: int) -> int:
        """Let `slot` go on from `lm_slot`, from its next step. Returns the LM slot that it had."""
        before = self.lm_slot[slot]
        self.lm_slot[slot] = lm_slot
        self._where[slot].fill_(lm_slot)
        return before

    @contextmanager
    def aside(self) -> Iterator[bool]:
        """Work on other memory than that of slots that step: on a GPU in a stream behind theirs.

        Gives whether the work before it is done: while it is not, nothing more should be begun.
        """
        if self._aside is None or self._steps is None:
            yield True
            return
        done = self._aside.query()
        with torch.cuda.stream(self._aside):
            self._aside.wait_stream(self._steps)
            yield done

    def join(self) -> None:
        """Let no further step begin before the work done aside is complete: a slot needs it from now on.

        The stream of the steps is the one that was current at the beginning: this may be called within `aside`.
        """
        if self._aside is not None and self._steps is not None:
            self._steps.wait_stream(self._aside)

    def step(self, slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        """Step `slots [b]`, all different, each with 80 ms of its caller: 1,920 int16, or b"" for silence.

        What they are told to say (`speech`) is forced. Waits for the device once, at the end.
        """
        count = len(slots)
        batch = self.batch_for(count)
        buffers = self._buffers.get(batch) or self._buffers.setdefault(batch, self._buffer(batch))
        self._used.add(batch)
        buffers.slots_in.numpy()[:count] = slots
        buffers.slots_in.numpy()[count:] = self.slots
        buffers.hear(pcm)
        buffers.mask_in.zero_()
        buffers.forced_in[:count], buffers.mask_in[:count] = self.speech.rows(slots)
        buffers.upload()
        self._graphs(batch)
        buffers.download()
        if self._steps is not None:
            self._steps.synchronize()
        rows = self.models.config.rows
        tokens: Ids = buffers.tokens_out.numpy()[:count].copy()
        sound_out: Sound = buffers.sound_out.numpy()[:count].copy()
        return StepResult(tokens[:, :rows], tokens[:, rows : 2 * rows], sound_out, tokens[:, -1] != 0)

    @torch.no_grad()
    def _run(self, batch: int) -> None:
        """The step over the static buffers of `batch`; nothing in it waits for the device."""
        models, buffers = self.models, self._buffers[batch]
        slots, config = buffers.slots, models.config
        lm_slots, counter, heard = self._begin(buffers)
        codes, latent = models.mimi.encode_traced(self.codec, slots, heard[:, None], config.codebooks)
        output = models.lm.step(
            self.state,
            lm_slots,
            codes[:, :, 0],
            buffers.forced,
            buffers.mask,
            sampler=_OfSlots(self.words, slots, counter),
            depformer_steps=config.codebooks,
        )
        agent = output.tokens[:, 1 : 1 + config.codebooks, None]
        said = models.mimi.decode_step(self.codec, slots, agent)[:, 0]
        # Rows that fill up a batch are nobody's: they never have a past to read.
        self.state.kv.offsets[-1:].zero_()
        self._end(buffers, latent, output, said)

    def _begin(self, buffers: _Buffers) -> tuple[Tensor, Tensor, Tensor]:
        """LM slots `[b]`, draws so far `[b]` and the callers' sound `[b, 1920]`, float32 within 1."""
        if not ops.fused(buffers.slots):
            return self._where[buffers.slots], self._counter[buffers.slots], buffers.pcm.float() / _SCALE
        from model.kernels import frame

        return frame.begin(buffers.slots, self._where, self._counter, buffers.pcm)

    def _end(self, buffers: _Buffers, latent: Tensor, output: StepOutput, said: Tensor) -> None:
        """Count the draws, and write what the host reads; `latent [b, ...]` is what the caller's codes were chosen
        for, `said [b, 1920]` the agent's sound. Both, and all in between, must be numbers."""
        results = (latent, output.trace.hidden, output.trace.text_logits, output.trace.audio_logits)
        if ops.fused(said):
            from model.kernels import frame

            outside = (buffers.tokens, buffers.sound)
            frame.end(buffers.slots, self._counter, results, output.column, output.tokens, said, *outside)
            return
        self._counter[buffers.slots] += 1
        finite = torch.isfinite(said).all(1)
        for result in results:
            finite = finite & torch.isfinite(result).flatten(1).all(1)
        buffers.tokens.copy_(torch.cat((output.column, output.tokens, finite[:, None].long()), dim=1))
        buffers.sound.copy_((said * _SCALE).round().nan_to_num(0.0).clamp(-_SCALE, _SCALE - 1))


class _OfSlots:
    """A Sampler that knows slots where the model knows only their LM slots, and counts draws through re-priming."""

    def __init__(self, sampler: Sampler, slots: Tensor, counter: Tensor) -> None:
        self._sampler, self._slots, self._counter = sampler, slots, counter

    def chance(self, frame: Tensor, slots: Tensor) -> Chance | None:
        return self._sampler.chance(self._counter, self._slots) if isinstance(self._sampler, OpenSampler) else None

    def __call__(self, logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        return self._sampler(logits, row, self._counter, self._slots)
