"""SEANet, the codec's convolutional encoder and decoder.

Owns the order and sizes of the layers; the published names of the weights are positions in that order, activations
included. Knows no slots, transformers or codes. B is the batch, T the number of 25 Hz positions, D the width there.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from model.config import SeanetConfig
from model.mimi.conv import Carry, CausalConv1d, CausalConvTranspose1d


class ResidualBlock(nn.Module):
    """`[B, C, T]` to the same: the input plus two convolutions that narrow to `C / compress` and widen again."""

    def __init__(self, channels: int, config: SeanetConfig) -> None:
        super().__init__()
        narrow = channels // config.compress
        inner = (CausalConv1d(channels, narrow, config.residual_kernel), CausalConv1d(narrow, channels, 1))
        self.block = nn.ModuleList((nn.ELU(), inner[0], nn.ELU(), inner[1]))

    @property
    def carried(self) -> int:
        return carried(self.block)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return x + run(self.block, x, carry)


class SeanetEncoder(nn.Module):
    """Sound `[B, 1, 960 T]` to `[B, D, T]`, each block halving the rate further and doubling the channels."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        channels = config.filters
        layers: list[nn.Module] = [CausalConv1d(config.channels, channels, config.kernel)]
        for ratio in reversed(config.ratios):
            down = CausalConv1d(channels, 2 * channels, 2 * ratio, ratio)
            layers += [ResidualBlock(channels, config), nn.ELU(), down]
            channels *= 2
        layers += [nn.ELU(), CausalConv1d(channels, config.dimension, config.last_kernel)]
        self.model = nn.ModuleList(layers)

    @property
    def carried(self) -> int:
        return carried(self.model)

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return run(self.model, x, carry)


class SeanetDecoder(nn.Module):
    """`[B, D, T]` to sound `[B, 1, 960 T]`, the encoder's mirror image. The sound is not clipped."""

    def __init__(self, config: SeanetConfig) -> None:
        super().__init__()
        channels = config.filters * 2 ** len(config.ratios)
        layers: list[nn.Module] = [CausalConv1d(config.dimension, channels, config.kernel)]
        for ratio in config.ratios:
            up = CausalConvTranspose1d(channels, channels // 2, 2 * ratio, ratio)
            channels //= 2
            layers += [nn.ELU(), up, ResidualBlock(channels, config)]
        layers += [nn.ELU(), CausalConv1d(channels, config.channels, config.last_kernel)]
        self.model = nn.ModuleList(layers)

    @property
    def carried(self) -> int:
        return carried(self.model)

    @property
    def reach(self) -> int:
        """How many of the last positions all that it carries depends on: eight in the published decoder.

        Counted from its end: the inputs of a layer that it carries, or that those needed of the next layer depend on.
        """
        needed = 0
        for layer in reversed(self.model):
            if isinstance(layer, CausalConvTranspose1d):
                needed = -(-needed // layer.stride) + 1
            elif isinstance(layer, ResidualBlock | CausalConv1d):
                needed += sum(part.left for part in layer.modules() if isinstance(part, CausalConv1d))
        return needed

    def forward(self, x: Tensor, carry: Carry | None = None) -> Tensor:
        return run(self.model, x, carry)


_Carrying = CausalConv1d | CausalConvTranspose1d | ResidualBlock


def carried(layers: Iterable[nn.Module]) -> int:
    """Floats that `layers` carry from chunk to chunk for each stream."""
    return sum(layer.carried for layer in layers if isinstance(layer, _Carrying))


def run(layers: Iterable[nn.Module], x: Tensor, carry: Carry | None) -> Tensor:
    """`x [B, C, T]` through `layers` in order, as a whole sound or (with `carry`) as the next chunk."""
    for layer in layers:
        x = layer(x, carry) if isinstance(layer, _Carrying) else layer(x)
    return x
