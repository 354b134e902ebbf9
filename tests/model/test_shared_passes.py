"""Passes that several calls share: each gets what it would alone, and nobody else's memory changes."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from torch import Tensor

from model import warming
from model.codec_passes import CodecPasses, CodecWork
from model.conversation import Models
from model.engine import Stepper
from model.history import CODEC_FRAMES, FAST_FRAMES, HASTY_FRAMES, Columns, _agent_codes
from model.long_reads import LongReads, Read
from model.mimi.codec import MimiState
from model.shared_passes import SharedPasses
from model.wire import FRAME_SAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

Waiting = Generator[bool, None, Tensor | None]


def passes_of(stepper: Stepper, padded: bool | None = None) -> SharedPasses:
    return SharedPasses(CodecPasses(stepper, padded=padded), LongReads(stepper, padded=padded))


def result(parts: Waiting) -> Tensor | None:
    """What a generator returns once its passes are done; of one that has none to return, nothing in a tensor."""
    try:
        assert next(parts) is False
    except StopIteration as end:
        return Tensor() if end.value is None else end.value.cpu()
    return None


def sound(seed: int, frames: int) -> Tensor:
    samples = 3000 * torch.randn(frames * FRAME_SAMPLES, generator=torch.Generator().manual_seed(seed))
    return samples.to(torch.int16)


def codes(seed: int, frames: int) -> Tensor:
    return torch.randint(0, 2048, (8, frames), generator=torch.Generator().manual_seed(seed))


def memory(stepper: Stepper, slot: int) -> list[Tensor]:
    codec = stepper.codec
    sides = ((codec.encoder_rows, codec.encoder_kv), (codec.decoder_rows, codec.decoder_kv))
    return [part for rows, kv in sides for part in (rows[slot], kv.offsets[slot], kv.keys[:, slot], kv.values[:, slot])]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.allclose(a.float(), b.float(), atol=1e-4) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("padded", [False, True])
def test_each_call_of_a_pass_gets_what_it_would_alone(models: Models, padded: bool) -> None:
    together, alone = Stepper(models, 4), Stepper(models, 4)
    passes = passes_of(together, padded)
    before = [part.clone() for part in memory(together, 3)]
    for frames in (3, 2):
        heard = [passes.share(slot).hear(slot, sound(slot, frames)) for slot in (0, 2, 1)]
        spoken = [passes.share(slot).speak(slot, codes(slot, frames)) for slot in (0, 2, 1)]
        given, count = [Tensor()] * 3, 0
        waiting = {parts: place for place, parts in enumerate((*heard, *spoken))}
        while waiting:
            for parts, place in list(waiting.items()):
                if (ids := result(parts)) is not None:
                    del waiting[parts]
                    if place < 3:
                        given[place] = ids
            count += passes.work()
        assert count == 2 * (frames if padded else 1), "as many of each kind as for one call"
        for slot, ids in zip((0, 2, 1), given, strict=True):
            at, mimi, device = torch.tensor([slot], device=models.device), models.mimi, models.device
            expected = mimi.encode_step(alone.codec, at, sound(slot, frames).to(device)[None, None] / 32_768, 8)[
                0
            ].cpu()
            # A GPU's libraries compute another size in another way: where two codes are as near, either may come out.
            assert (ids == expected).float().mean() > (0.9 if device.type == "cuda" else 0.999)
            mimi.decode_step(alone.codec, at, codes(slot, frames).to(device)[None])
    for slot in (0, 1, 2):
        assert same(memory(together, slot), memory(alone, slot))
    assert same(memory(together, 3), before)


@pytest.mark.parametrize("given", [sound(1, 25), codes(1, 25)], ids=["sound", "codes"])
def test_nothing_of_what_a_pass_was_given_is_left_in_memory_of_its_own(
    models: Models, monkeypatch: pytest.MonkeyPatch, given: Tensor
) -> None:
    mimi, seen, heard = models.mimi, list[Tensor](), given.clone()
    passes = CodecPasses(Stepper(models, 1))  # now: on a GPU weights are stacked for it, too
    stack, encode, remember = torch.stack, mimi.encode_step, mimi.remember

    def stacked(tensors: list[Tensor], dim: int = 0) -> Tensor:
        made = stack(tensors, dim)
        if not seen:
            seen.append(made)
        return made

    def encoded(state: MimiState, slots: Tensor, pcm: Tensor, n_q: int | None = None) -> Tensor:
        seen.append(pcm)
        return encode(state, slots, pcm, n_q)

    def remembered(state: MimiState, slots: Tensor, spoken: Tensor) -> None:
        seen.append(spoken)
        remember(state, slots, spoken)

    monkeypatch.setattr("model.codec_passes.torch.stack", stacked)
    monkeypatch.setattr(mimi, "encode_step", encoded)
    monkeypatch.setattr(mimi, "remember", remembered)
    passes.do([CodecWork(0, given)])
    assert len(seen) >= 2
    assert not any(bool(part.any()) for part in seen)
    assert torch.equal(given, heard), "which is its owner's"


def test_a_past_is_cut_into_the_few_lengths_that_passes_have(models: Models) -> None:
    """What was spoken into longer ones than what is heard."""
    passes = CodecPasses(Stepper(models, 1), padded=True)
    heard, spoken = passes.parts(sound(0, 132)), passes.parts(codes(0, 157))
    assert [part.shape[-1] // FRAME_SAMPLES for part in heard] == [25] * 5 + [5, 1, 1]
    assert [part.shape[-1] for part in spoken] == [125, 25, 5, 1, 1]


def test_calls_in_haste_still_have_all_the_codes_that_one_pass_takes(models: Models) -> None:
    columns = Columns(0, torch.zeros((1_000, 17), dtype=torch.int16).numpy().tobytes())
    for frames in (HASTY_FRAMES, FAST_FRAMES):
        spoken = _agent_codes(models.config, columns, columns.end - frames)
        parts = CodecPasses(Stepper(models, 1), padded=True).parts(spoken)
        assert [part.shape[1] for part in parts] == [CODEC_FRAMES]


def test_calls_with_other_lengths_have_a_pass_of_their_own_in_turn_and_none_has_more_than_eight(models: Models) -> None:
    """On an engine of few slots."""
    stepper = Stepper(models, 11)
    passes = passes_of(stepper, padded=False)
    short = passes.share(1).hear(10, sound(0, 1))
    long = [passes.share(2 + slot).hear(slot, sound(slot, 2)) for slot in range(10)]
    for parts in (*long[:2], short, *long[2:]):
        assert next(parts) is False
    done = []
    while passes.work():
        finished = {id(parts) for parts in (*long, short) if not _waits(parts)}
        done.append(len(finished))
    assert done == [1, 8, 2]


def _waits(parts: Waiting) -> bool:
    """Whether it still waits; a generator that has ended does not count again."""
    if parts.gi_frame is None:  # type: ignore[attr-defined]
        return True
    try:
        return next(parts) is False
    except StopIteration:
        return False


def test_who_hangs_up_is_left_out_of_the_pass(models: Models) -> None:
    stepper = Stepper(models, 2)
    passes = passes_of(stepper)
    gone, there = passes.share(0).hear(0, sound(0, 1)), passes.share(1).hear(1, sound(1, 1))
    assert [next(gone), next(there)] == [False, False]
    gone.close()
    assert passes.work()
    ids = result(there)
    assert ids is not None
    assert ids.shape == (8, 1)
    assert int(stepper.codec.encoder_kv.offsets[0]) == 0
    assert not passes.work()


def test_what_is_done_for_nobody_beforehand_leaves_the_slots_as_they_were(models: Models) -> None:
    stepper, fresh = Stepper(models, 2), Stepper(models, 2)
    CodecPasses(stepper, padded=True).warm()
    LongReads(stepper, padded=True).warm()
    warming._copy_once(stepper)
    assert all(same(memory(stepper, slot), memory(fresh, slot)) for slot in (0, 1))
    assert not stepper.state.kv.offsets.any()
    assert all(same(read_of(stepper, slot), read_of(fresh, slot)) for slot in (0, 1))


def columns(seed: int, length: int) -> Tensor:
    return torch.randint(0, 40, (17, length), generator=torch.Generator().manual_seed(seed))


def read_of(stepper: Stepper, lm_slot: int) -> list[Tensor]:
    """All that a language memory holds of what was read."""
    kv = stepper.state.kv
    held = int(kv.offsets[lm_slot])
    return [kv.offsets[lm_slot], *(ring[:, lm_slot, :, :held] for ring in kv.rings())]


@pytest.mark.parametrize(("padded", "counts"), [(False, (1, 3, 2)), (True, (1, 2, 1))])
def test_calls_read_together_what_each_would_alone(models: Models, padded: bool, counts: tuple[int, ...]) -> None:
    """In one pass where they have as many columns, or are filled up to as many."""
    together, alone = (Stepper(models, 4, kv_dtype=torch.float32) for _ in range(2))
    passes, single = passes_of(together, padded), LongReads(alone, padded=False)
    held = [0, 0, 0]
    for lengths, passed in zip(((5, 5, 5), (30, 40, 7), (33, 33, 100)), counts, strict=True):
        reads = [Read(slot, columns(10 * slot + held[slot], length), held[slot]) for slot, length in enumerate(lengths)]
        waiting = [passes.share(slot).read(read) for slot, read in enumerate(reads)]
        assert [next(parts) for parts in waiting] == [False] * 3
        assert [passes.work() for _ in range(passed + 1)] == [*[True] * passed, False]
        for slot, read in enumerate(reads):
            assert next(waiting[slot], None) is None, "it has been done"
            single.do([read])
            held[slot] += read.length
    for slot in (0, 1, 2):
        assert same(read_of(together, slot), read_of(alone, slot))
    assert together.state.kv.offsets.tolist() == [*held, 0, 0, 0]


def test_what_fills_a_pass_up_never_reaches_around_the_ring(models: Models) -> None:
    """One column short of full, a pass that was made longer would overwrite the oldest."""
    stepper = Stepper(models, 2, kv_dtype=torch.float32)
    reads, capacity = LongReads(stepper, padded=True), stepper.state.kv.window.capacity
    reads.do([Read(0, columns(0, 64), 0)])
    oldest = stepper.state.kv.keys[:, 0, :, :8].clone()
    held = 64
    while held < capacity - 1:
        length = min(64, capacity - 1 - held)
        reads.do([Read(0, columns(held, length), held)])
        held += length
    assert int(stepper.state.kv.offsets[0]) == capacity - 1
    assert torch.equal(stepper.state.kv.keys[:, 0, :, :8], oldest)


def test_no_more_calls_read_together_than_memory_is_kept_for(models: Models) -> None:
    stepper = Stepper(models, 9, kv_dtype=torch.float32)
    passes = passes_of(stepper, padded=False)
    capacity = capacity_of(stepper)
    for held, columns_in_all, most in ((0, 99, 9), (0, 9, 3), (capacity, 99, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("model.long_reads._CELLS", 3 * capacity)
            patch.setattr("model.long_reads._COLUMNS", columns_in_all)
            waiting = [passes.share(slot).read(Read(slot, columns(slot, 3), held)) for slot in range(9)]
            assert not any(next(parts) for parts in waiting)
            assert passes.work()
            done = sum(next(parts, None) is None for parts in waiting)
            assert done == most
            for parts in waiting:
                parts.close()


def capacity_of(stepper: Stepper) -> int:
    return stepper.state.kv.window.capacity


def test_an_engine_of_many_slots_lets_sixteen_hear_together(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.codec_passes._MANY", 16)
    passes = passes_of(Stepper(models, 17))
    waiting = [passes.share(slot).hear(slot, sound(slot, 1)) for slot in range(17)]
    assert not any(next(parts) for parts in waiting)
    assert [passes.work() for _ in range(3)] == [True, True, False]


def test_who_came_first_is_served_to_the_end_first(models: Models) -> None:
    """Whatever the others have waited for in the meantime."""
    stepper = Stepper(models, 9)
    passes = passes_of(stepper)
    ended: list[int] = []

    def call(slot: int) -> Generator[bool]:
        share = passes.share(slot)
        for part in range(3):
            yield from share.hear(slot, sound(part, 1))
        ended.append(slot)

    waiting = {slot: call(slot) for slot in (8, *range(8))}
    count = 0
    while waiting:
        waiting = {slot: parts for slot, parts in waiting.items() if next(parts, None) is False}
        if passes.work():
            count += 1
            if count == 4:
                assert ended == list(range(8))
    assert ended == list(range(9))
    assert count == 6
