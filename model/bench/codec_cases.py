"""The products of a codec's step, and the tiles that may make them.

Owns their sizes at a codec's configuration, data for one of them, and what it should come to. Knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import MimiConfig
from model.kernels import codec_tiles
from model.kernels.codec_tiles import THIN, Precision, SearchTile, Shape, Tile, Way
from model.load import on_meta
from model.mimi.codec import Mimi
from model.mimi.conv import CausalConv1d, CausalConvTranspose1d
from model.mimi.seanet import ResidualBlock

MOST = 5
"""Candidates for one product and number of slots."""
_POOL = (
    (128, 128, 1, 32, 8, 3),
    (128, 64, 1, 32, 8, 3),
    (128, 64, 1, 32, 8, 4),
    (128, 32, 1, 32, 4, 4),
    (64, 128, 1, 32, 8, 3),
    (64, 64, 1, 32, 4, 4),
    (64, 64, 1, 64, 4, 3),
    (64, 32, 1, 64, 4, 4),
    (64, 32, 1, 32, 4, 4),
    (32, 32, 8, 32, 8, 3),
    (32, 32, 4, 32, 4, 3),
    (32, 16, 8, 32, 8, 3),
    (16, 32, 8, 32, 8, 3),
    (16, 16, 16, 32, 16, 3),
    (16, 16, 8, 32, 8, 4),
    (16, 8, 16, 32, 16, 3),
)
"""Rows, columns, shares, depth, warps and stages, on tensor cores; those that spill registers are not here."""
_BUSY = 8 * 132
"""Warps with which a Hopper is at work everywhere."""
SEARCH = (
    SearchTile(16, 32, 8, 8, "fma"),
    SearchTile(16, 32, 8, 8, "tf32x3"),
    SearchTile(16, 32, 4, 4, "tf32x3"),
    SearchTile(32, 32, 4, 4, "tf32x3"),
    SearchTile(64, 32, 1, 4, "tf32x3"),
    SearchTile(64, 64, 1, 4, "tf32x3"),
)
SLOTS = {1: 1920, 32: 96, 128: 1920, 400: 16}
"""Numbers of slots that are measured, and the most rows of each for which they are."""
NEAR: dict[Precision, float] = {"ieee": 1e-4, "tf32": 2e-2}
"""By how much a result may be off, of numbers whose deviation is near 1: TF32 makes it some 5e-3 at most."""


@dataclass(frozen=True, slots=True)
class Case:
    """One product: its shape, and `length` rows a slot, `hop` floats apart. Named for the printed table."""

    name: str
    shape: Shape
    length: int
    hop: int
    norm: bool = False
    gelu: bool = False
    adds: bool = False
    elu: bool = False
    edge: bool = False


def cases(config: MimiConfig) -> list[Case]:
    """Every product of both sides; of those of one shape and nearly as many rows the first."""
    mimi: Mimi = on_meta(lambda: Mimi(config))
    found = [*_convolutions("encoder", mimi.encoder.model, mimi.frame_size, "ieee"), *_layers(config, "ieee")]
    width, narrow, step = config.seanet.dimension, config.quantizer.dimension, config.resample_stride
    found.append(Case("downsample", Shape("ieee", width, 2 * step * width), 1, step * width, edge=True))
    found.append(Case("projection in", Shape("ieee", 2 * narrow, width), 1, width))
    found.append(Case("projection out", Shape("tf32", width, 2 * narrow), 1, 2 * narrow))
    found += [*_layers(config, "tf32"), *_convolutions("decoder", mimi.decoder.model, step, "tf32")]
    return [case for place, case in enumerate(found) if not any(_alike(case, other) for other in found[:place])]


def _alike(one: Case, other: Case) -> bool:
    return one.shape == other.shape and max(one.length, other.length) <= 4 * min(one.length, other.length)


def _convolutions(side: str, model: nn.ModuleList, length: int, precision: Precision) -> Iterator[Case]:
    layers = [inner for layer in model for inner in (layer.block if isinstance(layer, ResidualBlock) else [layer])]
    adding = {layer.block[3] for layer in model if isinstance(layer, ResidualBlock)}
    convolutions = [layer for layer in layers if isinstance(layer, CausalConv1d | CausalConvTranspose1d)]
    for place, layer in enumerate(convolutions):
        shape, length, hop, after = _product_of(layer, length, precision)
        last = place + 1 == len(convolutions)
        yield Case(f"{side} {place}", shape, length, hop, adds=layer in adding, elu=not last)
        length = after


def _product_of(
    layer: CausalConv1d | CausalConvTranspose1d, length: int, precision: Precision
) -> tuple[Shape, int, int, int]:
    """The product over `length` inputs: its shape, rows and hop; and how many outputs there are."""
    if isinstance(layer, CausalConv1d):
        inner = layer.conv["conv"]
        assert isinstance(inner, nn.Conv1d)
        rows = length // layer.stride
        sums = layer.inputs * inner.kernel_size[0]
        return Shape(precision, inner.out_channels, sums), rows, layer.stride * layer.inputs, rows
    made = layer.convtr["convtr"]
    assert isinstance(made, nn.ConvTranspose1d)
    shape = Shape(precision, layer.stride * made.out_channels, 2 * layer.inputs)
    return shape, length, layer.inputs, length * layer.stride


def _layers(config: MimiConfig, precision: Precision) -> Iterator[Case]:
    width, hidden = config.transformer.dim, config.transformer.hidden
    plain = Case("", Shape(precision, width, width), 2, width)
    side = {"ieee": "encoder", "tf32": "decoder"}[precision]
    yield replace(plain, name=f"{side} joining", shape=Shape(precision, 3 * width, width), norm=True)
    yield replace(plain, name=f"{side} leaving", adds=True)
    yield replace(plain, name=f"{side} widening", shape=Shape(precision, hidden, width), norm=True, gelu=True)
    yield replace(plain, name=f"{side} narrowing", shape=Shape(precision, width, hidden), hop=hidden, adds=True)


def measured(case: Case) -> list[int]:
    """Numbers of slots that stand for all: of convolutions that occupy the GPU with few, fewer.

    The most are those of a pass: 16 calls, two seconds of each at once.
    """
    return [slots for slots, longest in SLOTS.items() if case.length <= longest]


def candidates(shape: Shape, count: int) -> list[Tile]:
    """Tiles for `count` rows, at most `MOST`: first the one that is taken now, and what the rules say."""
    outer, inner = shape.outer, shape.inner
    now = codec_tiles.tile(count, outer, inner, shape.precision)
    tiled = codec_tiles.tiled(count, outer, inner, shape.precision)
    if count <= THIN:
        thin = codec_tiles.thin(count, outer, inner)
        return list(dict.fromkeys([now, thin, tiled, *_thin_ones(thin)]))[:MOST]
    way: Way = "tf32x3" if shape.precision == "ieee" else "tf32"
    fitting = [Tile(*entry, way) for entry in _POOL if _suits(entry, count, outer, inner)]
    fitting.sort(key=lambda cut: abs(math.log2(_warps(cut, count, outer) / _BUSY)))
    plain = [_fma(outer, inner)] if shape.precision == "ieee" and inner <= 64 else []
    return list(dict.fromkeys([now, tiled, *plain, *fitting]))[:MOST]


def _thin_ones(rule: Tile) -> list[Tile]:
    """Of half, as many, and twice the columns and warps, as registers hold."""
    return [
        replace(rule, columns=columns, warps=warps, depth=128 * warps)
        for warps in (rule.warps, max(1, rule.warps // 2), min(16, 2 * rule.warps))
        for columns in (rule.columns // 2, 2 * rule.columns, rule.columns)
        if rule.rows * columns * (1 + warps // 16) <= 16
    ]


def _suits(entry: tuple[int, ...], count: int, outer: int, inner: int) -> bool:
    rows, columns, shares, depth, *_ = entry
    small = rows < 2 * max(count, 16) and columns < 2 * max(outer, 8)
    return small and shares * depth <= max(inner, 32) and (inner >= 2 * depth or depth == 32)


def _warps(cut: Tile, count: int, outer: int) -> int:
    return cut.warps * -(-count // cut.rows) * -(-outer // cut.columns)


def _fma(outer: int, inner: int) -> Tile:
    """Where sums are short."""
    columns = 64 if outer > 32 else 32
    return Tile(128, columns, 1, 16 if inner < 32 else 32, columns // 8, 3, "fma")


class Data:
    """What a case is given, for some streams: random, with copies of the weights."""

    def __init__(self, case: Case, streams: int, device: torch.device, copies: int = 1) -> None:
        self.case, self.streams = case, streams
        outer, inner = case.shape.outer, case.shape.inner
        floats = (case.length - 1) * case.hop + inner
        self._rows = torch.randn(streams, floats - -floats % 16 + 16, device=device)
        self._rows[:, -16:] = 1.0  # a stream has begun
        self._source = self._rows[:, :floats]
        self.weights = [torch.randn(outer, inner, device=device) / inner**0.5 for _ in range(copies)]
        self._vectors = [torch.randn(max(outer, inner), device=device) / 2 for _ in range(4)]
        self._residual = torch.randn(streams, case.length * outer, device=device)
        self.result = torch.empty_like(self._residual)

    def make(self, cut: Tile, copy: int = 0) -> None:
        """The product, into `result`."""
        from model.kernels.codec_product import Edge, Out, product

        case, outer, inner = self.case, self.case.shape.outer, self.case.shape.inner
        bias, gain, strength, shift = self._vectors
        product(
            self._source,
            self.weights[copy],
            Out(
                None if case.elu else self.result,
                self.result if case.elu else None,
                bias=None if case.norm else bias[:outer],
                gelu=case.gelu,
                gain=gain[:outer] if case.adds else None,
                residual=self._residual if case.adds else None,
            ),
            length=case.length,
            hop=case.hop,
            norm=(strength[:inner], shift[:inner]) if case.norm else None,
            edge=Edge(self._rows[:, -16:], case.hop, case.hop // 2) if case.edge else None,
            precision=case.shape.precision,
            cut=cut,
        )

    def off(self) -> float:
        """By how much `result` is wrong at most, in the first stream and the last; infinite if it is no number."""
        if not bool(torch.isfinite(self.result).all()):
            return math.inf
        return float((self.result[self._ends].double() - self._expected()).abs().max())

    @property
    def _ends(self) -> list[int]:
        return [0, self.streams - 1]

    def _expected(self) -> Tensor:
        case, outer, inner = self.case, self.case.shape.outer, self.case.shape.inner
        bias, gain, strength, shift = (vector.double() for vector in self._vectors)
        x = self._source[self._ends].double().unfold(1, inner, case.hop)
        if case.norm:
            x = functional.layer_norm(x, (inner,), strength[:inner], shift[:inner])
        y = x @ self.weights[0].double().T
        y = y if case.norm else y + bias[:outer]
        y = functional.gelu(y) if case.gelu else y
        y = y * gain[:outer] + self._residual[self._ends].double().view_as(y) if case.adds else y
        return (functional.elu(y) if case.elu else y).flatten(1)
