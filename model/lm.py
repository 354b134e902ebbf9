"""PersonaPlex's language model: from the tokens of a frame to those of the next.

Owns the tables and heads around the two transformers, and the order of one step: read a column, choose the text,
walk the codebooks. Knows no sound, no words and no calls. B is the batch, T time in frames, D width, R rows (text,
agent codebooks, caller codebooks), S slots, b those of a step, V the text vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from model import decode, ops
from model.config import ZERO, LMConfig
from model.depformer import Depformer, DepformerLayer
from model.depformer_walk import DepformerWalk
from model.kv_cache import SlotKV
from model.streaming import WindowKind
from model.token_cache import TokenCache
from model.transformer import RMSNorm, Transformer

if TYPE_CHECKING:
    from model.kernels.embedding import Tables


class Sampler(Protocol):
    """How a token is chosen."""

    def __call__(self, logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
        """`logits [b, card]` of `row` (0 text, 1 and on audio) to ids `[b]`.

        `frame [b]` counts each slot's steps since its reset, `slots [b]` names them. Reads nothing back from the
        device.
        """
        ...


@dataclass(frozen=True, slots=True)
class Chance:
    """How audio tokens are drawn, as `SlotSampling` does it: settings of all slots, and which count for each row."""

    temperature: Tensor
    """`[S]`."""
    top_k: Tensor
    """`[S]`."""
    seed: Tensor
    """`[S]`."""
    frame: Tensor
    """`[b]`."""
    slots: Tensor
    """`[b]`."""


@runtime_checkable
class OpenSampler(Protocol):
    """A Sampler that tells how it chooses, so that audio tokens can be drawn where their logits are made."""

    def chance(self, frame: Tensor, slots: Tensor) -> Chance | None:
        """For the rows 1 and on; None where only calls can choose."""
        ...


def greedy(logits: Tensor, row: int, frame: Tensor, slots: Tensor) -> Tensor:
    """The likeliest token in float32: a Sampler without chance."""
    return logits.float().argmax(dim=-1)


@dataclass(frozen=True, slots=True)
class TeacherOutput:
    """Predictions for codes that were given whole; masks are false where there is no prediction or no target."""

    text_logits: Tensor
    """`[B, 1, T, V]`."""
    text_mask: Tensor
    """`[B, 1, T]`."""
    audio_logits: Tensor
    """`[B, R - 1, T, card]`, NaN in the last frames of delayed rows."""
    audio_mask: Tensor
    """`[B, R - 1, T]`."""


@dataclass(frozen=True, slots=True)
class StepTrace:
    """What went on inside a step. Means nothing for a slot at its step 0."""

    inputs: Tensor
    """`[b, R]`, the column the model read."""
    hidden: Tensor
    """`[b, D]`, the main transformer's normalised output."""
    text_logits: Tensor
    """`[b, V]`."""
    audio_logits: Tensor
    """`[b, steps, card]`."""
    chosen: Tensor
    """`[b, 1 + steps]`: what the sampler chose for each row, used or not."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """One frame of each slot in the batch."""

    tokens: Tensor
    """`[b, R]`, or UNGENERATED where not valid."""
    valid: Tensor
    """`[b]`: false in a slot's first steps, which emit nothing."""
    column: Tensor
    """`[b, R]`, the column of the token grid that was decided."""
    trace: StepTrace

    @property
    def text(self) -> Tensor:
        """`[b]`."""
        return self.tokens[:, 0]


class LMState:
    """What the model remembers of its slots: token grid and attention memory."""

    def __init__(self, lm: LM, slots: int, window: WindowKind, kv_dtype: torch.dtype | None = None) -> None:
        self.window = window
        self.kv = lm.transformer.cache(slots, window, kv_dtype)
        self.cache = TokenCache(lm.config, slots, self.kv.offsets.device)
        self.walk = DepformerWalk(lm, window) if self.kv.offsets.is_cuda else None
        """In place of `LM.walk`, where the sampler is open and the batch suits it."""

    def reset(self, slots: Tensor) -> None:
        """Make `slots [b]` as good as new."""
        self.kv.reset(slots)
        self.cache.reset(slots)

    def copy(self, source: int, targets: Tensor) -> None:
        """Let `targets [b]` continue from where slot `source` stands, as from a prepared prompt."""
        self.kv.copy(source, targets)
        self.cache.copy(source, targets)


