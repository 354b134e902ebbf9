"""Mimi: 24 kHz mono sound to 12.5 columns of codes a second, and back.

Owns the order of the stages, whole and streaming, and the memory that streams need. Knows no calls and no language
model. B is the batch, n the number of 80 ms frames (1,920 samples), K codebooks, D the width inside.

    stage                 rate     type      products
    SEANet encoder        25 Hz    float32   full float32: a code must not flip
    encoder transformer   25 Hz    float32   full float32; keys and values too
    downsample            12.5 Hz  float32   full float32
    quantiser, encoding   12.5 Hz  int64     full float32
    quantiser, decoding   12.5 Hz  float32   full float32, unless `decoder_tf32`
    upsample              25 Hz    float32   as above
    decoder transformer   25 Hz    float32   as above; keys and values float32
    SEANet decoder        24 kHz   float32   as above

On a GPU frames go through `model.mimi.step`: one of each slot in 125 launches where this takes 869 operations, several
in 130. There "full float32" means as exact as float32, in another order: where there are more than a few rows, sums of
32 factors or more are three products of halves on tensor cores (`model.kernels.codec_tiles`); everything else is
float32 itself. With `decoder_tf32` the decoder's are TF32 where tensor cores make them. More frames at once than a
window shows, 125, take the way through the layers there too.

Streaming works on any slots, in any order, and touches no other. Nothing in a step waits for the device or depends
on data in its shape, so that a step can be captured as a CUDA graph. Slot ids in a step are distinct, save those of
a slot whose contents nobody needs (padding a batch to a fixed size).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import MimiConfig
from model.mimi.conv import Carry, CausalConv1d, CausalConvTranspose1d
from model.mimi.precision import full_float32
from model.mimi.quantizer import SplitQuantizer
from model.mimi.seanet import SeanetDecoder, SeanetEncoder
from model.streaming import KVCache, WindowKind
from model.transformer import Transformer

if TYPE_CHECKING:
    from model.mimi.step import Decoder, Encoder


class MimiState:
    """What `slots` streams carry from step to step, the encoder's side and the decoder's.

    encoder_rows, decoder_rows: `[slots, floats]` of the convolutions; encoder_kv, decoder_kv: the transformers'. step:
    what frames go through in place of the layers, where there is a GPU; captured graphs read its weights.
    """

    def __init__(
        self,
        encoder_rows: Tensor,
        encoder_kv: KVCache,
        decoder_rows: Tensor,
        decoder_kv: KVCache,
        step: tuple[Encoder, Decoder] | None,
    ) -> None:
        self.encoder_rows, self.encoder_kv = encoder_rows, encoder_kv
        self.decoder_rows, self.decoder_kv = decoder_rows, decoder_kv
        self.step = step

    def reset(self, slot_ids: Tensor) -> None:
        """Make `slot_ids [b]` as good as new, on both sides."""
        for rows, kv in ((self.encoder_rows, self.encoder_kv), (self.decoder_rows, self.decoder_kv)):
            rows.index_fill_(0, slot_ids, 0.0)
            kv.reset(slot_ids)


class Mimi(nn.Module):
    """The codec. Module and parameter names are those of the published checkpoint.

    `decoder_tf32` leaves the decoder's products as the process has them (torch's default: TF32 in convolutions), and
    has tensor cores make all of them in TF32 in the step of a GPU. That is faster and not exact; no code depends on it.
    """

    def __init__(self, config: MimiConfig, *, decoder_tf32: bool = False) -> None:
        super().__init__()
        self.config = config
        self.decoder_tf32 = decoder_tf32
        width, stride = config.seanet.dimension, config.resample_stride
        self.encoder = SeanetEncoder(config.seanet)
        self.encoder_transformer = nn.ModuleDict({"transformer": Transformer(config.transformer)})
        down = CausalConv1d(width, width, 2 * stride, stride, bias=False, repeat_edge=True)
        self.downsample = nn.ModuleDict({"conv": down})
        self.quantizer = SplitQuantizer(config.quantizer)
        up = CausalConvTranspose1d(width, width, 2 * stride, stride, groups=width, bias=False)
        self.upsample = nn.ModuleDict({"convtr": up})
        self.decoder_transformer = nn.ModuleDict({"transformer": Transformer(config.transformer)})
        self.decoder = SeanetDecoder(config.seanet)
        self.frame_size = math.prod(config.seanet.ratios) * stride
        """Samples of a frame."""
        self.fused: bool | None = None
        """Whether frames take the few launches of `model.mimi.step`; None: where the weights are on a GPU."""
        self._step: tuple[Encoder, Decoder] | None = None
        self._step_of: object = None

    @torch.no_grad()
    def encode(self, pcm: Tensor, n_q: int | None = None) -> Tensor:
        """A whole sound `[B, 1, samples]` to codes `[B, n_q, ceil(samples / frame_size)]`.

        `n_q` is 8 unless told; all that are stored can be had. Attention sees the full window, where streaming
        sees one position less once it is full: the two agree up to there.
        """
        if pcm.ndim != 3 or pcm.shape[1] != 1 or pcm.shape[2] == 0:
            raise ValueError(f"sound of shape {tuple(pcm.shape)}, not [batch, 1, samples]")
        _require_float(pcm)
        with full_float32():
            x = _along_time(self.encoder_transformer, self.encoder(pcm))
            latent = self.downsample["conv"](x)
            return self.quantizer.encode(latent, self.config.active if n_q is None else n_q)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Whole codes `[B, K, n]`, of the first K codebooks, to sound `[B, 1, n * frame_size]`. See `encode`."""
        _require_codes(codes)
        with self._decoder_precision():
            x = self.upsample["convtr"](self.quantizer.decode(codes))
            result: Tensor = self.decoder(_along_time(self.decoder_transformer, x))
            return result

    def _decoder_precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self.decoder_tf32 else full_float32()

    def streaming(self, slots: int, window: WindowKind = "reference") -> MimiState:
        """Memory for `slots` streams, all as good as new, on the weights' device."""
        self.quantizer.prepare()
        weight = next(self.parameters())
        encoder = self.encoder.carried + _carried(self.downsample)
        decoder = _carried(self.upsample) + self.decoder.carried
        return MimiState(
            torch.zeros(slots, encoder, dtype=weight.dtype, device=weight.device),
            _transformer(self.encoder_transformer).cache(slots, window),
            torch.zeros(slots, decoder, dtype=weight.dtype, device=weight.device),
            _transformer(self.decoder_transformer).cache(slots, window),
            self._prepared_step(),
        )

    @torch.no_grad()
    def _prepared_step(self) -> tuple[Encoder, Decoder] | None:
        """The weights in the form that the kernels need, made anew where they have changed."""
        weight = next(self.parameters())
        if not (weight.is_cuda if self.fused is None else self.fused):
            return None
        from model.mimi import step  # only here: it needs Triton

        weights = [(tensor.data_ptr(), tensor._version) for tensor in (*self.parameters(), *self.buffers())]
        now = (self.decoder_tf32, weights)
        if self._step_of != now:
            self._step, self._step_of = step.both_sides(self) if step.fits(self.config) else None, now
        return self._step

    def _few(self, frames: int, books: int) -> bool:
        """Whether kernels take so many frames of so many codebooks: a window shows all of their positions at once."""
        shown = frames * self.config.resample_stride <= self.config.transformer.context
        return shown and 1 <= books <= self.config.active

    @torch.no_grad()
    def encode_step(self, state: MimiState, slot_ids: Tensor, pcm: Tensor, n_q: int | None = None) -> Tensor:
        """The next frames of `slot_ids [b]`, `[b, 1, frame_size * n]`, to their codes `[b, n_q, n]`.

        Frames at once or one by one give the same. `n_q` is 8 unless told.
        """
        return self.encode_traced(state, slot_ids, pcm, n_q)[0]

    @torch.no_grad()
    def encode_traced(
        self, state: MimiState, slot_ids: Tensor, pcm: Tensor, n_q: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `encode_step`, and the latents that the codes are nearest to, `[b, ...]`.

        Some code is the nearest to numbers that are none, too: only the latents tell of them.
        """
        if pcm.ndim != 3 or pcm.shape[1] != 1 or pcm.shape[2] == 0 or pcm.shape[2] % self.frame_size:
            raise ValueError(f"sound of shape {tuple(pcm.shape)}, not [slots, 1, a multiple of {self.frame_size}]")
        _require_float(pcm)
        _require_slots(slot_ids, pcm)
        n_q = self.config.active if n_q is None else n_q
        if state.step is not None and self._few(pcm.shape[2] // self.frame_size, n_q):
            return state.step[0](state, slot_ids, pcm, n_q)
        with full_float32():
            carry = Carry(state.encoder_rows.index_select(0, slot_ids))
            x = self.encoder(pcm, carry)
            x = _along_time(self.encoder_transformer, x, state.encoder_kv, slot_ids)
            latent = self.downsample["conv"](x, carry)
            state.encoder_rows.index_copy_(0, slot_ids, carry.successor())
            return self.quantizer.encode(latent, n_q), latent

    @torch.no_grad()
    def decode_step(self, state: MimiState, slot_ids: Tensor, codes: Tensor) -> Tensor:
        """The next columns of `slot_ids [b]`, codes `[b, K, n]`, to their sound `[b, 1, n * frame_size]`."""
        _require_codes(codes)
        _require_slots(slot_ids, codes)
        if state.step is not None and self._few(codes.shape[2], codes.shape[1]):
            return state.step[1](state, slot_ids, codes)
        with self._decoder_precision():
            carry = Carry(state.decoder_rows.index_select(0, slot_ids))
            x = self.upsample["convtr"](self.quantizer.decode(codes), carry)
            x = _along_time(self.decoder_transformer, x, state.decoder_kv, slot_ids)
            result: Tensor = self.decoder(x, carry)
            state.decoder_rows.index_copy_(0, slot_ids, carry.successor())
            return result

    @torch.no_grad()
    def remember(self, state: MimiState, slot_ids: Tensor, codes: Tensor) -> None:
        """As `decode_step`, for sound that nobody hears: what is decoded next is the same after both.

        The transformer remembers hundreds of positions and the convolutions few, so that these take the last ones only.
        """
        _require_codes(codes)
        _require_slots(slot_ids, codes)
        if state.step is not None and self._few(codes.shape[2], codes.shape[1]):
            state.step[1].remember(state, slot_ids, codes)
            return
        with self._decoder_precision():
            carry = Carry(state.decoder_rows.index_select(0, slot_ids))
            x = self.upsample["convtr"](self.quantizer.decode(codes), carry)
            x = _along_time(self.decoder_transformer, x, state.decoder_kv, slot_ids)
            self.decoder(x[..., -self.decoder.reach :], carry)
            state.decoder_rows.index_copy_(0, slot_ids, carry.successor())


def _transformer(holder: nn.ModuleDict) -> Transformer:
    transformer = holder["transformer"]
    assert isinstance(transformer, Transformer)
    return transformer


def _carried(holder: nn.ModuleDict) -> int:
    return sum(layer.carried for layer in holder.values() if isinstance(layer, CausalConv1d | CausalConvTranspose1d))


def _along_time(holder: nn.ModuleDict, x: Tensor, kv: KVCache | None = None, slots: Tensor | None = None) -> Tensor:
    """A transformer over `[B, D, T]`, to the same: whole, or as the next positions of `slots [B]`."""
    result: Tensor = _transformer(holder)(x.transpose(1, 2), kv=kv, slots=slots)
    if kv is not None:
        kv.advance(slots, x.shape[2])
    return result.transpose(1, 2)


def _require_float(pcm: Tensor) -> None:
    if pcm.dtype != torch.float32:
        raise ValueError(f"sound is float32 in -1..1, not {pcm.dtype}")


def _require_codes(codes: Tensor) -> None:
    if codes.ndim != 3 or codes.shape[2] == 0 or codes.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"codes are integers [batch, codebooks, columns], not {codes.dtype} {tuple(codes.shape)}")


def _require_slots(slot_ids: Tensor, data: Tensor) -> None:
    if slot_ids.shape != data.shape[:1] or slot_ids.dtype != torch.int64:
        raise ValueError(f"slot ids are int64 [{data.shape[0]}], not {slot_ids.dtype} {tuple(slot_ids.shape)}")
