"""The codec's streams: chunked equals whole, slots keep to themselves, nothing depends on the device's data."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from model.config import mimi_full
from model.load import on_meta
from model.mimi.codec import Mimi, MimiState
from model.mimi.conv import Carry
from tests.model.mimi.tiny import (
    CONFIG,
    FRAME,
    WINDOW_FRAMES,
    random_codes,
    random_mimi,
    random_pcm,
    same_memory,
    slot_memory,
)
from tests.model.recorder import Recorder

NEAR = 1e-5
"""Sound computed in another grouping of the same frames lies this near."""


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    return random_mimi()


def ids(*slots: int) -> Tensor:
    return torch.tensor(slots)


def stream_encode(mimi: Mimi, state: MimiState, slot: int, pcm: Tensor, frames: int = 1) -> Tensor:
    """Encode `pcm [1, 1, n]` in one slot, `frames` frames a step: `[1, 8, n / 1920]`."""
    steps = pcm.split(frames * FRAME, dim=-1)  # type: ignore[no-untyped-call]
    return torch.cat([mimi.encode_step(state, ids(slot), step) for step in steps], dim=-1)


def stream_decode(mimi: Mimi, state: MimiState, slot: int, codes: Tensor, columns: int = 1) -> Tensor:
    """Decode `codes [1, K, n]` in one slot, `columns` columns a step: `[1, 1, 1920 n]`."""
    steps = codes.split(columns, dim=-1)  # type: ignore[no-untyped-call]
    return torch.cat([mimi.decode_step(state, ids(slot), step) for step in steps], dim=-1)


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0.0, atol=NEAR)


def test_codes_and_sound_vary_with_their_input(mimi: Mimi) -> None:
    """Else the other tests would show nothing."""
    codes = mimi.encode(random_pcm(1, 12 * FRAME, batch=2), n_q=32)
    assert len(set(codes.flatten().tolist())) > 50
    assert (codes[0] != codes[1]).float().mean() > 0.5
    assert (codes[:, 0, 1:] != codes[:, 0, :-1]).any()
    assert mimi.decode(random_codes(1, 4)).std() > 1000 * NEAR


@pytest.mark.parametrize("window", ["reference", "full"])
def test_a_stream_equals_the_whole_until_its_window_fills(mimi: Mimi, window: str) -> None:
    frames = WINDOW_FRAMES - 1 if window == "reference" else WINDOW_FRAMES
    pcm, codes = random_pcm(2, frames * FRAME), random_codes(2, frames)
    state = mimi.streaming(1, window)  # type: ignore[arg-type]
    assert torch.equal(stream_encode(mimi, state, 0, pcm), mimi.encode(pcm))
    near(stream_decode(mimi, state, 0, codes), mimi.decode(codes))


def test_the_full_window_equals_the_whole_for_ever(mimi: Mimi) -> None:
    frames = 5 * WINDOW_FRAMES
    pcm, codes = random_pcm(3, frames * FRAME), random_codes(3, frames)
    full = mimi.streaming(1, "full")
    assert torch.equal(stream_encode(mimi, full, 0, pcm), mimi.encode(pcm))
    near(stream_decode(mimi, full, 0, codes), mimi.decode(codes))
    reference = mimi.streaming(1)
    assert not torch.equal(stream_encode(mimi, reference, 0, pcm), mimi.encode(pcm))


@pytest.mark.parametrize("at_once", [2, 3, 7, 20])
def test_frames_at_once_equal_frames_one_by_one(mimi: Mimi, at_once: int) -> None:
    """Also past the window, which is full after the third frame."""
    pcm, codes = random_pcm(4, 20 * FRAME), random_codes(4, 20)
    single, many = mimi.streaming(1), mimi.streaming(1)
    assert torch.equal(stream_encode(mimi, single, 0, pcm), stream_encode(mimi, many, 0, pcm, at_once))
    near(stream_decode(mimi, single, 0, codes), stream_decode(mimi, many, 0, codes, at_once))
    follow = random_pcm(5, FRAME)
    assert torch.equal(mimi.encode_step(single, ids(0), follow), mimi.encode_step(many, ids(0), follow))


@pytest.mark.parametrize("at_once", [1, 3, 7, 20])
def test_what_is_only_remembered_is_followed_as_if_it_had_been_heard(mimi: Mimi, at_once: int) -> None:
    codes, follow = random_codes(12, 21), random_codes(13, 3)
    heard, remembered = mimi.streaming(2), mimi.streaming(2)
    for columns in codes.split(at_once, dim=2):  # type: ignore[no-untyped-call]
        mimi.decode_step(heard, ids(1), columns)
        mimi.remember(remembered, ids(1), columns)
    for one, other in zip(slot_memory(heard, 1), slot_memory(remembered, 1), strict=True):
        torch.testing.assert_close(one, other, rtol=NEAR, atol=10 * NEAR)
    near(mimi.decode_step(heard, ids(1), follow), mimi.decode_step(remembered, ids(1), follow))


def test_a_decoder_carries_what_its_last_positions_leave_and_no_fewer(mimi: Mimi) -> None:
    decoder, x = mimi.decoder, torch.randn(1, CONFIG.seanet.dimension, 20)
    kept = []
    for positions in (20, decoder.reach, decoder.reach - 1):
        carry = Carry(torch.zeros(1, decoder.carried))
        decoder(x[..., -positions:], carry)
        kept.append(carry.successor())
    torch.testing.assert_close(kept[0], kept[1], rtol=NEAR, atol=10 * NEAR)
    assert not torch.allclose(kept[0], kept[2], atol=1e-3)


def test_a_sound_that_ends_inside_a_frame_gives_one_more_column(mimi: Mimi) -> None:
    pcm = random_pcm(6, 2 * FRAME + 1)
    assert mimi.encode(pcm).shape == (1, 8, 3)
    assert mimi.encode(pcm[..., :FRAME]).shape == (1, 8, 1)
    assert mimi.encode(pcm[..., :1]).shape == (1, 8, 1)
    assert mimi.decode(random_codes(6, 3)).shape == (1, 1, 3 * FRAME)


def test_more_codebooks_come_from_the_same_pass_and_change_none(mimi: Mimi) -> None:
    pcm = random_pcm(7, 6 * FRAME, batch=2)
    every = mimi.encode(pcm, n_q=32)
    for n_q in (1, 2, 8, 31):
        assert torch.equal(mimi.encode(pcm, n_q=n_q), every[:, :n_q])
    slots, wide, narrow = ids(1, 0), mimi.streaming(2), mimi.streaming(2)
    stepped = mimi.encode_step(wide, slots, pcm, n_q=32)
    assert stepped.shape == (2, 32, 6)
    assert torch.equal(mimi.encode_step(narrow, slots, pcm, n_q=8), stepped[:, :8])
    assert same_memory(slot_memory(wide, 1), slot_memory(narrow, 1))


def test_a_slot_in_a_batch_of_strangers_gives_what_it_gives_alone(mimi: Mimi) -> None:
    """Strangers come and go, are reset, pause and stand elsewhere in the batch; one voice runs through."""
    frames, mine = 14, 3
    pcm, codes = random_pcm(8, frames * FRAME), random_codes(8, frames)
    alone, crowd = mimi.streaming(1), mimi.streaming(6)
    dice = random.Random(8)
    stream_encode(mimi, crowd, mine, random_pcm(80, 3 * FRAME))
    crowd.reset(ids(mine))
    for frame in range(frames):
        others = dice.sample([0, 1, 2, 4, 5], dice.randint(0, 5))
        batch = [*others, mine]
        dice.shuffle(batch)
        at = batch.index(mine)
        sounds, columns = random_pcm(100 + frame, FRAME, len(batch)), random_codes(100 + frame, 1, len(batch))
        sounds[at], columns[at] = pcm[0, :, frame * FRAME : (frame + 1) * FRAME], codes[0, :, frame : frame + 1]
        heard = mimi.encode_step(crowd, ids(*batch), sounds)[at]
        said = mimi.decode_step(crowd, ids(*batch), columns)[at]
        assert torch.equal(heard, mimi.encode_step(alone, ids(0), sounds[at : at + 1])[0])
        near(said, mimi.decode_step(alone, ids(0), columns[at : at + 1])[0])
        if others and dice.random() < 0.5:
            crowd.reset(ids(others[0]))


def test_a_slot_that_sits_out_is_untouched(mimi: Mimi) -> None:
    state = mimi.streaming(4)
    everyone = ids(0, 1, 2, 3)
    mimi.encode_step(state, everyone, random_pcm(9, 5 * FRAME, 4))
    mimi.decode_step(state, everyone, random_codes(9, 5, 4))
    before = slot_memory(state, 2)
    for step in range(3):
        mimi.encode_step(state, ids(3, 0), random_pcm(step, FRAME, 2))
        mimi.decode_step(state, ids(1, 3), random_codes(step, 1, 2))
    state.reset(ids(0, 3))
    assert same_memory(slot_memory(state, 2), before)
    assert not same_memory(slot_memory(state, 1), before)


def test_each_side_of_a_slot_keeps_its_own_time(mimi: Mimi) -> None:
    state = mimi.streaming(1)
    mimi.encode_step(state, ids(0), random_pcm(10, 2 * FRAME))
    assert state.decoder_kv.offsets.tolist() == [0]
    mimi.decode_step(state, ids(0), random_codes(10, 1))
    assert (state.encoder_kv.offsets.tolist(), state.decoder_kv.offsets.tolist()) == ([4], [2])


def test_a_reset_slot_is_a_fresh_one(mimi: Mimi) -> None:
    used, fresh = mimi.streaming(2), mimi.streaming(2)
    mimi.encode_step(used, ids(1), random_pcm(11, 9 * FRAME))
    mimi.decode_step(used, ids(1), random_codes(11, 9))
    used.reset(ids(1))
    assert same_memory(slot_memory(used, 1), slot_memory(fresh, 1))
    pcm, codes = random_pcm(12, FRAME), random_codes(12, 1)
    assert torch.equal(mimi.encode_step(used, ids(1), pcm), mimi.encode_step(fresh, ids(1), pcm))
    assert torch.equal(mimi.decode_step(used, ids(1), codes), mimi.decode_step(fresh, ids(1), codes))


def test_a_reset_wipes_what_is_no_number(mimi: Mimi) -> None:
    """A frame of NaN must not haunt the slot's next call."""
    state = mimi.streaming(1)
    mimi.encode_step(state, ids(0), torch.full((1, 1, FRAME), float("nan")))
    state.reset(ids(0))
    pcm = random_pcm(13, 6 * FRAME)
    assert torch.equal(stream_encode(mimi, state, 0, pcm), stream_encode(mimi, mimi.streaming(1), 0, pcm))


