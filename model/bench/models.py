"""What the engine is measured with: random weights of a size, and windows as full as after minutes of talk.

Owns sizes, and how windows are filled. Random numbers cost what real ones do: no time here depends on the data, but
for a hair that of the attention on tensor cores, which scales its sums anew when a peak rises. They say nothing about
quality.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from model.config import (
    DepformerConfig,
    LMConfig,
    MimiConfig,
    QuantizerConfig,
    SeanetConfig,
    TransformerConfig,
    mimi_full,
    personaplex_7b,
)
from model.conversation import Models
from model.engine import Stepper
from model.fp8 import E4M3
from model.lm import LM
from model.load import on_meta
from model.mimi.codec import Mimi
from model.tokenizer import Tokenizer
from model.wire import Sampling

Size = Literal["full", "tiny"]
_FINITE = 0xFE
"""An e4m3 byte without its last bit is a number, of either sign and up to 448."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The networks' sizes, and the type they compute in."""

    lm: LMConfig
    mimi: MimiConfig
    dtype: torch.dtype


def sizes_of(size: Size) -> Sizes:
    """`full` is the published PersonaPlex, `tiny` the same structure in a thousandth of it, for a CPU."""
    if size == "full":
        return Sizes(personaplex_7b(), mimi_full(), torch.bfloat16)
    lm = LMConfig(
        transformer=TransformerConfig(dim=64, heads=4, layers=2, context=96, hidden=96),
        depformer=DepformerConfig(dim=32, heads=2, layers=2, hidden=48, steps=16),
        text_card=200,
        card=2048,
        delays=(0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2),
    )
    codec = TransformerConfig(
        dim=32, heads=2, layers=2, context=16, hidden=64, norm="layer", mlp="gelu", layer_scale=True, step=2
    )
    mimi = MimiConfig(
        seanet=SeanetConfig(dimension=32, filters=4, ratios=(8, 6, 5, 4)),
        transformer=codec,
        quantizer=QuantizerConfig(dimension=8, codebooks=8, bins=2048, input_dimension=32),
    )
    return Sizes(lm, mimi, torch.float32)


class RandomVocabulary(Tokenizer):
    """Ids without words: enough for what a step asks of a tokenizer."""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % self.size for letter in text]

    def piece(self, token: int) -> str:
        return ""

    def word_starts(self) -> list[bool]:
        return [token % 3 == 0 for token in range(self.size)]


def random_models(sizes: Sizes, device: torch.device) -> Models:
    """Networks with random weights, made where they are used."""
    lm = on_meta(lambda: LM(sizes.lm)).to(sizes.dtype).to_empty(device=device)
    mimi = on_meta(lambda: Mimi(sizes.mimi, decoder_tf32=sizes.dtype == torch.bfloat16)).to_empty(device=device)
    for module in (lm, mimi):
        randomise(module)
        module.eval().requires_grad_(False)
    return Models(lm, mimi, RandomVocabulary(sizes.lm.text_card))


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    for name, tensor in module.state_dict(keep_vars=True).items():
        last = name.rpartition(".")[2]
        if last in ("cluster_usage", "_initialized", "alpha") or (tensor.ndim == 1 and last == "weight"):
            tensor.fill_(1.0)
        elif last == "scale":
            tensor.fill_(0.01)
        elif tensor.ndim == 1:
            tensor.zero_()
        else:
            tensor.normal_(std=tensor[0].numel() ** -0.5)


@torch.no_grad()
def stand(stepper: Stepper, slots: int, frames: int) -> None:
    """Let the first `slots` stand after `frames` frames of talk, with the published settings of chance.

    Each in the LM slot of its own number, wherever calls before have left theirs.
    """
    for slot in range(stepper.slots):
        if stepper.lm_slot[slot] != slot:
            stepper.point(slot, slot)
    spares = len(stepper.spare_lm_slots)
    stepper.spare_lm_slots[:] = range(stepper.slots, stepper.slots + spares)
    fill_windows(stepper, slots, frames)
    cache = stepper.state.cache
    cache.offset[:slots] = _fronts(slots, frames, stepper.device)
    cache.tokens.random_(0, min(stepper.models.config.card, stepper.models.config.text_card))
    cache.provided.zero_()
    for slot in range(slots):
        stepper.set_slot(slot, Sampling(seed=slot), 1)


@torch.no_grad()
def fill_windows(stepper: Stepper, slots: int, frames: int) -> None:
    """Let the first `slots` see so much behind them, and nothing else be changed.

    Of random numbers, not of what a wiped memory holds: by zeros a device is kept busy at less power.
    """
    kv, codec = stepper.state.kv, stepper.codec
    rows = stepper.lm_slot[:slots]
    for first, end in [(0, slots), *((row, row + 1) for row in rows if row >= slots)]:
        fill_rings(tuple(ring[:, first:end] for ring in kv.rings()))
    kv.offsets[torch.tensor(rows, device=stepper.device)] = _fronts(slots, frames, stepper.device)
    for side in (codec.encoder_kv, codec.decoder_kv):
        fill_rings(tuple(ring[:, :slots] for ring in side.rings()))
        side.offsets[:slots] = 2 * frames


def _fronts(slots: int, frames: int, device: torch.device) -> Tensor:
    """Slots differ by a few frames, so that their rings begin in different places."""
    return frames + torch.arange(slots, device=device) % 7


def fill_rings(rings: tuple[Tensor, ...]) -> None:
    """Random numbers of either sign into the rings of all layers; scales, which come after keys and values, get a
    likely one."""
    for ring in rings:
        for layer in ring:
            if layer.dtype == E4M3:
                layer.view(torch.uint8).random_(0, 256).bitwise_and_(_FINITE)
            elif layer.ndim == rings[0].ndim - 1:
                layer.normal_()
            else:
                layer.fill_(0.01)
