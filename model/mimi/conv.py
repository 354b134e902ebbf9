"""Causal convolutions, over a whole sound or continued chunk by chunk.

Owns padding, and what a convolution carries from one chunk to the next. Knows neither slots nor the codec's
layout. B is the batch, C channels, T time; all is float32.

What is carried lies in one row of floats for each stream, all zero before its first chunk. Layers read and write
their part of the row in the order in which they run, so a step gathers and scatters one tensor, whatever the depth.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class Carry:
    """What the layers of one direction carry, for the streams of one step: `rows [B, N]`."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows
        self._at = 0
        self._next: list[Tensor] = []

    def take(self, channels: int, length: int) -> Tensor:
        """The next part of the rows: `[B, channels, length]`. Each `take` is followed by one `put`."""
        start, self._at = self._at, self._at + channels * length
        return self._rows[:, start : self._at].view(-1, channels, length)

    def put(self, part: Tensor) -> None:
        """What takes the place of the part taken last, of the same shape."""
        self._next.append(part.flatten(1))

    def successor(self) -> Tensor:
        """The rows for the next chunk, `[B, N]`, once every layer has run."""
        return torch.cat(self._next, dim=1)


class CausalConv1d(nn.Module):
    """`[B, inputs, T]` to `[B, outputs, ceil(T / stride)]`; an output depends on no later stride of inputs.

    The left padding is `kernel - stride` zeros, or repetitions of the first sample where `repeat_edge`. A whole sound
    is also padded on the right, in the same way, to a multiple of the stride; a chunk has to be one.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, bias: bool = True, repeat_edge: bool = False
    ) -> None:
        super().__init__()
        # One level deeper than needed: the published names of the weights have it.
        self.conv = nn.ModuleDict({"conv": nn.Conv1d(inputs, outputs, kernel, stride, bias=bias)})
        self.inputs, self.stride, self.left = inputs, stride, kernel - stride
        self.repeat_edge = repeat_edge and self.left > 0

    @property
    def carried(self) -> int:
        """Floats carried for each stream: the last inputs and, where needed, whether there were any."""
        return self.inputs * self.left + int(self.repeat_edge)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        padded = self._padded(x) if carry is None else self._continued(x, carry)
        result: Tensor = self.conv["conv"](padded)
        return result

    def _padded(self, x: Tensor) -> Tensor:
        right = -x.shape[-1] % self.stride
        return functional.pad(x, (self.left, right), mode="replicate" if self.repeat_edge else "constant")

    def _continued(self, x: Tensor, carry: Carry) -> Tensor:
        if self.left == 0:
            return x
        begun = None
        if self.repeat_edge:
            begun = carry.take(1, 1)
            carry.put(torch.ones_like(begun))
        last = carry.take(self.inputs, self.left)
        if begun is not None:
            last = torch.where(begun > 0, last, x[..., :1])
        joined = torch.cat((last, x), dim=-1)
        carry.put(joined[..., -self.left :])
        return joined


class CausalConvTranspose1d(nn.Module):
    """`[B, inputs, T]` to `[B, outputs, stride * T]`.

    The last `kernel - stride` outputs still lack what later inputs add to them: at the end of a whole sound they are
    dropped. A chunk leaves them to the next one, which is given the last input again.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, *, groups: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        if not 0 < kernel - stride <= stride:
            raise ValueError(f"a kernel of {kernel} reaches over more than one step of {stride}")
        inner = nn.ConvTranspose1d(inputs, outputs, kernel, stride, groups=groups, bias=bias)
        self.convtr = nn.ModuleDict({"convtr": inner})
        self.inputs, self.stride, self._groups = inputs, stride, groups

    @property
    def carried(self) -> int:
        """Floats carried for each stream: the last input."""
        return self.inputs

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        inner = cast(nn.ConvTranspose1d, self.convtr["convtr"])
        length, skipped = self.stride * x.shape[-1], 0
        if carry is not None:
            last = carry.take(self.inputs, 1)
            carry.put(x[..., -1:])
            x, skipped = torch.cat((last, x), dim=-1), self.stride
        full = functional.conv_transpose1d(x, inner.weight, inner.bias, self.stride, groups=self._groups)
        return full[..., skipped : skipped + length]
