"""The depth transformer: after each frame it walks through that frame's codebooks, one step for each.

Owns the layers, whose norms all steps share while projections and MLPs belong to one step each. Knows no tokens:
the language model embeds what a step is told and reads what it answers. N is the batch, D the width, H the heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import DepformerConfig
from model.ops import add_norm, silu_gate
from model.streaming import Window, WindowKind
from model.transformer import GatedMLP, RMSNorm


class StepAttention(nn.Module):
    """Attention weights of all steps, stacked along the rows: step s owns the s-th part of each matrix."""

    def __init__(self, config: DepformerConfig) -> None:
        super().__init__()
        self._heads = config.heads
        self._dim, self._steps = config.dim, config.steps
        self.in_proj_weight = nn.Parameter(torch.empty(config.steps * 3 * config.dim, config.dim))
        self.out_proj = nn.Linear(config.dim, config.steps * config.dim, bias=False)
        self.parts: tuple[nn.ModuleList, nn.ModuleList] | None = None
        """In place of the weights above, where they are kept in another form: of each step."""
        nn.init.normal_(self.in_proj_weight, std=config.dim**-0.5)

    @torch.no_grad()
    def keep_steps(self, count: int) -> None:
        """Let go of the weights of all steps but the first `count`, before any are split."""
        # Copies: a part would hold the memory of the whole.
        kept = self.in_proj_weight[: 3 * count * self._dim], self.out_proj.weight[: count * self._dim]
        into, out = (part.clone() for part in kept)
        self.in_proj_weight = nn.Parameter(into, requires_grad=self.in_proj_weight.requires_grad)
        self.out_proj.weight = nn.Parameter(out, requires_grad=self.out_proj.weight.requires_grad)
        self._steps = min(self._steps, count)

    def split(self, make: Callable[[Tensor], nn.Module]) -> None:
        """Let `make` turn each step's part of the weights into a module that takes its place."""
        width = self.in_proj_weight.shape[-1]
        into, out = self.in_proj_weight.view(self._steps, -1, width), self.out_proj.weight.view(self._steps, -1, width)
        self.in_parts = nn.ModuleList(make(part) for part in into)
        self.out_parts = nn.ModuleList(make(part) for part in out)
        self.parts = (self.in_parts, self.out_parts)
        del self.in_proj_weight, self.out_proj

    def whole(self, step: int) -> tuple[Tensor, Tensor]:
        """One step's part of each weight, `[3 D, D]` and `[D, D]`, where they have not been split."""
        width = self.in_proj_weight.shape[-1]
        into, out = self.in_proj_weight.view(self._steps, -1, width), self.out_proj.weight.view(self._steps, -1, width)
        return into[step], out[step]

    def project(self, step: int, x: Tensor) -> Tensor:
        """`[N, D]` to query, key and value, `[N, 3, H, 1, D / H]`."""
        joined = functional.linear(x, self.whole(step)[0]) if self.parts is None else self.parts[0][step](x)
        return joined.view(x.shape[0], 3, self._heads, 1, -1)

    def combine(self, step: int, seen: Tensor) -> Tensor:
        """What the heads saw, `[N, H, 1, D / H]`, to `[N, D]`."""
        if self.parts is not None:
            combined: Tensor = self.parts[1][step](seen.flatten(1))
            return combined
        return functional.linear(seen.flatten(1), self.whole(step)[1])


class DepformerLayer(nn.Module):
    """Pre-norm residual layer with weights for each step."""

    def __init__(self, config: DepformerConfig) -> None:
        super().__init__()
        self.self_attn = StepAttention(config)
        self.norm1, self.norm2 = RMSNorm(config.dim), RMSNorm(config.dim)
        self.gating = nn.ModuleList(GatedMLP(config.dim, config.hidden) for _ in range(config.steps))

    def forward(
        self, step: int, x: Tensor, branch: Tensor | None, memory: list[Tensor], first: int
    ) -> tuple[Tensor, Tensor]:
        """`x [N, D]`, and what is still to be added to it, to the same of the next layer.

        This step's key and value join `memory`, `[N, 2, H, 1, D / H]` for each step; those before `first` are out of
        sight.
        """
        x, normed = add_norm(x, branch, self.norm1.alpha)
        joined = self.self_attn.project(step, normed)
        memory.append(joined[:, 1:])
        keys, values = torch.cat(memory[first:], dim=3).unbind(1)
        seen = functional.scaled_dot_product_attention(joined[:, 0], keys, values)
        x, normed = add_norm(x, self.self_attn.combine(step, seen), self.norm2.alpha)
        mlp = cast(GatedMLP, self.gating[step])
        return x, mlp.linear_out(silu_gate(mlp.linear_in(normed)))


class Depformer(nn.Module):
    """The stack of layers, without positions and without a norm at its end."""

    def __init__(self, config: DepformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DepformerLayer(config) for _ in range(config.layers))

    def frame(self, window: WindowKind = "full") -> FrameSteps:
        """The steps of one frame, for any batch. Streaming in the `reference` window, the last step misses step 0."""
        return FrameSteps(self, Window(self.config.steps, window))


class FrameSteps:
    """One frame under way: call it with step 0, 1, ... in order. Its memory ends with the frame."""

    def __init__(self, depformer: Depformer, window: Window) -> None:
        self._layers = depformer.layers
        self._memory: list[list[Tensor]] = [[] for _ in self._layers]
        self._first = [max(0, window.first(step)) for step in range(window.context)]

    def __call__(self, step: int, x: Tensor) -> Tensor:
        """`[N, D]` to the same."""
        branch: Tensor | None = None
        for layer, memory in zip(self._layers, self._memory, strict=True):
            x, branch = layer(step, x, branch, memory, self._first[step])
        return x if branch is None else x + branch
