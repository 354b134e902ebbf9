"""One frame of each slot through the codec in few launches, for a GPU: five a transformer layer, one a convolution.

Owns the weights in the form that the kernels multiply with, the workspace in which convolutions find their inputs, and
the order of a step. The layers are those of `model.mimi.codec`, whose own pass does the same for any number of frames
over the same memory; the two agree up to rounding. Imported only where there is a GPU, and by tests.

What it owns comes to 0.25 GB at the published sizes, and the workspace to 1.8 MB a slot of the batch.

Time runs before channels here. A slot's row of the workspace holds, for each convolution, what it carries and then its
chunk, without a gap; whoever makes the chunk writes it there, ELU applied. b is the slots of a step, D the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from model.config import MimiConfig
from model.kernels import codec_attention, codec_codes, codec_rows
from model.kernels.codec_product import Edge, Out, Precision, product
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d
from model.mimi.quantizer import SplitQuantizer
from model.mimi.seanet import ResidualBlock, SeanetDecoder, SeanetEncoder
from model.streaming import KVCache
from model.transformer import LayerScale, Transformer, TransformerLayer

if TYPE_CHECKING:
    from model.mimi.codec import Mimi, MimiState

_ALIGNED = 16
"""Parts of a workspace begin at multiples of so many floats, for wide loads."""


def fits(config: MimiConfig) -> bool:
    """Whether the kernels know this structure: the published one, in any size."""
    transformer, quantizer = config.transformer, config.quantizer
    known = (transformer.norm, transformer.mlp, transformer.layer_scale) == ("layer", "gelu", True)
    steps = (transformer.step, config.resample_stride) == (codec_attention.STEP, 2) and transformer.context > 2
    codes = quantizer.semantic == 1 and config.active <= quantizer.codebooks
    return known and steps and codes and config.seanet.channels == 1


class Workspace:
    """Where the floats of a slot's row lie, before a step and after it; parts are added in the order of the carry.

    width: floats of a row, once all parts are there.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before: list[int] = []
        self._after: list[int] = []
        self.width = 0

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

    def tables(self) -> tuple[Tensor, Tensor]:
        """Where each carried float lies, before and after: `[N]` each."""
        both = (torch.tensor(table, dtype=torch.int32, device=self._device) for table in (self._before, self._after))
        before, after = both
        return before, after

    def _room(self, floats: int) -> int:
        at, self.width = self.width, self.width + floats
        self.width += -self.width % _ALIGNED
        return at


@dataclass(frozen=True, slots=True)
class Stage:
    """One convolution as a product over overlapping rows.

    weight `[N, K]`, bias `[N]`; `length` rows of a chunk begin `hop` floats apart. at: its input in the workspace, None
    where nothing is carried; head: carried floats before the chunk, whose size is in floats too. elu: it takes the ELU
    of what is made for it; skips: what is made for it is also added to what the stage that `adds` makes.
    """

    weight: Tensor
    bias: Tensor | None
    length: int
    hop: int
    at: int | None
    head: int
    size: int
    elu: bool
    skips: bool = False
    adds: bool = False


class Convolutions:
    """SEANet's encoder or decoder, over chunks of `length` positions, in products of a `precision`."""

    def __init__(
        self, seanet: SeanetEncoder | SeanetDecoder, length: int, workspace: Workspace, precision: Precision
    ) -> None:
        self.stages: list[Stage] = []
        self._precision = precision
        elu = False
        for layer in seanet.model:
            if isinstance(layer, nn.ELU):
                elu = True
            elif isinstance(layer, ResidualBlock):
                first, second = layer.block[1], layer.block[3]
                assert isinstance(first, CausalConv1d) and isinstance(second, CausalConv1d)  # noqa: PT018
                self.stages.append(convolution(first, length, workspace, precision, elu=True, skips=True))
                self.stages.append(convolution(second, length, workspace, precision, elu=True, adds=True))
            else:
                if isinstance(layer, CausalConv1d):
                    self.stages.append(convolution(layer, length, workspace, precision, elu=elu))
                    length //= layer.stride
                else:
                    assert isinstance(layer, CausalConvTranspose1d)
                    self.stages.append(transposed(layer, length, workspace, precision, elu=elu))
                    length *= layer.stride
                elu = False

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
        source = self._input(space, self.stages[0])
        for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):
            out, then = Out(last), None
            if following is not None:
                then = self._input(space, following)
                out = Out(*self._outputs(then[:, following.head :], following))
            out = replace(out, bias=stage.bias, residual=skip if stage.adds else None)
            product(source, stage.weight, out, length=stage.length, hop=stage.hop, precision=self._precision)
            if following is not None and following.skips:
                skip = out.plain
            if then is not None:
                source = then

    @staticmethod
    def _outputs(chunk: Tensor, stage: Stage) -> tuple[Tensor | None, Tensor | None]:
        """Where what is made for `stage`, whose `chunk` it becomes, goes as it is, and where its ELU goes."""
        if not stage.elu:
            return chunk, None
        return (torch.empty(chunk.shape, device=chunk.device) if stage.skips else None), chunk

    @staticmethod
    def _input(space: Tensor, stage: Stage) -> Tensor:
        floats = stage.head + stage.size
        if stage.at is None:
            return space.new_empty(space.shape[0], floats)
        return space[:, stage.at : stage.at + floats]


