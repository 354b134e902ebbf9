"""How a token is chosen: greedily, or by chance with a temperature among the k likeliest.

Owns each slot's settings and the noise. Knows no rows' meaning beyond 0 being text. b is the slots of a step, S all
slots, V the vocabulary of a row.

Chance is a race: each candidate's probability is divided by an exponential variable of its own, and the largest
quotient wins, which draws from the distribution without summing it up. The variables are a function of (seed,
frame, row, id) and nothing else. No generator has a state: a step can be captured as a CUDA graph, and a slot
draws the same whatever else is in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import ops
from model.lm import Chance
from model.wire import Sampling

_ROWS = 32
"""More than a frame has."""
_GOLDEN = -0x61C8864680B583EB
_MIX_1 = -0x40A7B892E31B1A47
_MIX_2 = -0x6B2FB644ECCEEE15
"""SplitMix64's constants (Steele, Lea and Flood 2014), as signed integers."""
_BITS = 23
"""Of a variable: with half a unit added, such a number is exact in float32 and neither 0 nor 1."""


class SlotSampling:
    """A Sampler whose settings are tensors `[S]` on the device, so that they may change between steps."""

    def __init__(self, slots: int, device: torch.device | str = "cpu") -> None:
        self.temperature = torch.zeros(slots, device=device)
        self.text_temperature = torch.zeros(slots, device=device)
        self.top_k = torch.ones(slots, dtype=torch.long, device=device)
        self.text_top_k = torch.ones(slots, dtype=torch.long, device=device)
        self.seed = torch.zeros(slots, dtype=torch.long, device=device)

    def set(self, slot: int, sampling: Sampling) -> None:
        """Give one slot its settings. Raises ValueError where they draw from nothing."""
        if sampling.top_k < 1 or sampling.text_top_k < 1:
            raise ValueError("top-k keeps at least 1 token")
        if sampling.temperature < 0 or sampling.text_temperature < 0:
            raise ValueError("a temperature is 0 (greedy) or more")
        self.temperature[slot].fill_(sampling.temperature)
        self.text_temperature[slot].fill_(sampling.text_temperature)
        self.top_k[slot].fill_(sampling.top_k)
        self.text_top_k[slot].fill_(sampling.text_top_k)
        self.seed[slot].fill_(sampling.seed)

    def chance(self, frame: Tensor, slots: Tensor) -> Chance:
        """What audio tokens are drawn by."""
        return Chance(self.temperature, self.top_k, self.seed, frame, slots)

    def __call__(self, logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        """`logits [b, V]` of `row` in each slot's `frame [b]` to ids `[b]`, with the settings of `slots [b]`."""
        heat, limit = (self.temperature, self.top_k) if row else (self.text_temperature, self.text_top_k)
        if ops.fused(logits):
            from model.kernels.sampling import draw

            return draw(logits, row, frame, slots, heat, limit, self.seed)
        noise = exponential(self.seed[slots], frame, row, logits.shape[1])
        return choose(logits, heat[slots], limit[slots], noise)


def choose(logits: Tensor, temperature: Tensor, top_k: Tensor, noise: Tensor) -> Tensor:
    """`logits [b, V]`, `temperature [b]` (0: greedy), `top_k [b]` and exponential `noise [b, V]` to ids `[b]`.

    Among equal logits at the edge of the k likeliest, those of lower id are kept. The race runs on logarithms.
    """
    logits = logits.float()
    ordered, ids = logits.sort(dim=1, descending=True, stable=True)
    heat = torch.where(temperature > 0, temperature, 1.0)[:, None]
    score = ordered / heat - noise.gather(1, ids).log()
    rank = torch.arange(logits.shape[1], device=logits.device)
    score = score.masked_fill(rank >= top_k[:, None], float("-inf"))
    drawn = ids.gather(1, score.argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(temperature > 0, drawn, logits.argmax(dim=1))


def exponential(seed: Tensor, frame: Tensor, row: int, size: int) -> Tensor:
    """Unit exponential variables `[b, size]`, float32, for `seed [b]` and `frame [b]`: a function of its arguments."""
    stream = _mix(_mix(seed) + frame * _ROWS + row)
    index = torch.arange(1, size + 1, device=seed.device)
    bits = _shift(_mix(stream[:, None] + index * _GOLDEN), 64 - _BITS)
    return -torch.log((bits.float() + 0.5) * 2.0**-_BITS)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: 64 bits to 64 bits, one to one. Products wrap around."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros coming in: the shift of signed integers would copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
