"""The shared transformer: norms, rotation, windows, and that cutting a stream or sharing a batch changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import TransformerConfig
from model.rotary import Rotary
from model.streaming import KVCache, Window, WindowKind
from model.transformer import RMSNorm, Transformer

CONTEXT = 8
LENGTH = 30
STEPS = (1, 2)


def make(step: int = 1, *, codec: bool = False) -> Transformer:
    torch.manual_seed(0)
    if codec:
        config = TransformerConfig(24, 3, 2, CONTEXT, 40, norm="layer", mlp="gelu", layer_scale=True, step=step)
    else:
        config = TransformerConfig(24, 3, 2, CONTEXT, 40, step=step)
    return Transformer(config).eval().requires_grad_(False)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def stream(transformer: Transformer, cache: KVCache, slots: Tensor | None, x: Tensor, cut: int) -> Tensor:
    """`x [B, T, D]` in passes of `cut` positions."""
    parts = []
    for part in torch.split(x, cut, dim=1):
        parts.append(transformer(part, kv=cache, slots=slots))
        cache.advance(slots, part.shape[1])
    return torch.cat(parts, dim=1)


def labelled_ring(context: int, step: int, length: int) -> list[list[int]]:
    """Which positions each query sees in the reference: a ring of `context` cells whose labels slip when it is full.

    After a write that ends at E, cell c is labelled E + d, where d is how far c lies from the newest cell, or that
    less `context`, where c was written before. The cell after the newest, which holds the oldest key, has d = 1.
    """
    seen: list[list[int]] = []
    for end in range(step - 1, length, step):
        newest = end % context
        labels = {}
        for cell in range(context):
            distance = cell - newest if cell <= newest else cell - newest - context
            if distance == 1 - context and end + 1 >= context:
                distance = 1
            labels[cell] = end + distance
        queries = range(end - step + 1, end + 1)
        seen.extend(sorted(label for label in labels.values() if 0 <= label <= query) for query in queries)
    return seen


@pytest.mark.parametrize("step", STEPS)
def test_the_reference_window_is_a_ring_whose_labels_slip(step: int) -> None:
    window = Window(CONTEXT, "reference", step)
    first = window.first(torch.arange(LENGTH - LENGTH % step))
    for query, seen in enumerate(labelled_ring(CONTEXT, step, LENGTH - LENGTH % step)):
        assert list(range(max(0, int(first[query])), query + 1)) == seen
        assert window.first(query) == first[query]


def test_how_many_keys_a_full_ring_shows() -> None:
    late = torch.tensor([100, 101])
    assert (late - Window(CONTEXT, "full").first(late) + 1).tolist() == [CONTEXT, CONTEXT]
    assert (late - Window(CONTEXT).first(late) + 1).tolist() == [CONTEXT - 1, CONTEXT - 1]
    assert (late - Window(CONTEXT, step=2).first(late) + 1).tolist() == [CONTEXT - 2, CONTEXT - 1]


@pytest.mark.parametrize("codec", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_streaming_in_the_full_window_equals_the_whole(step: int, codec: bool) -> None:
    transformer, x = make(step, codec=codec), torch.randn(2, LENGTH, 24)
    streamed = stream(transformer, transformer.cache(2, "full"), None, x, step)
    assert_near(streamed, transformer(x))


@pytest.mark.parametrize("window", ["reference", "full"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("cut", [2, 4, CONTEXT, CONTEXT + 2, LENGTH])
def test_chunks_equal_steps(cut: int, step: int, window: WindowKind) -> None:
    transformer, x = make(step), torch.randn(1, LENGTH, 24)
    stepped, chunked = transformer.cache(1, window), transformer.cache(1, window)
    expected = stream(transformer, stepped, None, x, step)
    assert_near(stream(transformer, chunked, None, x, cut), expected)
    assert_near(chunked.keys, stepped.keys)
    assert_near(chunked.values, stepped.values)


@pytest.mark.parametrize("cut", [1, 5])
def test_slots_at_other_times_share_a_pass(cut: int) -> None:
    transformer, x = make(), torch.randn(3, LENGTH, 24)
    lead = (0, 3, 13)
    alone = [stream(transformer, transformer.cache(1), None, x[slot : slot + 1], 1)[0] for slot in range(3)]
    shared = transformer.cache(5)
    for slot, length in enumerate(lead):
        if length:
            stream(transformer, shared, torch.tensor([slot]), x[slot : slot + 1, :length], 1)
    order = [2, 0, 1]
    rest = torch.stack([x[slot, lead[slot] : lead[slot] + 15] for slot in order])
    together = stream(transformer, shared, torch.tensor(order), rest, cut)
    for row, slot in enumerate(order):
        assert_near(together[row], alone[slot][lead[slot] : lead[slot] + 15])
    assert not shared.keys[:, 3:].any()
    assert shared.offsets.tolist() == [15, 18, 28, 0, 0]


def test_slots_advance_as_far_as_told() -> None:
    cache = make().cache(3)
    cache.advance(torch.tensor([2, 0]), torch.tensor([0, 1]))
    cache.advance(None, 4)
    assert cache.offsets.tolist() == [5, 4, 4]
    assert cache.positions(torch.tensor([1, 0]), 2).tolist() == [[4, 5], [5, 6]]


def test_the_norm_adds_its_epsilon_inside_the_root() -> None:
    norm = RMSNorm(4)
    norm.alpha.data[:] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x = torch.tensor([1e-4, -1e-4, 1e-4, 1e-4])
    expected = x * norm.alpha.data[0, 0] / math.sqrt(1e-8 + 1e-8)
    torch.testing.assert_close(norm(x), expected)


def test_the_norm_is_float32_inside() -> None:
    x = torch.randn(5, 64).bfloat16()
    norm = RMSNorm(64)
    assert torch.equal(norm(x), norm(x.float()).bfloat16())


def test_neighbours_turn_by_position_times_frequency() -> None:
    x = torch.randn(1, 1, 3, 8)
    turned = Rotary(torch.tensor([[0, 1, 1000]]), 8, 10_000.0)(x)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    numbers = torch.view_as_complex(x.double().view(3, 4, 2))
    for row, position in enumerate((0, 1, 1000)):
        angle = torch.tensor([position * 10_000 ** (-2 * i / 8) for i in range(4)], dtype=torch.float64)
        expected = torch.view_as_real(numbers[row] * torch.polar(torch.ones_like(angle), angle)).flatten()
        torch.testing.assert_close(turned[0, 0, row].double(), expected, rtol=0, atol=2e-4)