class LM(nn.Module):
    """The whole language model, with its parameters named as in the published file."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        main, depth = config.transformer, config.depformer
        self.emb = nn.ModuleList(nn.Embedding(config.card + 1, main.dim) for _ in range(config.rows - 1))
        self.text_emb = nn.Embedding(config.text_card + 1, main.dim)
        self.text_linear = nn.Linear(main.dim, config.text_card, bias=False)
        self.transformer = Transformer(main)
        self.out_norm = RMSNorm(main.dim)
        self.depformer_in = nn.ModuleList(nn.Linear(main.dim, depth.dim, bias=False) for _ in range(depth.steps))
        self.depformer_emb = nn.ModuleList(nn.Embedding(config.card + 1, depth.dim) for _ in range(depth.steps - 1))
        self.depformer_text_emb = nn.Embedding(config.text_card + 1, depth.dim)
        self.depformer = Depformer(depth)
        self._tables: Tables | None = None
        """Where the embeddings lie, for the kernel that sums them up."""
        self.linears = nn.ModuleList(nn.Linear(depth.dim, config.card, bias=False) for _ in range(depth.steps))

    def keep_steps(self, count: int) -> None:
        """Let go of the weights of all depformer steps but the first `count`, before they are shrunk or walked.

        A conversation walks one voice's codebooks. `forward` needs all.
        """
        del self.depformer_in[count:], self.linears[count:], self.depformer_emb[count - 1 :]
        for module in self.depformer.layers:
            layer = cast(DepformerLayer, module)
            layer.self_attn.keep_steps(count)
            del layer.gating[count:]

    def embed(self, codes: Tensor) -> Tensor:
        """Columns of ids `[B, R, T]` to what the transformer reads, `[B, T, D]`: the sum over the rows."""
        if ops.fused(self.text_emb.weight):
            return self._embed_fused(codes)
        total = _embed(self.emb[0], codes[:, 1])
        for row, table in enumerate(self.emb[1:], start=2):
            total = total + _embed(table, codes[:, row])
        return total + _embed(self.text_emb, codes[:, 0])

    def _embed_fused(self, codes: Tensor) -> Tensor:
        from model.kernels import embedding

        weights = [*(cast(nn.Embedding, table).weight for table in self.emb), self.text_emb.weight]
        if self._tables is None or not self._tables.are(weights):
            self._tables = embedding.Tables(weights, [*range(1, self.config.rows), 0])
        batch, rows, length = codes.shape
        return embedding.embed(self._tables, codes.transpose(1, 2).reshape(-1, rows)).view(batch, length, -1)

    def forward(self, codes: Tensor) -> TeacherOutput:
        """Teacher forcing: what the model predicts for each of `codes [B, R, T]` from all before it.

        An id of ZERO (-1) is read as nothing and masked as a target.
        """
        batch, rows, length = codes.shape
        start = torch.tensor(self.config.start_ids, device=codes.device).view(1, rows, 1)
        start = start.expand(batch, rows, 1 + self.config.max_delay)
        padded = torch.cat((start, codes), dim=2)
        shift = (
            torch.arange(length, device=codes.device) - torch.tensor(self.config.delays, device=codes.device)[:, None]
        )
        delayed = padded.gather(2, (shift + start.shape[2]).expand(batch, -1, -1))
        hidden = self.out_norm(self.transformer(self.embed(torch.cat((start[:, :, :1], delayed[:, :, :-1]), dim=2))))
        tokens = delayed.transpose(1, 2).reshape(-1, rows)
        steps = self.config.depformer.steps
        audio = self.walk(hidden.flatten(0, 1), tokens[:, 0], lambda step, _: tokens[:, 1 + step], steps, "full")
        logits, known = self._undelay(audio.view(batch, length, steps, -1).transpose(1, 2))
        mask = codes != ZERO
        return TeacherOutput(self.text_linear(hidden)[:, None], mask[:, :1], logits, mask[:, 1 : 1 + steps] & known)

    def _undelay(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Shift each row of `[B, steps, T, card]` back by its delay. Returns it and what is known, `[steps, T]`."""
        length = logits.shape[2]
        result = torch.full_like(logits, float("nan"))
        known = torch.zeros(logits.shape[1:3], dtype=torch.bool, device=logits.device)
        for step, delay in enumerate(self.config.delays[1 : 1 + logits.shape[1]]):
            result[:, step, : length - delay] = logits[:, step, delay:]
            known[step, : length - delay] = True
        return result, known

    def walk(
        self, hidden: Tensor, text: Tensor, decide: Callable[[int, Tensor], Tensor], steps: int, window: WindowKind
    ) -> Tensor:
        """Walk the codebooks of a frame from `hidden [N, D]` and `text [N]`: logits `[N, steps, card]`.

        `decide(step, logits [N, card])` names the tokens `[N]` that the next step is told.
        """
        frame = self.depformer.frame(window)
        token, all_logits = text, []
        for step in range(steps):
            table = self.depformer_emb[step - 1] if step else self.depformer_text_emb
            logits = self.linears[step](frame(step, self.depformer_in[step](hidden) + _embed(table, token)))
            token = decide(step, logits)
            all_logits.append(logits)
        return torch.stack(all_logits, dim=1)

    def streaming(self, slots: int, window: WindowKind = "reference", kv_dtype: torch.dtype | None = None) -> LMState:
        """Memory for `slots` conversations, all fresh, on the weights' device. `kv_dtype`: see `Transformer.cache`."""
        return LMState(self, slots, window, kv_dtype)

    @torch.no_grad()
    def step(
        self,
        state: LMState,
        slots: Tensor | None,
        user_codes: Tensor | None,
        forced: Tensor | None = None,
        forced_mask: Tensor | None = None,
        *,
        sampler: Sampler = greedy,
        depformer_steps: int | None = None,
    ) -> StepOutput:
        """One step of `slots [b]`, all different (None: every slot, in order); the others are not touched.

        `user_codes [b, codebooks]` are the caller's. `forced [b, R]` ids are taken where `forced_mask [b, R]` is
        true, before the caller's. `depformer_steps`: None walks all that are kept, the number of one voice's suffices
        when the caller's codes are given at every step, and chooses the same agent tokens. Everything depends on
        shapes alone: the step can be captured as a CUDA graph.
        """
        steps = len(self.linears) if depformer_steps is None else depformer_steps
        offsets = state.cache.offset
        named = torch.arange(offsets.shape[0], device=offsets.device) if slots is None else slots
        opened = state.cache.begin(named, user_codes, forced, forced_mask)
        hidden = self.read_column(state, named, opened.inputs, opened.running)
        text_logits = self.text_linear(hidden)
        text = sampler(text_logits, 0, opened.offset, named)
        audio_logits, picked = self.choose_audio(
            state, hidden, text, opened.given, opened.target, sampler, opened.offset, named, steps
        )
        decided = opened.finish(picked)
        trace = StepTrace(opened.inputs, hidden, text_logits, audio_logits, picked)
        return StepOutput(decided.frame, decided.valid, decided.column, trace)

    def choose_audio(
        self,
        state: LMState,
        hidden: Tensor,
        text: Tensor,
        given: Tensor,
        told: Tensor,
        sampler: Sampler,
        frame: Tensor,
        slots: Tensor,
        steps: int,
    ) -> tuple[Tensor, Tensor]:
        """Walk the codebooks from `hidden [b, D]` and the `text [b]` chosen.

        Returns logits, `[b, steps, card]`, and all ids chosen, `[b, 1 + steps]`. Where `given [b, R]` is true the next
        step is told the id in `told [b, R]` instead.
        """
        chance = sampler.chance(frame, slots) if isinstance(sampler, OpenSampler) else None
        if state.walk is not None and chance is not None and state.walk.takes(hidden.shape[0]):
            return state.walk(hidden, text, given, told, chance, steps)
        chosen = [text]

        def decide(step: int, logits: Tensor) -> Tensor:
            chosen.append(sampler(logits, step + 1, frame, slots))
            return torch.where(given[:, step + 1], told[:, step + 1], chosen[-1])

        logits = self.walk(hidden, torch.where(given[:, 0], told[:, 0], text), decide, steps, state.window)
        return logits, torch.stack(chosen, dim=1)

    def read_column(self, state: LMState, slots: Tensor, inputs: Tensor, running: Tensor) -> Tensor:
        """Run the main transformer over `inputs [b, R]`, the next column of each of `slots [b]`: normalised, `[b, D]`.

        Where not `running [b]`, the slot's next column takes this one's place.
        """
        column = self.embed(inputs[..., None])
        if not isinstance(state.kv, SlotKV):
            return self._advance(state, slots, column, running.long())[:, 0]
        attention, rotary = state.kv.take(slots, running, self.config.transformer.max_period)
        x, branch = decode.step(self.transformer.layers, column[:, 0], rotary, attention)
        return ops.add_norm(x, branch, self.out_norm.alpha)[1]

    def _advance(self, state: LMState, slots: Tensor | None, embedded: Tensor, length: int | Tensor) -> Tensor:
        """Run the main transformer over `embedded [b, T, D]`, next in each slot's time: normalised `[b, T, D]`."""
        positions = state.kv.positions(slots, embedded.shape[1])
        hidden: Tensor = self.out_norm(self.transformer(embedded, positions, state.kv, slots))
        state.kv.advance(slots, length)
        return hidden

    @torch.no_grad()
    def prefill(self, state: LMState, slot: int, frames: Tensor, chunk: int = 256) -> Tensor | None:
        """Leave `slot` as P steps with all of `frames [R, P]` given would, in passes of `chunk` columns.

        No token is chosen. Returns the last normalised output of the main transformer, `[D]`, None where it did not
        run (one frame, from a fresh slot). Raises ValueError if the slot has a frame under way not wholly given.
        """
        inputs = state.cache.extend(slot, frames)
        return self._run(state, slot, self.embed(inputs[None]), chunk)

    @torch.no_grad()
    def read(self, state: LMState, slot: int, inputs: Tensor) -> None:
        """Let the main transformer of `slot` read what it has not read yet, all at once. The token grid stays as it is.

        `inputs` are columns of the grid, `[R, T]` ids, or what they are summed up to, `[T, D]` floats.
        """
        if inputs.numel():
            self.read_together(state, torch.tensor([slot], device=state.kv.offsets.device), inputs[None])

    @torch.no_grad()
    def read_together(self, state: LMState, slots: Tensor, inputs: Tensor, lengths: Tensor | None = None) -> None:
        """The same for `slots [B]` in one pass: `[B, R, T]` ids, or `[B, T, D]` floats.

        `lengths [B]`: how many of their T columns count, None: all. What follows them must not reach around the ring to
        positions still in sight. One slot may be named several times if nobody needs what it holds.
        """
        weight = self.text_emb.weight
        given = inputs.to(weight.device, weight.dtype) if inputs.is_floating_point() else self.embed(inputs)
        self._advance(state, slots, given, given.shape[1] if lengths is None else lengths)

    @torch.no_grad()
    def replay_voice(
        self, state: LMState, slot: int, embeddings: Tensor, tokens: Tensor, chunk: int = 256
    ) -> Tensor | None:
        """Leave fresh `slot` as a prompt of N voice frames would, from what a voice file holds.

        `embeddings [N - 1, D]` is what the transformer read, `tokens [R, C]` the grid afterwards. Returns as
        `prefill`. Raises ValueError for shapes of another model, or a slot that is not fresh.
        """
        dim, grid = self.config.transformer.dim, (self.config.rows, self.config.columns)
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise ValueError(f"voice embeddings are {list(embeddings.shape)}, not [frames, {dim}]")
        if tokens.shape != grid:
            raise ValueError(f"the voice's token grid is {list(tokens.shape)}, not {list(grid)}")
        if int(state.cache.offset[slot]):
            raise ValueError(f"slot {slot} is not fresh: a voice comes first")
        state.cache.tokens[slot] = tokens.to(state.cache.tokens)
        state.cache.mark_given(slot, embeddings.shape[0] + 1)
        weight = self.text_emb.weight
        return self._run(state, slot, embeddings.to(weight.device, weight.dtype)[None], chunk)

    @torch.no_grad()
    def record_voice(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """What `replay_voice` takes, for a voice prompt's `frames [R, N]`: `[N - 1, D]` and `[R, C]`."""
        cache = TokenCache(self.config, 1, frames.device)
        inputs = cache.extend(0, frames)
        return self.embed(inputs[None])[0], cache.tokens[0]

    def _run(self, state: LMState, slot: int, embedded: Tensor, chunk: int) -> Tensor | None:
        """Pass `embedded [1, T, D]` through the main transformer in chunks; the last output, `[D]`, if any."""
        slots = torch.tensor([slot], device=embedded.device)
        hidden = None
        for part in torch.split(embedded, chunk, dim=1):
            if part.shape[1]:
                hidden = self._advance(state, slots, part, part.shape[1])[0, -1]
        return hidden


def _embed(table: nn.Module, ids: Tensor) -> Tensor:
    """`ids [...]` to `[..., D]`; ZERO is exactly zero, other negative ids read the first entry."""
    vectors: Tensor = table(ids.clamp(min=0))
    return vectors.masked_fill((ids == ZERO)[..., None], 0.0)