class Layers:
    """A transformer of the codec over the two positions of a frame."""

    def __init__(self, transformer: Transformer, precision: Precision) -> None:
        config = transformer.config
        self._layers = [cast(TransformerLayer, layer) for layer in transformer.layers]
        self._weights = [[factors(weight, precision) for weight in _linear(layer)] for layer in self._layers]
        self._precision = precision
        self._heads, self._hidden = config.heads, config.hidden
        index = torch.arange(config.head_dim // 2, dtype=torch.float32, device=next(transformer.parameters()).device)
        self._frequency = torch.exp(index * (-math.log(config.max_period) * 2 / config.head_dim))

    def __call__(self, x: Tensor, kv: KVCache, slots: Tensor, last: Tensor) -> None:
        """`x [b, 2 D]`, the next positions of `slots [b]`, to `last [b, 2 D]`. The slots' time does not go on."""
        count, width = x.shape[0], x.shape[1] // 2
        for index, (layer, weights) in enumerate(zip(self._layers, self._weights, strict=True)):
            joining, leaving, widening, narrowing = weights
            joined = x.new_empty(count, 6 * width)
            self._multiply(x, joining, Out(joined), layer.norm1)
            seen = x.new_empty(count, 2 * width)
            codec_attention.attend(
                joined.view(count, 2, 3, self._heads, -1),
                self._frequency,
                slots,
                kv.offsets,
                kv.keys[index],
                kv.values[index],
                kv.window,
                seen.view(count, 2, self._heads, -1),
            )
            middle = torch.empty_like(seen)
            out = Out(middle, gain=_scale(layer.layer_scale_1), residual=x)
            self._multiply(seen, leaving, out)
            inner = x.new_empty(count, 2 * self._hidden)
            self._multiply(middle, widening, Out(inner, gelu=True), layer.norm2)
            x = last if index + 1 == len(self._layers) else torch.empty_like(middle)
            out = Out(x, gain=_scale(layer.layer_scale_2), residual=middle)
            self._multiply(inner, narrowing, out)

    def _multiply(self, x: Tensor, weight: Tensor, out: Out, norm: nn.Module | None = None) -> None:
        gains = None
        if norm is not None:
            assert isinstance(norm, nn.LayerNorm)
            gains = (norm.weight, norm.bias)
        product(x, weight, out, length=2, hop=weight.shape[1], norm=gains, precision=self._precision)


class Encoder:
    """A frame of sound to its codes. Products are full float32: a code must not flip."""

    def __init__(self, mimi: Mimi, entries: Tensor, half_squares: Tensor) -> None:
        """`entries [Q, E, d]`, of the codebooks in use, and half their squared lengths `[Q, E]`."""
        config = mimi.config
        workspace = Workspace(next(mimi.parameters()).device)
        self._convolutions = Convolutions(mimi.encoder, mimi.frame_size, workspace, "ieee")
        self._layers = Layers(_transformer(mimi.encoder_transformer), "ieee")
        down = mimi.downsample["conv"]
        assert isinstance(down, CausalConv1d)
        self._flag = workspace.flag()
        self._down = convolution(down, config.resample_stride, workspace, "ieee")
        self._before, self._after = workspace.tables()
        self._width, self._channels = workspace.width, down.inputs
        sides = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        self._projection = factors(torch.cat([side.input_proj.weight[:, :, 0] for side in sides]), "ieee")
        self._entries, self._half_squares = entries, half_squares
        self._columns = entries.transpose(1, 2).contiguous()

    def __call__(self, state: MimiState, slots: Tensor, pcm: Tensor, n_q: int) -> Tensor:
        """`pcm [b, 1, frame]` of `slots [b]` to codes `[b, n_q, 1]`."""
        count, down, width = slots.shape[0], self._down, self._channels
        space = pcm.new_empty(count, self._width)
        codec_rows.begin(state.encoder_rows, slots, self._before, space, pcm[:, 0], self._convolutions.begin)
        x = pcm.new_empty(count, 2 * width)
        self._convolutions(space, x)
        assert down.at is not None
        source = space[:, down.at : down.at + down.head + down.size]
        self._layers(x, state.encoder_kv, slots, source[:, down.head :])
        latent = pcm.new_empty(count, width)
        edge = Edge(space[:, self._flag :], down.head, width)
        product(source, down.weight, Out(latent), length=down.length, hop=down.hop, edge=edge)
        codec_rows.finish(state.encoder_rows, slots, self._after, space, state.encoder_kv.offsets, codec_attention.STEP)
        projected = pcm.new_empty(count, self._projection.shape[0])
        product(latent, self._projection, Out(projected), length=1, hop=width)
        books = (self._entries[:n_q], self._columns[:n_q], self._half_squares[:n_q])
        return codec_codes.search(projected.view(count, 2, -1), *books)[:, :, None]


class Decoder:
    """A column of codes to its frame of sound, in products of TF32 where the codec is made so."""

    def __init__(self, mimi: Mimi, entries: Tensor) -> None:
        config = mimi.config
        workspace = Workspace(next(mimi.parameters()).device)
        up = mimi.upsample["convtr"]
        assert isinstance(up, CausalConvTranspose1d)
        self._up = cast(Tensor, up.convtr["convtr"].weight)
        self._carried = up.carried
        self._precision: Precision = "tf32" if mimi.decoder_tf32 else "ieee"
        self._layers = Layers(_transformer(mimi.decoder_transformer), self._precision)
        self._convolutions = Convolutions(mimi.decoder, config.resample_stride, workspace, self._precision)
        self._before, self._after = workspace.tables()
        self._width, self._frame = workspace.width, mimi.frame_size
        sides = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        joined = torch.cat([side.output_proj.weight[:, :, 0] for side in sides], dim=1)
        self._projection = factors(joined, self._precision)
        self._entries = entries

    def __call__(self, state: MimiState, slots: Tensor, codes: Tensor) -> Tensor:
        """`codes [b, K, 1]` of `slots [b]` to sound `[b, 1, frame]`."""
        count, width = slots.shape[0], self._projection.shape[0]
        rows = state.decoder_rows[:, self._carried :]
        space = rows.new_empty(count, self._width)
        codec_rows.begin(rows, slots, self._before, space, None, 0)
        entries = codec_codes.sums(codes[:, :, 0], self._entries).flatten(1)
        latent = rows.new_empty(count, width)
        product(entries, self._projection, Out(latent), length=1, hop=entries.shape[1], precision=self._precision)
        x = rows.new_empty(count, 2 * width)
        codec_rows.double(latent, self._up, state.decoder_rows, slots, x)
        self._layers(x, state.decoder_kv, slots, self._convolutions.first(space))
        sound = rows.new_empty(count, self._frame)
        self._convolutions(space, sound)
        codec_rows.finish(rows, slots, self._after, space, state.decoder_kv.offsets, codec_attention.STEP)
        return sound[:, None]


def both_sides(mimi: Mimi) -> tuple[Encoder, Decoder]:
    """The codec's two directions; the codebooks in use are kept once more, for both."""
    entries, half_squares = codebooks(mimi.quantizer, mimi.config.active)
    return Encoder(mimi, entries, half_squares), Decoder(mimi, entries)


def convolution(
    layer: CausalConv1d,
    length: int,
    workspace: Workspace,
    precision: Precision,
    *,
    elu: bool = False,
    skips: bool = False,
    adds: bool = False,
) -> Stage:
    """`layer` over chunks of `length` inputs."""
    inner, channels = layer.conv["conv"], layer.inputs
    assert isinstance(inner, nn.Conv1d)
    return Stage(
        weight=factors(inner.weight.transpose(1, 2).flatten(1), precision),
        bias=inner.bias,
        length=length // layer.stride,
        hop=layer.stride * channels,
        at=workspace.part(channels, layer.left, length) if layer.left else None,
        head=layer.left * channels,
        size=length * channels,
        elu=elu,
        skips=skips,
        adds=adds,
    )


def transposed(
    layer: CausalConvTranspose1d, length: int, workspace: Workspace, precision: Precision, *, elu: bool = False
) -> Stage:
    """`layer` over chunks of `length` inputs: all that two neighbouring inputs add to the second one's outputs."""
    inner, channels, stride = layer.convtr["convtr"], layer.inputs, layer.stride
    assert isinstance(inner, nn.ConvTranspose1d)
    kernel = inner.weight.new_zeros(channels, inner.out_channels, 2 * stride)
    kernel[..., : inner.weight.shape[2]] = inner.weight
    taps = kernel.view(channels, -1, 2, stride).flip(2)  # the input before reaches over by the kernel's second half
    return Stage(
        weight=factors(taps.permute(3, 1, 2, 0).flatten(2).flatten(0, 1), precision),
        bias=None if inner.bias is None else inner.bias.repeat(stride),
        length=length,
        hop=channels,
        at=workspace.part(channels, 1, length),
        head=channels,
        size=length * channels,
        elu=elu,
    )


def codebooks(quantizer: SplitQuantizer, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` codebooks side by side: entries `[count, E, d]`, half their squared lengths `[count, E]`."""
    books = (quantizer.rvq_first.codebooks + quantizer.rvq_rest.codebooks)[:count]
    tables = [book.table() for book in books]
    return torch.stack([entries for entries, _ in tables]), torch.stack([squares for _, squares in tables])


def factors(weight: Tensor, precision: Precision) -> Tensor:
    """`weight [N, K]`, so laid out in memory that the kernel reads it fastest.

    FMA units take neighbouring columns from shared memory at once, tensor cores neighbouring factors.
    """
    return weight.contiguous() if precision == "tf32" else weight.T.contiguous().T


def _linear(layer: TransformerLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    return attention.in_proj_weight, attention.out_proj.weight, layer.linear1.weight, layer.linear2.weight


def _transformer(holder: nn.ModuleDict) -> Transformer:
    return cast(Transformer, holder["transformer"])


def _scale(module: nn.Module) -> Tensor:
    return cast(LayerScale, module).scale
