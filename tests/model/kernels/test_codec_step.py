"""Frames through the codec's kernels, one or several at once, against its plain pass over the same memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import MimiConfig, QuantizerConfig, SeanetConfig, TransformerConfig, mimi_full
from model.kernels import codec_tiles
from model.load import on_meta
from model.mimi.codec import Mimi, MimiState
from model.streaming import WindowKind
from tests.model.kernels.launches import counting
from tests.model.mimi.tiny import random_weights

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEAR = 2e-5
CONFIG = MimiConfig(
    seanet=SeanetConfig(dimension=12, filters=3, ratios=(3, 2)),
    transformer=TransformerConfig(
        dim=12, heads=2, layers=2, context=5, hidden=20, norm="layer", mlp="gelu", layer_scale=True, step=2
    ),
    quantizer=QuantizerConfig(dimension=6, codebooks=9, bins=70, input_dimension=12),
    active=4,
)
"""No width is a power of two, and the smallest frame that has every layer: 12 samples."""
WIDE = replace(CONFIG, transformer=replace(CONFIG.transformer, context=13))
"""Six frames fit into its window."""
LARGE = ((20, 1, False), (128, 1, False), (128, 1, True), (16, 25, False), (16, 25, True))
"""Batches, frames of each and TF32: what takes the published codec's larger tiles, each compiled for some seconds."""
BATCHES = ([4], [1, 4, 0], [5, 0, 2, 4, 1], [4, 1], [4])


def pair(config: MimiConfig = CONFIG) -> tuple[Mimi, Mimi]:
    """The same codec by the kernels and by the plain pass."""
    mine, theirs = random_weights(config), random_weights(config)
    mine.fused, theirs.fused = True, False
    return mine.to(DEVICE), theirs


def frame(mimi: Mimi, seed: int, count: int, frames: int = 1) -> tuple[Tensor, Tensor]:
    """Sound `[count, 1, samples]`, and codes `[count, active, frames]`, markers among them."""
    draw, config = torch.Generator().manual_seed(seed), mimi.config
    codes = torch.randint(-2, config.quantizer.bins + 2, (count, config.active, frames), generator=draw)
    return 0.3 * torch.randn(count, 1, frames * mimi.frame_size, generator=draw), codes


