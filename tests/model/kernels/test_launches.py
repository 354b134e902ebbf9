"""How many launches a step of the published model is: each costs about 2 us beyond its work, 12.5 times a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from model.bench.models import RandomVocabulary, Sizes, random_models, sizes_of
from model.config import personaplex_7b
from model.conversation import Models
from model.engine import Stepper
from model.lm import LM
from model.mimi.codec import Mimi
from tests.model.kernels.launches import Launches, counting

A_LAYER = {1: 5, 64: 8}
"""By the slots of a step."""
OUTSIDE = 15
"""Of the language model without its walk of the codebooks: embedding, positions, attention's counters, last norm, text
head, its draw, words, and the two ends of the token grid; of the engine, the two ends of a step."""
WHOLE = 500
LEAST = 200
"""The layers of the main transformer alone are 160."""
BATCHES = (1, 2, 8, 64)
"""Of one slot, of a handful of rows, and of more, which take other kernels."""


@pytest.fixture(scope="module")
def published() -> Models:
    """At the published sizes, without memory."""
    sizes = sizes_of("full")
    with torch.device("meta"):
        lm, mimi = LM(sizes.lm).to(sizes.dtype), Mimi(sizes.mimi)
    for network in (lm, mimi):
        network.eval().requires_grad_(False)
    return Models(lm, mimi, RandomVocabulary(sizes.lm.text_card))


def stepper_of(models: Models, batch: int) -> Stepper:
    stepper = Stepper(models, batch, kv_dtype=torch.bfloat16)
    buffers = stepper._buffers[batch] = stepper._buffer(batch)
    for name in ("slots", "pcm", "forced", "mask", "tokens", "sound"):
        setattr(buffers, name, getattr(buffers, name).to("meta"))
    return stepper


def left_out(patch: pytest.MonkeyPatch, launches: Launches, owner: Any, name: str) -> None:
    """Let what a method launches not be counted."""
    work: Callable[..., Any] = getattr(owner, name)

    def uncounted(*args: Any, **kwargs: Any) -> Any:
        before = launches.by_name.copy()
        result = work(*args, **kwargs)
        launches.by_name = before
        return result

    patch.setattr(owner, name, uncounted)


@pytest.mark.parametrize("batch", [1, 64])
def test_what_a_step_launches_outside_codec_and_codebooks(
    published: Models, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = stepper_of(published, batch)
    with counting(monkeypatch):
        stepper._run(batch)  # what is made once is made now
    with counting(monkeypatch) as launches, monkeypatch.context() as patch:
        for owner, name in ((Mimi, "encode_traced"), (Mimi, "decode_step"), (LM, "walk")):
            left_out(patch, launches, owner, name)
        stepper._run(batch)
    layers = published.config.transformer.layers
    assert launches.count <= layers * A_LAYER[batch] + OUTSIDE, launches.by_name


def test_views_and_memory_are_not_counted_and_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, 6, device="meta")
    with counting(monkeypatch) as launches:
        y = x.view(6, 4).T[1:].unbind(0)[0]
        torch.empty_like(y)
        assert launches.count == 0
        torch.cat((y, y)).mul_(2.0)
        x.T.contiguous()
    assert launches.count == 3
    assert set(launches.by_name) == {"aten.cat.default", "aten.mul_.Tensor", "aten.clone.default"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_captured_step_of_the_published_structure() -> None:
    """All layers, codebooks and rows of the published model, its widths a hundredth."""
    tiny, full = sizes_of("tiny"), personaplex_7b()
    lm = replace(
        tiny.lm,
        transformer=replace(tiny.lm.transformer, layers=full.transformer.layers),
        depformer=replace(tiny.lm.depformer, layers=full.depformer.layers),
    )
    mimi = replace(
        tiny.mimi, transformer=replace(tiny.mimi.transformer, layers=sizes_of("full").mimi.transformer.layers)
    )
    models = random_models(Sizes(lm, mimi, torch.bfloat16), torch.device("cuda"))
    stepper = Stepper(models, BATCHES[-1], kv_dtype=torch.bfloat16, batches=BATCHES)
    nodes = {batch: stepper.launches(batch) for batch in BATCHES}
    # None would mean that this torch keeps no graph to count in.
    assert all(count is not None and LEAST < count < WHOLE for count in nodes.values()), nodes
