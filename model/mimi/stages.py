"""The codec's convolutions as products over overlapping rows of a workspace, for chunks of any length.

Owns the weights in the form that the kernels multiply with, and the workspace in which convolutions find their inputs.
Knows no slots. Imported only where there is a GPU, and by tests.

Time runs before channels here. A slot's row of the workspace holds, for each convolution, what it carries and then its
chunk, without a gap; whoever makes the chunk writes it there, ELU applied. Weights are made once; a `Stage` is what one
of them is for chunks of one length. b is the slots of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.kernels.codec_product import Out, Precision, product
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d
from model.mimi.seanet import ResidualBlock, SeanetDecoder, SeanetEncoder

_ALIGNED = 16
"""Parts of a workspace begin at multiples of so many floats, for wide loads."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where each float that a slot carries lies in its row of a workspace, before a step and after it: `[N]` each.

    width: floats of a row.
    """

    before: Tensor
    after: Tensor
    width: int


class Workspace:
    """The order of the floats of a slot's row, as parts are added in the order of the carry."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: list[int] = []
        self._after: list[int] = []
        self._width = 0

    def flag(self) -> int:
        """A float that is 1 after every step."""
        at = self._room(1)
        self._before.append(at)
        self._after.append(-1)
        return at

    def part(self, channels: int, head: int, length: int) -> int:
        """`length` inputs of `channels` after `head` carried ones, the last of which are carried on."""
        at = self._room((head + length) * channels)
        for channel in range(channels):  # carried channel by channel
            self._before += [at + time * channels + channel for time in range(head)]
            self._after += [at + (length + time) * channels + channel for time in range(head)]
        return at

    def places(self) -> Places:
        """Once all parts are there."""
        tables = (torch.tensor(table, dtype=torch.int32, device=self._device) for table in (self._before, self._after))
        before, after = tables
        return Places(before, after, self._width)

    def _room(self, floats: int) -> int:
        at, self._width = self._width, self._width + floats
        self._width += -self._width % _ALIGNED
        return at


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution's weight `[N, K]` and bias `[N]`, and how it goes over a chunk.

    Each row takes `takes` inputs of `channels` floats and makes `makes` outputs; `left` inputs are carried. elu: it
    takes the ELU of what is made for it; skips: what is made for it is also added to what the one that `adds` makes.
    """

    weight: Tensor
    bias: Tensor | None
    channels: int
    takes: int
    makes: int
    left: int
    elu: bool
    skips: bool = False
    adds: bool = False

    def over(self, length: int, workspace: Workspace) -> Stage:
        """For chunks of `length` inputs, which lie in `workspace` if anything is carried."""
        at = workspace.part(self.channels, self.left, length) if self.left else None
        return Stage(self, length // self.takes, at, length * self.channels)


@dataclass(frozen=True, slots=True)
class Stage:
    """A convolution over chunks of one length: `length` rows that begin `hop` floats apart.

    at: its input in the workspace, None where nothing is carried; head: carried floats before the chunk, whose size is
    in floats too.
    """

    layer: Convolution
    length: int
    at: int | None
    size: int

    @property
    def hop(self) -> int:
        return self.layer.takes * self.layer.channels

    @property
    def head(self) -> int:
        return self.layer.left * self.layer.channels

    def chunk(self, space: Tensor) -> Tensor:
        """What is carried and the chunk behind it, in a workspace `[b, W]`: `[b, head + size]`."""
        if self.at is None:
            return space.new_empty(space.shape[0], self.head + self.size)
        return space[:, self.at : self.at + self.head + self.size]


class Convolutions:
    """SEANet's encoder or decoder, over chunks of `length` positions, in products of a `precision`."""

    def __init__(self, layers: Sequence[Convolution], length: int, workspace: Workspace, precision: Precision) -> None:
        self.stages: list[Stage] = []
        self._precision = precision
        for layer in layers:
            self.stages.append(layer.over(length, workspace))
            length = length // layer.takes * layer.makes

    @property
    def begin(self) -> int:
        """Where the first chunk belongs."""
        stage = self.stages[0]
        assert stage.at is not None
        return stage.at + stage.head

    def first(self, space: Tensor) -> Tensor:
        """The first chunk, `[b, floats]`."""
        return space[:, self.begin : self.begin + self.stages[0].size]

    def __call__(self, space: Tensor, last: Tensor) -> None:
        """From the first chunk, and all that is carried, to `last [b, floats]`."""
        skip: Tensor | None = None
        source = self.stages[0].chunk(space)
        for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):
            layer, then = stage.layer, None
            out = Out(last)
            if following is not None:
                then = following.chunk(space)
                out = Out(*self._outputs(then[:, following.head :], following))
            out = replace(out, bias=layer.bias, residual=skip if layer.adds else None)
            product(source, layer.weight, out, length=stage.length, hop=stage.hop, precision=self._precision)
            if following is not None and following.layer.skips:
                skip = out.plain
            if then is not None:
                source = then

    @staticmethod
    def _outputs(chunk: Tensor, stage: Stage) -> tuple[Tensor | None, Tensor | None]:
        """Where what is made for `stage`, whose `chunk` it becomes, goes as it is, and where its ELU goes."""
        if not stage.layer.elu:
            return chunk, None
        return (torch.empty(chunk.shape, device=chunk.device) if stage.layer.skips else None), chunk


def seanet(network: SeanetEncoder | SeanetDecoder) -> list[Convolution]:
    """All convolutions of one side, in the order in which they run."""
    found: list[Convolution] = []
    elu = False
    for layer in network.model:
        if isinstance(layer, nn.ELU):
            elu = True
        elif isinstance(layer, ResidualBlock):
            first, second = layer.block[1], layer.block[3]
            assert isinstance(first, CausalConv1d) and isinstance(second, CausalConv1d)  # noqa: PT018
            found.append(convolution(first, elu=True, skips=True))
            found.append(convolution(second, elu=True, adds=True))
        else:
            if isinstance(layer, CausalConv1d):
                found.append(convolution(layer, elu=elu))
            else:
                assert isinstance(layer, CausalConvTranspose1d)
                found.append(transposed(layer, elu=elu))
            elu = False
    return found


def convolution(layer: CausalConv1d, *, elu: bool = False, skips: bool = False, adds: bool = False) -> Convolution:
    """`layer` as a product: each row is one output's inputs."""
    inner = layer.conv["conv"]
    assert isinstance(inner, nn.Conv1d)
    return Convolution(
        weight=inner.weight.transpose(1, 2).flatten(1).contiguous(),
        bias=inner.bias,
        channels=layer.inputs,
        takes=layer.stride,
        makes=1,
        left=layer.left,
        elu=elu,
        skips=skips,
        adds=adds,
    )


def transposed(layer: CausalConvTranspose1d, *, elu: bool = False) -> Convolution:
    """`layer` as a product: all that two neighbouring inputs add to the second one's outputs."""
    inner, channels, stride = layer.convtr["convtr"], layer.inputs, layer.stride
    assert isinstance(inner, nn.ConvTranspose1d)
    kernel = inner.weight.new_zeros(channels, inner.out_channels, 2 * stride)
    kernel[..., : inner.weight.shape[2]] = inner.weight
    taps = kernel.view(channels, -1, 2, stride).flip(2)  # the input before reaches over by the kernel's second half
    return Convolution(
        weight=taps.permute(3, 1, 2, 0).flatten(2).flatten(0, 1).contiguous(),
        bias=None if inner.bias is None else inner.bias.repeat(stride),
        channels=channels,
        takes=1,
        makes=stride,
        left=1,
        elu=elu,
    )