def step(mimi: Mimi, state: MimiState, batch: list[int], pcm: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """What is heard and said, on the CPU."""
    device = state.encoder_rows.device
    slots = torch.tensor(batch, device=device)
    heard = mimi.encode_step(state, slots, pcm.to(device))
    return heard.cpu(), mimi.decode_step(state, slots, codes.to(device)).cpu()


def close(one: MimiState, other: MimiState) -> None:
    """All that is kept, of every slot."""
    torch.testing.assert_close(one.encoder_rows.cpu(), other.encoder_rows, rtol=0, atol=NEAR)
    torch.testing.assert_close(one.decoder_rows.cpu(), other.decoder_rows, rtol=0, atol=NEAR)
    for mine, theirs in ((one.encoder_kv, other.encoder_kv), (one.decoder_kv, other.decoder_kv)):
        assert torch.equal(mine.offsets.cpu(), theirs.offsets)
        torch.testing.assert_close(mine.keys.cpu(), theirs.keys, rtol=0, atol=NEAR)
        torch.testing.assert_close(mine.values.cpu(), theirs.values, rtol=0, atol=NEAR)


def test_frames_by_the_kernels_are_those_of_the_plain_pass() -> None:
    """Batches of any slots in any order, each slot at a time of its own, past the fill of the window."""
    mine, theirs = pair()
    one, other = mine.streaming(6), theirs.streaming(6)
    for time, batch in enumerate(BATCHES):
        pcm, codes = frame(theirs, time, len(batch))
        heard, said = step(mine, one, batch, pcm, codes)
        codes_there, sound_there = step(theirs, other, batch, pcm, codes)
        assert torch.equal(heard, codes_there), time
        torch.testing.assert_close(said, sound_there, rtol=0, atol=NEAR)
        close(one, other)


@pytest.mark.parametrize("window", ["reference", pytest.param("full", marks=pytest.mark.long)])
def test_frames_at_once_come_between_single_frames(window: WindowKind) -> None:
    """As when calls are resumed: fresh streams, begun ones, some whose window is full; seven frames are too many."""
    mine, theirs = pair(WIDE)
    one, other = mine.streaming(3, window), theirs.streaming(3, window)
    for time, (batch, frames) in enumerate([([2, 0], 3), ([0], 1), ([1, 0], 6), ([0], 7), ([0], 2)]):
        pcm, codes = frame(theirs, time, len(batch), frames)
        heard, said = step(mine, one, batch, pcm, codes)
        codes_there, sound_there = step(theirs, other, batch, pcm, codes)
        assert torch.equal(heard, codes_there), time
        torch.testing.assert_close(said, sound_there, rtol=0, atol=NEAR)
        close(one, other)


def test_what_is_remembered_by_the_kernels_was_decoded_by_the_plain_pass() -> None:
    """More frames than the convolutions reach back, as many, and fewer."""
    mine, theirs = pair(WIDE)
    one, other = mine.streaming(2), theirs.streaming(2)
    slots = torch.tensor([1])
    for frames in (6, 5, 1):
        _, codes = frame(theirs, frames, 1, frames)
        mine.remember(one, slots.to(DEVICE), codes.to(DEVICE))
        theirs.decode_step(other, slots, codes)
    close(one, other)


@pytest.mark.parametrize("frames", [1, 2])
def test_rows_that_fill_up_a_batch_leave_the_others_alone(frames: int) -> None:
    """They name nobody's slot more than once."""
    mine, theirs = pair()
    one, other = mine.streaming(3), theirs.streaming(3)
    pcm, codes = frame(theirs, 0, 3, frames)
    heard, said = step(mine, one, [1, 2, 2], pcm, codes)
    codes_there, sound_there = step(theirs, other, [1], pcm[:1], codes[:1])
    assert torch.equal(heard[:1], codes_there)
    torch.testing.assert_close(said[:1], sound_there, rtol=0, atol=NEAR)
    one.reset(torch.tensor([2], device=DEVICE))
    close(one, other)


def test_fewer_codebooks_are_the_first_ones() -> None:
    mine, theirs = pair()
    pcm, codes = frame(theirs, 0, 2, frames=2)
    slots = torch.tensor([1, 0])
    for count in (1, CONFIG.active + 1):
        one, other = mine.streaming(2), theirs.streaming(2)
        heard = mine.encode_step(one, slots.to(DEVICE), pcm.to(DEVICE), count)
        assert torch.equal(heard.cpu(), theirs.encode_step(other, slots, pcm, count)), count
    said = mine.decode_step(one, slots.to(DEVICE), codes[:, :1].to(DEVICE)).cpu()
    torch.testing.assert_close(said, theirs.decode_step(other, slots, codes[:, :1]), rtol=0, atol=NEAR)


def test_weights_that_changed_are_seen_by_the_next_streams() -> None:
    mine, theirs = pair()
    mine.streaming(1)
    for mimi in (mine, theirs):
        for parameter in mimi.parameters():
            parameter.mul_(1.1)
    pcm, codes = frame(theirs, 0, 1)
    heard, said = step(mine, mine.streaming(1), [0], pcm, codes)
    codes_there, sound_there = step(theirs, theirs.streaming(1), [0], pcm, codes)
    assert torch.equal(heard, codes_there)
    torch.testing.assert_close(said, sound_there, rtol=0, atol=NEAR)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: which one it is")
def test_tiles_are_cut_for_the_card_that_the_codec_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_tiles, "_room", [0])
    pair()[0].streaming(1)
    unasked = torch.cuda.get_device_properties(DEVICE).shared_memory_per_block
    assert unasked < codec_tiles._room[0] < 5 * unasked


