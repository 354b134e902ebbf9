"""The codec's kernels one by one, in the forms and sizes that a tiny codec's step does not take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.kernels import codec_attention, codec_chunk, codec_codes, codec_rows
from model.kernels.codec_product import Edge, Out, product
from model.kernels.codec_tiles import SearchTile, Tile
from model.mimi.quantizer import Codebook
from model.rotary import Rotary
from model.streaming import KVCache, Window, WindowKind

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NEAR = 1e-5


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=NEAR, atol=NEAR)


@pytest.mark.parametrize(("count", "outer", "inner"), [(1, 50, 300), (3, 40, 77), (70, 20, 130)])
def test_a_linear_layer_with_all_that_goes_with_it(count: int, outer: int, inner: int) -> None:
    x, weight, residual = draw(count, inner), draw(outer, inner, seed=1) / inner**0.5, draw(count, outer, seed=2)
    gains, scale = (draw(inner, seed=3), draw(inner, seed=4)), draw(outer, seed=5)
    plain, active = torch.empty_like(residual), torch.empty_like(residual)
    out = Out(plain, active, bias=scale, gelu=True, gain=scale, residual=residual)
    laid_out = weight if count == 3 else weight.T.contiguous().T
    product(3 + x, laid_out, out, length=1, hop=inner, norm=gains)
    normed = functional.layer_norm(3 + x, (inner,), *gains)
    expected = residual + scale * functional.gelu(functional.linear(normed, weight, scale))
    near(plain, expected)
    near(active, functional.elu(expected))


@pytest.mark.parametrize(("count", "outer", "inner"), [(2, 32, 300), (70, 64, 130)])
def test_tf32_is_near(count: int, outer: int, inner: int) -> None:
    x, weight = draw(count, inner), draw(outer, inner, seed=1) / inner**0.5
    result = torch.empty(count, outer, device=DEVICE)
    product(x, weight, Out(result), length=1, hop=inner, precision="tf32")
    torch.testing.assert_close(result, functional.linear(x, weight), rtol=0, atol=1e-2)


@pytest.mark.parametrize("cut", [Tile(64, 64, 1, 32, 4, 3, "tf32x3"), Tile(16, 16, 8, 32, 8, 3, "tf32x3")])
def test_three_products_of_halves_are_as_exact_as_float32(cut: Tile) -> None:
    """On a GPU; the interpreter makes one product of them."""
    x, weight = draw(70, 1536), draw(96, 1536, seed=1) / 1536**0.5
    exact = x.double() @ weight.double().T
    off = []
    for way in (cut, Tile(32, 32, 1, 32, 2, 3, "fma")):
        result = torch.empty(70, 96, device=DEVICE)
        product(x, weight, Out(result), length=1, hop=1536, cut=way)
        off.append(float((result.double() - exact).square().mean().sqrt()))
    assert off[0] < 1.5 * off[1] < 1e-5


@pytest.mark.parametrize("begun", [0.0, 1.0])
def test_a_convolution_whose_first_input_is_repeated(begun: float) -> None:
    """Kernel 4, stride 2, three channels; the flag lies in the same rows."""
    rows = draw(2, 32)
    rows[:, 20] = torch.tensor([begun, 1.0])
    source, weight, result = rows[:, :18], draw(5, 12), torch.empty(2, 10, device=DEVICE)
    product(source, weight, Out(result), length=2, hop=6, edge=Edge(rows[:, 20:], 6, 3))
    before = torch.where(rows[:, 20:21] > 0, source[:, :6], source[:, 6:9].repeat(1, 2))
    whole = torch.cat((before, source[:, 6:]), dim=1)
    near(result, whole.unfold(1, 12, 6).matmul(weight.T).flatten(1))


def test_near_zero_an_elu_is_exact() -> None:
    """exp(x) - 1 would lose all digits there."""
    x = -torch.logspace(-9, 1, 64, device=DEVICE)[:, None]
    active = torch.empty_like(x)
    product(x, torch.ones(1, 1, device=DEVICE), Out(elu=active), length=1, hop=1)
    torch.testing.assert_close(active, functional.elu(x), rtol=1e-6, atol=0)


def test_of_what_is_no_number_an_elu_is_none() -> None:
    """Made 0 there, it would be a sound nobody made, and the step would not tell of it."""
    x = torch.tensor([[float("nan")], [2.0]], device=DEVICE)
    active = torch.empty_like(x)
    product(x, torch.ones(1, 1, device=DEVICE), Out(elu=active), length=1, hop=1)
    assert active.isnan().tolist() == [[True], [False]]


@pytest.mark.parametrize("kind", ["reference", "full"])
@pytest.mark.parametrize(("heads", "head_dim", "context"), [(2, 6, 7), (1, 16, 70)])
def test_attention_sees_what_the_plain_one_sees(heads: int, head_dim: int, context: int, kind: WindowKind) -> None:
    """Fresh, short, exactly full, just wrapped and long-lived slots, in one batch and in any order."""
    lengths = [0, 2, context - context % 2, context + 1 + context % 2, 10 * context]
    cache = KVCache(layers=1, slots=6, heads=heads, head_dim=head_dim, window=Window(context, kind, 2))
    for ring in cache.rings():
        ring.normal_()
    cache.offsets[:5] = torch.tensor(lengths)
    slots = torch.tensor([3, 1, 0, 4, 2])
    joined = torch.randn(5, 2, 3, heads, head_dim)
    offsets, keys, values = (part.to(DEVICE, copy=True) for part in (cache.offsets, cache.keys[0], cache.values[0]))
    result = torch.empty(5, 2, heads, head_dim, device=DEVICE)
    frequency = 10_000.0 ** (-torch.arange(head_dim // 2, device=DEVICE) * 2 / head_dim)
    codec_attention.attend(joined.to(DEVICE), frequency, slots.to(DEVICE), offsets, keys, values, cache.window, result)

    positions = cache.positions(slots, 2)
    rotary = Rotary(positions, head_dim, 10_000.0)
    query, key, value = joined.permute(2, 0, 3, 1, 4)
    expected = cache.begin(positions, slots).attend(0, rotary(query), rotary(key), value)
    torch.testing.assert_close(result.cpu(), expected.transpose(1, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(keys.cpu(), cache.keys[0], rtol=0, atol=1e-4)
    assert torch.equal(values.cpu(), cache.values[0])


@pytest.mark.parametrize("kind", ["reference", "full"])
@pytest.mark.parametrize(("heads", "head_dim", "context", "length"), [(2, 6, 7, 7), (2, 6, 70, 4), (1, 16, 131, 130)])
def test_new_positions_see_the_ring_and_themselves(
    heads: int, head_dim: int, context: int, length: int, kind: WindowKind
) -> None:
    """More new positions than a program takes queries or keys, slots of all ages; then all layers are stored."""
    lengths = [0, 2, context - context % 2, context + 1 + context % 2, 10 * context]
    cache = KVCache(layers=2, slots=6, heads=heads, head_dim=head_dim, window=Window(context, kind, 2))
    for ring in cache.rings():
        ring.normal_()
    cache.offsets[:5] = torch.tensor(lengths)
    slots = torch.tensor([3, 1, 0, 4, 2])
    joined = torch.randn(2, 5, length, 3, heads, head_dim)
    offsets, keys, values = (part.to(DEVICE, copy=True) for part in (cache.offsets, cache.keys, cache.values))
    result = torch.empty(2, 5, length, heads, head_dim, device=DEVICE)
    frequency = 10_000.0 ** (-torch.arange(head_dim // 2, device=DEVICE) * 2 / head_dim)
    given, new = slots.to(DEVICE), joined.to(DEVICE)
    turn = codec_chunk.turns(given, offsets, frequency, length)
    for layer in range(2):
        memory = offsets, keys[layer], values[layer], cache.window
        codec_chunk.attend(new[layer], turn, given, *memory, result[layer])
    codec_chunk.store(new, turn, given, offsets, keys, values)

    positions = cache.positions(slots, length)
    rotary, pass_ = Rotary(positions, head_dim, 10_000.0), cache.begin(positions, slots)
    for layer in range(2):
        query, key, value = joined[layer].permute(2, 0, 3, 1, 4)
        expected = pass_.attend(layer, rotary(query), rotary(key), value)
        torch.testing.assert_close(result[layer].cpu(), expected.transpose(1, 2), rtol=0, atol=1e-4)
    torch.testing.assert_close(keys.cpu(), cache.keys, rtol=0, atol=1e-4)
    assert torch.equal(values.cpu(), cache.values)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: the interpreter rounds nothing")
def test_a_pass_in_tf32_is_near() -> None:
    cache = KVCache(layers=1, slots=2, heads=2, head_dim=64, window=Window(250, "reference", 2), device=DEVICE)
    joined, slots = draw(1, 50, 3, 2, 64), torch.ones(1, dtype=torch.long, device=DEVICE)
    turn = codec_chunk.turns(slots, cache.offsets, draw(32).abs(), 50)
    results = []
    for precision in ("ieee", "tf32"):
        results.append(torch.empty(1, 50, 2, 64, device=DEVICE))
        memory = cache.offsets, cache.keys[0], cache.values[0], cache.window
        codec_chunk.attend(joined, turn, slots, *memory, results[-1], precision)
    torch.testing.assert_close(*results, rtol=0, atol=1e-2)
    assert not torch.equal(*results)


def test_positions_are_doubled_with_the_one_before_each() -> None:
    x, weight, rows = draw(2, 3, 40), draw(40, 1, 4, seed=1), draw(3, 64, seed=2)
    slots, result = torch.tensor([2, 0], device=DEVICE), torch.empty(2, 6 * 40, device=DEVICE)
    before, after = rows[slots, :40], rows.clone()
    after[slots, :40] = x[:, -1]
    codec_rows.double(x, weight, rows, slots, result)
    joined = torch.cat((before[:, None], x), dim=1).transpose(1, 2)
    whole = functional.conv_transpose1d(joined, weight, stride=2, groups=40)[..., 2:8]
    near(result, whole.transpose(1, 2).flatten(1))
    assert torch.equal(rows, after)


def book(bins: int, dim: int, seed: int) -> Codebook:
    made = Codebook(bins, dim)
    made.embedding_sum.copy_(torch.randn(bins, dim, generator=torch.Generator().manual_seed(seed)))
    return made


@pytest.mark.parametrize("cut", [None, SearchTile(16, 64, 1, 4, "tf32x3")])
@pytest.mark.parametrize(("books", "slots", "columns"), [(1, 3, 1), (3, 4, 5)])
def test_the_search_finds_what_one_codebook_after_the_other_finds(
    books: int, slots: int, columns: int, cut: SearchTile | None
) -> None:
    dim = 40
    made = [book(150, dim, seed) for seed in range(books)]
    entries, squares = (torch.stack(parts) for parts in zip(*(one.table() for one in made), strict=True))
    projected = 2 * torch.randn(slots, columns, 2, dim, generator=torch.Generator().manual_seed(9))
    turned = entries.transpose(1, 2).contiguous()
    found = codec_codes.search(*(part.to(DEVICE) for part in (projected, entries, turned, squares)), cut=cut).cpu()
    semantic, rest = projected.flatten(0, 1).unbind(1)
    expected = [made[0].nearest(semantic)]
    for one in made[1:]:
        expected.append(one.nearest(rest))
        rest = rest - one.entries(expected[-1])
    assert torch.equal(found.flatten(0, 1), torch.stack(expected, dim=1))


def test_of_equal_entries_the_first_is_found() -> None:
    """In one block and in different ones."""
    entries = torch.zeros(2, 150, 8, device=DEVICE)
    entries[:, [140, 70, 75, 149]] = 1.0
    columns, squares = entries.transpose(1, 2).contiguous(), entries.square().sum(2) / 2
    found = codec_codes.search(torch.ones(2, 1, 2, 8, device=DEVICE), entries, columns, squares)
    assert found.tolist() == [[[70, 70]], [[70, 70]]]