def test_markers_that_are_no_codes_do_no_harm(mimi: Mimi) -> None:
    """Before the first real frame the language model's rows hold start ids and -1."""
    bins = mimi.config.quantizer.bins
    state = mimi.streaming(1)
    for marker in (-2, -1, bins, bins + 1):
        assert mimi.decode_step(state, ids(0), torch.full((1, 8, 1), marker)).isfinite().all()


def test_a_full_size_step_reads_no_data() -> None:
    """On the meta device there is nothing to read: what runs there never waits for a device, so graphs can hold it."""
    mimi = on_meta(lambda: Mimi(mimi_full()))
    state = mimi.streaming(64)
    slots = torch.empty(48, dtype=torch.long, device="meta")
    codes = mimi.encode_step(state, slots, torch.empty(48, 1, FRAME, device="meta"), n_q=32)
    assert (codes.shape, codes.dtype) == ((48, 32, 1), torch.int64)
    pcm = mimi.decode_step(state, slots, codes[:, :8])
    assert (pcm.shape, pcm.dtype) == ((48, 1, FRAME), torch.float32)
    state.reset(slots)


@pytest.mark.parametrize(
    ("pcm", "slots", "said"),
    [
        (torch.zeros(1, 1, FRAME + 1), ids(0), "a multiple of 1920"),
        (torch.zeros(1, 1, 0), ids(0), "a multiple of 1920"),
        (torch.zeros(1, 2, FRAME), ids(0), "a multiple of 1920"),
        (torch.zeros(1, FRAME), ids(0), "a multiple of 1920"),
        (torch.zeros(1, 1, FRAME, dtype=torch.int16), ids(0), "float32"),
        (torch.zeros(2, 1, FRAME), ids(0), r"slot ids are int64 \[2\]"),
        (torch.zeros(1, 1, FRAME), torch.tensor([0.0]), "slot ids are int64"),
    ],
)
def test_sound_of_a_wrong_kind_is_refused(mimi: Mimi, pcm: Tensor, slots: Tensor, said: str) -> None:
    state = mimi.streaming(1)
    before = slot_memory(state, 0)
    with pytest.raises(ValueError, match=said):
        mimi.encode_step(state, slots, pcm)
    assert same_memory(slot_memory(state, 0), before)


