"""The language model's matrices in FP8, so that a small card holds a call: 8.2 GB in place of 15.4.

Owns which matrices are kept so and how they multiply: weights alone are rounded, with a scale for each output channel;
activations, norms, embeddings and the heads that make logits stay as they are. What it costs in quality is not known
before it is compared on the published weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model import fp8, ops
from model.depformer import StepAttention
from model.lm import LM
from model.transformer import Attention


class Fp8Linear(nn.Module):
    """A linear layer without bias. weight: `[outputs, inputs]` in e4m3; scale: `[outputs]` in float32."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        small, scale = fp8.quantise(weight)
        self.register_buffer("weight", small)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`, summed in float32, in the type of `x`."""
        if ops.fused(x):
            from model.kernels import matmul

            flat = matmul.linear(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
            return flat.view(*x.shape[:-1], -1)
        product = nn.functional.linear(x.float(), self.weight.float()) * self.scale
        return product.to(x.dtype)


@torch.no_grad()
def shrink(lm: LM, device: torch.device | str) -> LM:
    """Put `lm` on `device`, matrix by matrix in FP8: no more memory is needed there than it takes in the end."""
    for layer in lm.transformer.layers:
        _shrink_linears(layer, device)
    for layer in lm.depformer.layers:
        _shrink_linears(layer, device)
    for index, linear in enumerate(lm.depformer_in):
        lm.depformer_in[index] = _small(linear, device)
    return lm.to(device)


def _shrink_linears(layer: nn.Module, device: torch.device | str) -> None:
    for module in list(layer.modules()):
        if isinstance(module, Attention):
            module.in_proj = Fp8Linear(module.in_proj_weight.to(device))
            del module.in_proj_weight
        if isinstance(module, StepAttention):
            module.split(lambda weight: Fp8Linear(weight.to(device)))
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, _small(child, device))


def _small(linear: nn.Module, device: torch.device | str) -> Fp8Linear:
    assert isinstance(linear, nn.Linear)
    return Fp8Linear(linear.weight.to(device))
