"""One position of each slot through the main transformer's layers, in few launches: eight a layer on a GPU.

Owns the order of one step's operations over `SlotKV`. The layers and their weights are those of `model.transformer`,
whose own pass does the same for any number of positions; the two agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from model import ops
from model.kv_cache import StepAttention
from model.rotary import Rotary

if TYPE_CHECKING:
    from model.transformer import TransformerLayer


def step(
    layers: Iterable[nn.Module], x: Tensor, rotary: Rotary, attention: StepAttention
) -> tuple[Tensor, Tensor | None]:
    """`x [B, D]`, one position of each slot, to the same and what is still to be added to it, with no norm at the end.

    For layers with RMS norms and a gated MLP.
    """
    branch: Tensor | None = None
    for index, module in enumerate(layers):
        layer = cast("TransformerLayer", module)
        first, second = layer.gains
        x, normed = ops.add_norm(x, branch, first)
        seen = attention.attend(index, layer.self_attn.project(normed), rotary)
        x, normed = ops.add_norm(x, layer.self_attn.out_proj(seen.flatten(1)), second)
        branch = layer.gating.linear_out(ops.silu_gate(layer.gating.linear_in(normed)))
    return x, branch
