"""One position of each slot through the main transformer's layers, in few launches: eight a layer on a GPU, five for
one slot alone.

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


FEW = 1
"""Slots at most for which a layer's products are those of `model.kernels.few_rows`. On an H200 one's step took 5.9 ms
where it had taken 6.8, but two's 8.3 in place of 7.4."""


def step(
    layers: Iterable[nn.Module], x: Tensor, rotary: Rotary, attention: StepAttention
) -> tuple[Tensor, Tensor | None]:
    """`x [B, D]`, one position of each slot, to the same and what is still to be added to it, with no norm at the end.

    For layers with RMS norms and a gated MLP.
    """
    if ops.fused(x) and x.shape[0] <= FEW:
        return _step_of_one(layers, x, rotary, attention), None
    branch: Tensor | None = None
    for index, module in enumerate(layers):
        layer = cast("TransformerLayer", module)
        first, second = layer.gains
        x, normed = ops.add_norm(x, branch, first)
        seen = attention.attend(index, layer.self_attn.project(normed), rotary)
        x, normed = ops.add_norm(x, layer.self_attn.out_proj(seen.flatten(1)), second)
        branch = layer.gating.linear_out(ops.silu_gate(layer.gating.linear_in(normed)))
    return x, branch


def _step_of_one(layers: Iterable[nn.Module], x: Tensor, rotary: Rotary, attention: StepAttention) -> Tensor:
    """The same in one launch for each product, with what lies before it and after it."""
    from model.kernels import few_rows

    for index, module in enumerate(layers):
        layer = cast("TransformerLayer", module)
        first, second = layer.gains
        mixing, mlp = layer.self_attn, layer.gating
        joined = few_rows.project_normed(x, first, _weight(mixing.in_proj or mixing.in_proj_weight), ops.RMS_EPS)
        seen = attention.attend(index, mixing.parted(joined), rotary)
        x = few_rows.add_projected(seen.flatten(1), _weight(mixing.out_proj), x)
        inner = few_rows.project_gated(x, second, _weight(mlp.linear_in), ops.RMS_EPS)
        x = few_rows.add_projected(inner, _weight(mlp.linear_out), x)
    return x


def _weight(holder: nn.Module | Tensor) -> tuple[Tensor, Tensor | None]:
    """Of a linear layer, whole or in FP8, with the scales of the latter."""
    if isinstance(holder, Tensor):
        return holder.detach(), None
    return cast(Tensor, holder.weight).detach(), cast("Tensor | None", getattr(holder, "scale", None))