def test_a_step_is_the_same_operations_whatever_the_data(mimi: Mimi) -> None:
    """So that it can be captured as a CUDA graph: fixed shapes, nothing read back."""
    state, recorded = mimi.streaming(3), []
    for time, slots in enumerate((ids(0, 1), ids(1, 0), ids(2, 0))):
        pcm, codes = random_pcm(time, FRAME, batch=2), random_codes(time, 1, batch=2)
        with Recorder() as recorder:
            mimi.encode_step(state, slots, pcm)
            mimi.decode_step(state, slots, codes)
        recorded.append(recorder)
    assert recorded[0].operations == recorded[1].operations == recorded[2].operations
    assert recorded[0].waits() == []


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 2, FRAME), (FRAME,)])
def test_whole_sound_of_a_wrong_shape_is_refused(mimi: Mimi, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"not \[batch, 1, samples\]"):
        mimi.encode(torch.zeros(shape))


def test_codes_of_a_wrong_kind_are_refused(mimi: Mimi) -> None:
    state = mimi.streaming(1)
    for codes in (torch.zeros(1, 8), torch.zeros(1, 8, 1), torch.zeros(1, 8, 0, dtype=torch.long)):
        with pytest.raises(ValueError, match="codes are integers"):
            mimi.decode(codes)
        with pytest.raises(ValueError, match="codes are integers"):
            mimi.decode_step(state, ids(0), codes)
    with pytest.raises(ValueError, match="1 to 32"):
        mimi.decode(torch.zeros(1, 33, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="1 to 32"):
        mimi.encode(torch.zeros(1, 1, FRAME), n_q=0)
