"""The next frames of each slot through the codec in few launches, for a GPU: five a transformer layer, one a
convolution.

Owns the order of a step of one frame, and of a pass over several, and all weights as the kernels read them. The layers
are those of `model.mimi.codec`, whose own pass does the same for any number of frames over the same memory; the two
agree up to rounding. Imported only where there is a GPU, and by tests.

What it owns comes to 0.15 GB at the published sizes, and the workspace to 1.8 MB a slot of the batch and frame.

b is the slots of a step, n its frames, D the width, T = 2 n positions, H heads, hd a head's width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from model.config import MimiConfig
from model.kernels import codec_attention, codec_chunk, codec_codes, codec_rows
from model.kernels.codec_product import Edge, Out, Precision, cut_for, product
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d
from model.mimi.quantizer import SplitQuantizer
from model.mimi.stages import Convolutions, Places, Stage, Workspace, convolution, seanet
from model.streaming import KVCache
from model.transformer import LayerScale, Transformer, TransformerLayer

if TYPE_CHECKING:
    from model.mimi.codec import Mimi, MimiState


def fits(config: MimiConfig) -> bool:
    """Whether the kernels know this structure: the published one, in any size."""
    transformer, quantizer = config.transformer, config.quantizer
    known = (transformer.norm, transformer.mlp, transformer.layer_scale) == ("layer", "gelu", True)
    steps = (transformer.step, config.resample_stride) == (codec_attention.STEP, 2) and transformer.context > 2
    codes = quantizer.semantic == 1 and config.active <= quantizer.codebooks
    return known and steps and codes and config.seanet.channels == 1


class Layers:
    """A transformer of the codec over the next positions of each slot, two a frame."""

    def __init__(self, transformer: Transformer, precision: Precision) -> None:
        config = transformer.config
        self._layers = [cast(TransformerLayer, layer) for layer in transformer.layers]
        self._weights = [_linear(layer) for layer in self._layers]
        self._precision = precision
        self._heads, self._width, self._hidden = config.heads, config.dim, config.hidden
        index = torch.arange(config.head_dim // 2, dtype=torch.float32, device=next(transformer.parameters()).device)
        self._frequency = torch.exp(index * (-math.log(config.max_period) * 2 / config.head_dim))

    def __call__(self, x: Tensor, kv: KVCache, slots: Tensor, last: Tensor) -> None:
        """`x [b, T D]`, the next T positions of `slots [b]`, to `last [b, T D]`. The slots' time does not go on."""
        count, length, head_dim = x.shape[0], x.shape[1] // self._width, self._width // self._heads
        turn = None
        if length > codec_attention.STEP:
            turn = codec_chunk.turns(slots, kv.offsets, self._frequency, length)
        # What is not stored before the pass ends has to be kept for so long.
        joined = x.new_empty(1 if turn is None else len(self._layers), count, length, 3, self._heads, head_dim)
        for index, (layer, weights) in enumerate(zip(self._layers, self._weights, strict=True)):
            joining, leaving, widening, narrowing = weights
            own = joined[index % len(joined)]
            self._multiply(x, joining, Out(own.flatten(1)), length, layer.norm1)
            seen = x.new_empty(count, length * self._width)
            self._attend(index, own, turn, kv, slots, seen)
            middle = torch.empty_like(seen)
            out = Out(middle, gain=_scale(layer.layer_scale_1), residual=x)
            self._multiply(seen, leaving, out, length)
            inner = x.new_empty(count, length * self._hidden)
            self._multiply(middle, widening, Out(inner, gelu=True), length, layer.norm2)
            x = last if index + 1 == len(self._layers) else torch.empty_like(middle)
            out = Out(x, gain=_scale(layer.layer_scale_2), residual=middle)
            self._multiply(inner, narrowing, out, length)
        if turn is not None:
            codec_chunk.store(joined, turn, slots, kv.offsets, kv.keys, kv.values)

    def _attend(
        self, index: int, joined: Tensor, turn: codec_chunk.Turn | None, kv: KVCache, slots: Tensor, seen: Tensor
    ) -> None:
        """Of one layer: `joined [b, T, 3, H, hd]` to `seen [b, T D]`."""
        memory, result = (slots, kv.offsets, kv.keys[index], kv.values[index], kv.window), seen.view_as(joined[:, :, 0])
        if turn is None:
            codec_attention.attend(joined, self._frequency, *memory, result)
        else:
            codec_chunk.attend(joined, turn, *memory, result, self._precision)

    def _multiply(self, x: Tensor, weight: Tensor, out: Out, length: int, norm: nn.Module | None = None) -> None:
        gains = None
        if norm is not None:
            assert isinstance(norm, nn.LayerNorm)
            gains = (norm.weight, norm.bias)
        product(x, weight, out, length=length, hop=weight.shape[1], norm=gains, precision=self._precision)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How an encoder's chunks of one length lie in their workspace: its convolutions' inputs, and what is carried.

    flag: where it says whether a stream has begun; down: what halves the rate.
    """

    convolutions: Convolutions
    flag: int
    down: Stage
    places: Places


class Encoder:
    """Frames of sound to their codes. Products are as exact as float32, in another order: a code must not flip."""

    def __init__(self, mimi: Mimi, entries: Tensor, half_squares: Tensor) -> None:
        """`entries [Q, E, d]`, of the codebooks in use, and half their squared lengths `[Q, E]`."""
        self._frame = mimi.frame_size
        self._convolutions = seanet(mimi.encoder)
        self._layers = Layers(_transformer(mimi.encoder_transformer), "ieee")
        down = mimi.downsample["conv"]
        assert isinstance(down, CausalConv1d)
        self._down = convolution(down)
        sides = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        self._projection = torch.cat([side.input_proj.weight[:, :, 0] for side in sides])
        self._entries, self._half_squares = entries, half_squares
        self._columns = entries.transpose(1, 2).contiguous()
        self._encodings: dict[int, _Encoding] = {}
        self._encoding(1)  # now: no table may be made while a step is captured

    def _encoding(self, frames: int) -> _Encoding:
        """Of chunks of so many frames."""
        if frames not in self._encodings:
            workspace = Workspace(self._projection.device)
            convolutions = Convolutions(self._convolutions, frames * self._frame, workspace, "ieee")
            flag, down = workspace.flag(), self._down.over(frames * codec_attention.STEP, workspace)
            self._encodings[frames] = _Encoding(convolutions, flag, down, workspace.places())
        return self._encodings[frames]

    def __call__(self, state: MimiState, slots: Tensor, pcm: Tensor, n_q: int) -> tuple[Tensor, Tensor]:
        """`pcm [b, 1, n * frame]` of `slots [b]` to codes `[b, n_q, n]`, and their latents `[b, n D]`."""
        count, frames, width = slots.shape[0], pcm.shape[2] // self._frame, self._down.channels
        encoding, rows, kv = self._encoding(frames), state.encoder_rows, state.encoder_kv
        down, places = encoding.down, encoding.places
        space = pcm.new_empty(count, places.width)
        codec_rows.begin(rows, slots, places.before, space, pcm[:, 0], encoding.convolutions.begin)
        x = pcm.new_empty(count, down.size)
        encoding.convolutions(space, x)
        source = down.chunk(space)
        self._layers(x, kv, slots, source[:, down.head :])
        latent = pcm.new_empty(count, frames * width)
        edge = Edge(space[:, encoding.flag :], down.head, width)
        product(source, self._down.weight, Out(latent), length=frames, hop=down.hop, edge=edge)
        codec_rows.finish(rows, slots, places.after, space, kv.offsets, frames * codec_attention.STEP)
        projected = pcm.new_empty(count, frames * self._projection.shape[0])
        product(latent, self._projection, Out(projected), length=frames, hop=width)
        books = (self._entries[:n_q], self._columns[:n_q], self._half_squares[:n_q])
        codes = codec_codes.search(projected.view(count, frames, 2, -1), *books)
        return codes.transpose(1, 2), latent


class Decoder:
    """Columns of codes to their frames of sound, in products of TF32 where the codec is made so."""

    def __init__(self, mimi: Mimi, entries: Tensor) -> None:
        up = mimi.upsample["convtr"]
        assert isinstance(up, CausalConvTranspose1d)
        self._up = cast(Tensor, up.convtr["convtr"].weight)
        self._carried, self._frame = up.carried, mimi.frame_size
        self._reach = -(-mimi.decoder.reach // codec_attention.STEP)
        self._precision: Precision = "tf32" if mimi.decoder_tf32 else "ieee"
        self._layers = Layers(_transformer(mimi.decoder_transformer), self._precision)
        self._convolutions = seanet(mimi.decoder)
        sides = (mimi.quantizer.rvq_first, mimi.quantizer.rvq_rest)
        self._projection = torch.cat([side.output_proj.weight[:, :, 0] for side in sides], dim=1)
        self._entries = entries
        self._decodings: dict[int, tuple[Convolutions, Places]] = {}
        self._decoding(1)

    def _decoding(self, frames: int) -> tuple[Convolutions, Places]:
        """How chunks of so many frames lie in their workspace."""
        if frames not in self._decodings:
            workspace, length = Workspace(self._projection.device), frames * codec_attention.STEP
            convolutions = Convolutions(self._convolutions, length, workspace, self._precision)
            self._decodings[frames] = convolutions, workspace.places()
        return self._decodings[frames]

    def __call__(self, state: MimiState, slots: Tensor, codes: Tensor) -> Tensor:
        """`codes [b, K, n]` of `slots [b]` to sound `[b, 1, n * frame]`."""
        return self._decoded(state, slots, codes, codes.shape[2])

    def remember(self, state: MimiState, slots: Tensor, codes: Tensor) -> None:
        """The same for sound that nobody hears."""
        self._decoded(state, slots, codes, min(codes.shape[2], self._reach))

    def _decoded(self, state: MimiState, slots: Tensor, codes: Tensor, last: int) -> Tensor:
        """The sound of the `last` frames, through whose convolutions no others go."""
        count, frames, width = slots.shape[0], codes.shape[2], self._projection.shape[0]
        convolutions, places = self._decoding(last)
        rows = state.decoder_rows[:, self._carried :]
        space = rows.new_empty(count, places.width)
        codec_rows.begin(rows, slots, places.before, space, None, 0)
        entries = codec_codes.sums(codes.transpose(1, 2).flatten(0, 1), self._entries).view(count, -1)
        latent, hop = rows.new_empty(count, frames * width), self._projection.shape[1]
        product(entries, self._projection, Out(latent), length=frames, hop=hop, precision=self._precision)
        x = rows.new_empty(count, frames * codec_attention.STEP * width)
        codec_rows.double(latent.view(count, frames, width), self._up, state.decoder_rows, slots, x)
        chunk = convolutions.first(space)
        made = chunk if last == frames else torch.empty_like(x)
        self._layers(x, state.decoder_kv, slots, made)
        if made is not chunk:
            chunk.copy_(made[:, -chunk.shape[1] :])
        sound = rows.new_empty(count, last * self._frame)
        convolutions(space, sound)
        step = frames * codec_attention.STEP
        codec_rows.finish(rows, slots, places.after, space, state.decoder_kv.offsets, step)
        return sound[:, None]


def both_sides(mimi: Mimi) -> tuple[Encoder, Decoder]:
    """The codec's two directions, cut for the card they are on; the codebooks in use are kept once more, for both."""
    cut_for(next(mimi.parameters()).device)
    entries, half_squares = codebooks(mimi.quantizer, mimi.config.active)
    return Encoder(mimi, entries, half_squares), Decoder(mimi, entries)


def codebooks(quantizer: SplitQuantizer, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` codebooks side by side: entries `[count, E, d]`, half their squared lengths `[count, E]`."""
    books = (quantizer.rvq_first.codebooks + quantizer.rvq_rest.codebooks)[:count]
    tables = [book.table() for book in books]
    return torch.stack([entries for entries, _ in tables]), torch.stack([squares for _, squares in tables])


def _linear(layer: TransformerLayer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    attention = layer.self_attn
    return attention.in_proj_weight, attention.out_proj.weight, layer.linear1.weight, layer.linear2.weight


def _transformer(holder: nn.ModuleDict) -> Transformer:
    return cast(Transformer, holder["transformer"])


def _scale(module: nn.Module) -> Tensor:
    return cast(LayerScale, module).scale
