"""Passes of the codec that several calls share: each gets what it would alone, and nobody else's memory changes."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
from torch import Tensor

from model.codec_passes import CodecPasses
from model.conversation import Models
from model.engine import Stepper
from model.wire import FRAME_SAMPLES

pytestmark = pytest.mark.usefixtures("one_thread")

Waiting = Generator[bool, None, Tensor]


def result(parts: Waiting) -> Tensor:
    """What a generator returns whose pass is done."""
    with pytest.raises(StopIteration) as end:
        next(parts)
    given: Tensor = end.value.value
    return given.cpu()


def sound(seed: int, frames: int) -> Tensor:
    return 0.1 * torch.randn(frames * FRAME_SAMPLES, generator=torch.Generator().manual_seed(seed))


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
    passes = CodecPasses(together, padded=padded)
    before = [part.clone() for part in memory(together, 3)]
    for frames in (3, 2):
        heard = [passes.hear(slot, sound(slot, frames)) for slot in (0, 2, 1)]
        spoken = [passes.speak(slot, codes(slot, frames)) for slot in (0, 2, 1)]
        assert not any(next(parts) for parts in (*heard, *spoken))
        assert [passes.work(), passes.work(), passes.work()] == [True, True, False], "one of each kind"
        for slot, ear, mouth in zip((0, 2, 1), heard, spoken, strict=True):
            at, mimi, device = torch.tensor([slot], device=models.device), models.mimi, models.device
            expected = mimi.encode_step(alone.codec, at, sound(slot, frames).to(device)[None, None], 8)[0].cpu()
            # A GPU's libraries compute another size in another way: where two codes are as near, either may come out.
            assert (result(ear) == expected).float().mean() > (0.9 if device.type == "cuda" else 0.999)
            voice = mimi.decode_step(alone.codec, at, codes(slot, frames).to(device)[None])[0]
            torch.testing.assert_close(result(mouth), voice.cpu(), rtol=0, atol=1e-4)
    for slot in (0, 1, 2):
        assert same(memory(together, slot), memory(alone, slot))
    assert same(memory(together, 3), before)


def test_calls_with_other_lengths_wait_for_a_pass_of_their_own_and_none_has_more_than_eight(models: Models) -> None:
    stepper = Stepper(models, 11)
    passes = CodecPasses(stepper)
    short = passes.hear(10, sound(0, 1))
    long = [passes.hear(slot, sound(slot, 2)) for slot in range(10)]
    for parts in (*long[:2], short, *long[2:]):
        assert next(parts) is False
    done = []
    while passes.work():
        finished = {id(parts) for parts in (*long, short) if not _waits(parts)}
        done.append(len(finished))
    assert done == [8, 1, 2]


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
    passes = CodecPasses(stepper)
    gone, there = passes.hear(0, sound(0, 1)), passes.hear(1, sound(1, 1))
    assert [next(gone), next(there)] == [False, False]
    gone.close()
    assert passes.work()
    assert result(there).shape == (8, 1)
    assert int(stepper.codec.encoder_kv.offsets[0]) == 0
    assert not passes.work()


def test_what_is_done_for_nobody_beforehand_leaves_the_slots_as_they_were(models: Models) -> None:
    stepper, fresh = Stepper(models, 2), Stepper(models, 2)
    CodecPasses(stepper, padded=True).warm()
    assert all(same(memory(stepper, slot), memory(fresh, slot)) for slot in (0, 1))
