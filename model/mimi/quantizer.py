"""The split residual vector quantiser: latents to codes and back.

Owns the codebooks and the choice of the nearest entry. Knows no sound and no time: every column stands alone.
B is the batch, n columns (12.5 a second), D the latent's width, d the codebooks' width, K codebooks. All arithmetic
is float32; codes are int64.

One semantic and many acoustic codebooks quantise the same latent, each side through projections of its own; the
acoustic ones quantise what the one before them left over.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.config import QuantizerConfig

_SMALLEST_USAGE = 1e-5


class Codebook(nn.Module):
    """`bins` entries of width d, stored as running sums of what was assigned to them and how often."""

    _initialized: Tensor
    cluster_usage: Tensor
    embedding_sum: Tensor

    def __init__(self, bins: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("_initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(bins))
        self.register_buffer("embedding_sum", torch.zeros(bins, dimension))
        self._made_from: tuple[Tensor, Tensor] | None = None
        self._entries = self._half_squares = self.embedding_sum

    def prepare(self) -> None:
        """Work the entries out from the sums, unless that is done already."""
        source = (self.embedding_sum, self.cluster_usage)
        if self._made_from is not None and all(a is b for a, b in zip(self._made_from, source, strict=True)):
            return
        self._entries = self.embedding_sum / self.cluster_usage.clamp(min=_SMALLEST_USAGE)[:, None]
        self._half_squares = self._entries.square().sum(dim=1) / 2
        self._made_from = source

    def table(self) -> tuple[Tensor, Tensor]:
        """All entries `[bins, d]`, and half their squared lengths `[bins]`."""
        self.prepare()
        return self._entries, self._half_squares

    def nearest(self, x: Tensor) -> Tensor:
        """The entry closest to each of `x [M, d]`, the first of equals: `[M]`."""
        self.prepare()
        # |x - e|^2 / 2 = |x|^2 / 2 - (x e - |e|^2 / 2), and |x| is the same for all entries.
        return torch.addmm(self._half_squares, x, self._entries.T, beta=-1).argmax(dim=1)

    def entries(self, codes: Tensor) -> Tensor:
        """`[...]` to `[..., d]`. An id that is no entry (a marker) reads the closest one that is."""
        self.prepare()
        return functional.embedding(codes.clamp(0, self._entries.shape[0] - 1), self._entries)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._made_from = None  # the sums may be filled in place
        super()._load_from_state_dict(*args, **kwargs)


class ResidualQuantizer(nn.Module):
    """Codebooks in a row, each for what the ones before it left over."""

    def __init__(self, config: QuantizerConfig, codebooks: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv1d(config.input_dimension, config.dimension, 1, bias=False)
        self.output_proj = nn.Conv1d(config.dimension, config.input_dimension, 1, bias=False)
        books = (Codebook(config.bins, config.dimension) for _ in range(codebooks))
        layers = nn.ModuleList(nn.ModuleDict({"_codebook": book}) for book in books)
        self.vq = nn.ModuleDict({"layers": layers})

    @property
    def codebooks(self) -> list[Codebook]:
        layers = cast(nn.ModuleList, self.vq["layers"])
        return [cast(Codebook, cast(nn.ModuleDict, layer)["_codebook"]) for layer in layers]

    def encode(self, latent: Tensor, n_q: int) -> Tensor:
        """`[B, D, n]` to codes of the first `n_q` codebooks, `[B, n_q, n]`."""
        projected = self.input_proj(latent).transpose(1, 2)
        rest = projected.flatten(0, 1)
        codes = []
        for book in self.codebooks[:n_q]:
            code = book.nearest(rest)
            rest = rest - book.entries(code)
            codes.append(code)
        return torch.stack(codes, dim=1).view(*projected.shape[:2], -1).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes of the first K codebooks, `[B, K, n]`, to `[B, D, n]`."""
        books = self.codebooks
        total = books[0].entries(codes[:, 0])
        for index in range(1, codes.shape[1]):
            total = total + books[index].entries(codes[:, index])
        result: Tensor = self.output_proj(total.transpose(1, 2))
        return result


class SplitQuantizer(nn.Module):
    """The semantic codebook beside the acoustic ones; code 0 is the semantic one."""

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.rvq_first = ResidualQuantizer(config, config.semantic)
        self.rvq_rest = ResidualQuantizer(config, config.codebooks - config.semantic)
        self._semantic, self._stored = config.semantic, config.codebooks

    def encode(self, latent: Tensor, n_q: int) -> Tensor:
        """`[B, D, n]` to `[B, n_q, n]`. More codebooks only add codes, they change none."""
        self._require(n_q)
        first = self.rvq_first.encode(latent, min(n_q, self._semantic))
        if n_q <= self._semantic:
            return first
        return torch.cat((first, self.rvq_rest.encode(latent, n_q - self._semantic)), dim=1)

    def decode(self, codes: Tensor) -> Tensor:
        """`[B, K, n]`, of the first K codebooks, to `[B, D, n]`."""
        self._require(codes.shape[1])
        result = self.rvq_first.decode(codes[:, : self._semantic])
        if codes.shape[1] > self._semantic:
            result = result + self.rvq_rest.decode(codes[:, self._semantic :])
        return result

    def prepare(self) -> None:
        """Work out all entries now: a captured graph must not hold that work."""
        for book in self.rvq_first.codebooks + self.rvq_rest.codebooks:
            book.prepare()

    def _require(self, n_q: int) -> None:
        if not 1 <= n_q <= self._stored:
            raise ValueError(f"{n_q} codebooks; this codec has 1 to {self._stored}")
