"""The least a step can take: reading what it has to read, once, with a kernel that does nothing else.

Owns which bytes those are, and the reading. The ratio of a step to it says what is left to gain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from model.engine import Stepper


def step_reads(stepper: Stepper, slots: int) -> list[Tensor]:
    """The tensors that a step of the first `slots` reads whole: weights, and rings as far as a window shows them.

    Of embeddings a step reads single rows, which do not count.
    """
    lm, codebooks = stepper.models.lm, stepper.models.config.codebooks
    parts = [weight for module in (lm.transformer, lm.text_linear) for weight in _stored(module)]
    for layer in lm.depformer.layers:
        parts.extend(_first_steps(layer, len(lm.depformer_in), codebooks))
    parts += [weight for per_step in (lm.depformer_in, lm.linears) for weight in _stored(per_step[:codebooks])]
    parts += _stored(stepper.models.mimi)
    kv = stepper.state.kv
    position = int(kv.offsets[0])
    seen = position - max(0, kv.window.first(position)) + 1
    for ring in kv.rings():
        parts += [layer.flatten(0, 1)[: slots * ring.shape[2], :seen] for layer in ring]
    for side in (stepper.codec.encoder_kv, stepper.codec.decoder_kv):
        parts += [ring[:, :slots] for ring in side.rings()]
    return parts


def _stored(module: torch.nn.Module) -> list[Tensor]:
    return [tensor for tensor in module.state_dict().values() if tensor.ndim > 1]


def _first_steps(layer: torch.nn.Module, steps: int, used: int) -> Iterator[Tensor]:
    """Of a depth layer's weights those of the first `used` steps."""
    for name, tensor in layer.state_dict().items():
        number = next((part for part in name.split(".") if part.isdigit()), None)
        if number is not None and int(number) < used and tensor.ndim > 1:
            yield tensor
        elif number is None and name.startswith("self_attn."):
            yield tensor[: tensor.shape[0] // steps * used]


def nbytes(parts: Sequence[Tensor]) -> int:
    return sum(part.numel() * part.element_size() for part in parts)


class ReadOnly:
    """Reads tensors and nothing else: in Triton on a GPU, all in one launch, by summing elsewhere."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._reads: Callable[[], None] | None = None
        if parts[0].is_cuda:
            from model.kernels.read import Reads

            self._reads = Reads(parts)

    def __call__(self) -> None:
        if self._reads is not None:
            self._reads()
            return
        for part in self._parts:
            part.float().sum()