@pytest.mark.parametrize(("frames", "launches"), [(1, (66, 59, 59)), (25, (68, 62, 63))])
def test_the_published_codec_takes_few_launches(
    monkeypatch: pytest.MonkeyPatch, frames: int, launches: tuple[int, int, int]
) -> None:
    """A frame 125, two seconds 130, on the meta device, where nothing is computed; the layers take 869."""
    mimi = on_meta(lambda: Mimi(mimi_full()))
    mimi.fused = True
    state, slots = mimi.streaming(4), torch.empty(3, dtype=torch.long, device="meta")
    pcm = torch.empty(3, 1, frames * mimi.frame_size, device="meta")
    given = torch.empty(3, 8, frames, dtype=torch.long, device="meta")
    for _ in range(2):  # the first time for the tables that a size needs
        with counting(monkeypatch) as encode:
            codes = mimi.encode_step(state, slots, pcm)
        with counting(monkeypatch) as decode:
            sound = mimi.decode_step(state, slots, given)
        with counting(monkeypatch) as remember:
            mimi.remember(state, slots, given)
    assert (codes.shape, codes.dtype, sound.shape) == ((3, 8, frames), torch.int64, pcm.shape)
    found = (encode, decode, remember)
    assert tuple(one.count for one in found) == launches, [one.by_name for one in found]


@pytest.mark.parametrize("frames", [1, 25])
def test_whether_launches_are_chained_is_a_matter_of_slots_not_of_rows(
    monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    """Of every launch that may be: a single one that is not would wait for the one before to end."""
    asked: list[int] = []

    def watched(slots: int) -> bool:
        asked.append(slots)
        return False

    monkeypatch.setattr(codec_tiles, "chains", watched)
    mimi = on_meta(lambda: Mimi(mimi_full()))
    mimi.fused = True
    state, slots = mimi.streaming(2), torch.empty(1, dtype=torch.long, device="meta")
    with counting(monkeypatch):
        mimi.encode_step(state, slots, torch.empty(1, 1, frames * mimi.frame_size, device="meta"))
        mimi.decode_step(state, slots, torch.empty(1, 8, frames, dtype=torch.long, device="meta"))
    assert set(asked) == {1}


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: the interpreter would take minutes")
@pytest.mark.parametrize(
    ("batch", "frames", "tf32"),
    [(1, 1, False), (1, 1, True), (1, 25, True), *(pytest.param(*case, marks=pytest.mark.long) for case in LARGE)],
)
@torch.no_grad()
def test_the_published_sizes(batch: int, frames: int, tf32: bool) -> None:
    """Every tile that the published layers take; each code once more, but where two entries are as near."""
    mimi = on_meta(lambda: Mimi(mimi_full())).to_empty(device=DEVICE).eval().requires_grad_(False)
    for name, tensor in mimi.state_dict(keep_vars=True).items():
        last = name.rpartition(".")[2]
        if last in ("cluster_usage", "_initialized") or (tensor.ndim == 1 and last == "weight"):
            tensor.fill_(1.0)
        elif tensor.ndim == 1:
            tensor.fill_(0.1)
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)
    results = []
    for mimi.fused in (True, False):
        mimi.decoder_tf32 = tf32 and mimi.fused
        state, slots = mimi.streaming(batch + 1), torch.arange(batch, 0, -1, device=DEVICE)
        for time in range(3 if frames == 1 else 6):  # 300 positions fill the window
            pcm, codes = (part.to(DEVICE) for part in frame(mimi, time, batch, frames))
            heard, said = mimi.encode_step(state, slots, pcm), mimi.decode_step(state, slots, codes)
        results.append((heard, said, state))
    (heard, said, one), (codes_there, sound_there, other) = results
    assert (heard == codes_there).float().mean() > 0.98
    assert (said - sound_there).abs().max() < (3e-2 if tf32 else 1e-3) * sound_there.abs().max()
    difference = (one.encoder_kv.keys - other.encoder_kv.keys).abs().max()
    assert difference < 1e-3 * other.encoder_kv.keys.abs().max()
