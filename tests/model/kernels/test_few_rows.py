"""Products for a handful of rows, with what lies before and after them, against the plain layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model import decode, fp8, ops
from model.cuda_graphs import Graph
from model.fp8_weights import Fp8Linear
from model.kernels import few_rows
from model.kernels.tiles import RowTile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = RowTile(4, 128, 4)
"""Sums of more factors than a turn has, columns that leave a program part of a tile."""
DIM, OUTER = 200, 9
NEAR = {torch.float32: 2e-5, torch.bfloat16: 2**-5}  # the interpreter cuts bfloat16 off


@pytest.fixture(autouse=True)
def _the_same_numbers() -> None:
    torch.manual_seed(8)


both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
all_counts = pytest.mark.parametrize("count", [1, 2, 3, few_rows.MOST])
both_weights = pytest.mark.parametrize("small", [False, True])


def weight_of(outer: int, inner: int, dtype: torch.dtype, small: bool) -> tuple[Tensor, few_rows.Weight]:
    """As it is multiplied, in float32, and as the kernel takes it."""
    plain = (torch.randn(outer, inner) * inner**-0.5).to(dtype)
    if not small:
        return plain.float(), (plain.to(DEVICE), None)
    codes, scale = fp8.quantise(plain * 10.0 ** torch.linspace(-2, 1, outer)[:, None])
    return codes.float() * scale[:, None], (codes.to(DEVICE), scale.to(DEVICE))


def assert_near(found: Tensor, expected: Tensor, plain: Tensor, near: float) -> None:
    """Each product to its own spread: that of its weights, of which some are a thousand times others."""
    off = (found.cpu().float() - expected).abs() / (1.0 + expected.abs() + plain.norm(dim=1))
    assert float(off.max()) < near


def normed(x: Tensor, gain: Tensor) -> Tensor:
    return ops.add_norm(x, None, gain)[1].float()


@both_types
@all_counts
@both_weights
def test_a_norm_and_a_product(count: int, dtype: torch.dtype, small: bool) -> None:
    x, gain = torch.randn(count, DIM).to(dtype), torch.randn(1, 1, DIM).to(dtype)
    plain, weight = weight_of(OUTER, DIM, dtype, small)
    found = few_rows.project_normed(x.to(DEVICE), gain.to(DEVICE), weight, ops.RMS_EPS, TILE)
    assert_near(found, functional.linear(normed(x, gain), plain), plain, NEAR[dtype])


@both_types
@all_counts
@both_weights
def test_a_norm_a_product_and_a_gate(count: int, dtype: torch.dtype, small: bool) -> None:
    x, gain = torch.randn(count, DIM).to(dtype), torch.randn(1, 1, DIM).to(dtype)
    plain, weight = weight_of(2 * OUTER, DIM, dtype, small)
    found = few_rows.project_gated(x.to(DEVICE), gain.to(DEVICE), weight, ops.RMS_EPS, TILE)
    expected = ops.silu_gate(functional.linear(normed(x, gain), plain).to(dtype))
    assert found.shape == (count, OUTER)
    assert_near(found, expected.float(), plain[:OUTER] * plain[OUTER:].norm(dim=1, keepdim=True), NEAR[dtype])


@both_types
@all_counts
@both_weights
def test_a_product_and_a_sum(count: int, dtype: torch.dtype, small: bool) -> None:
    x, residual = torch.randn(count, DIM).to(dtype), torch.randn(count, OUTER).to(dtype)
    plain, weight = weight_of(OUTER, DIM, dtype, small)
    found = few_rows.add_projected(x.to(DEVICE), weight, residual.to(DEVICE), TILE)
    assert_near(found, residual.float() + functional.linear(x.float(), plain), plain, NEAR[dtype])
    assert found.data_ptr() != residual.data_ptr(), "the next product still reads it"


def test_numbers_that_are_none_stay_in_their_row() -> None:
    x, residual = torch.randn(3, DIM), torch.randn(3, OUTER)
    plain, weight = weight_of(OUTER, DIM, torch.float32, False)
    x[1, 5] = float("nan")
    found = few_rows.add_projected(x.to(DEVICE), weight, residual.to(DEVICE), TILE).cpu()
    assert bool(found[1].isnan().all())
    expected = residual + functional.linear(x, plain)
    torch.testing.assert_close(found[::2], expected[::2], rtol=2e-5, atol=2e-5)


def test_the_kernel_takes_as_many_rows_as_a_step_gives_it_and_no_more_than_most() -> None:
    assert decode.FEW <= few_rows.MOST
    x = torch.zeros(few_rows.MOST + 1, DIM, device=DEVICE)
    with pytest.raises(ValueError, match="5 rows are more than these products take; 4 at most"):
        few_rows.add_projected(x, (torch.zeros(DIM, DIM, device=DEVICE), None), x)


class Chain:
    """The products of eight layers, one after another as in a step of one slot, but for the attention between them."""

    def __init__(self, dim: int, inner: int, dtype: torch.dtype, small: bool) -> None:
        shapes = ((dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
        made = [[weight_of(*shape, dtype, small) for shape in shapes] for _ in range(8)]
        self.plain = [[plain for plain, _ in layer] for layer in made]
        self.weights = [[weight for _, weight in layer] for layer in made]
        self.gain = torch.randn(1, 1, dim).to(dtype)
        self.gain_there = self.gain.to(DEVICE)

    def launched(self, x: Tensor) -> Tensor:
        gain = self.gain_there
        for mixing, out, opening, closing in self.weights:
            x = few_rows.add_projected(few_rows.project_normed(x, gain, mixing, ops.RMS_EPS), out, x)
            x = few_rows.add_projected(few_rows.project_gated(x, gain, opening, ops.RMS_EPS), closing, x)
        return x

    def as_written(self, x: Tensor) -> Tensor:
        for mixing, out, opening, closing in self.plain:
            x = x + functional.linear(functional.linear(normed(x, self.gain), mixing), out)
            x = x + functional.linear(ops.silu_gate(functional.linear(normed(x, self.gain), opening)), closing)
        return x


@both_weights
def test_a_chain_of_layers(small: bool) -> None:
    chain, x = Chain(20, 24, torch.float32, small), torch.randn(1, 20)
    expected = chain.as_written(x)
    off = chain.launched(x.to(DEVICE)).cpu() - expected
    assert float(off.norm() / expected.norm()) < 1e-4


@pytest.mark.skipif(DEVICE != "cuda", reason="launches overlap on a GPU only")
@both_weights
def test_launches_that_begin_early_read_what_those_before_them_wrote(
    monkeypatch: pytest.MonkeyPatch, small: bool
) -> None:
    """Two inputs in turn, in the same memory: what one read too soon would be the other's."""
    chain, inputs = Chain(1024, 2816, torch.bfloat16, small), torch.randn(2, 1, 1024, device=DEVICE).bfloat16()
    x, results, same = inputs[0].clone(), list[Tensor](), torch.ones((), dtype=torch.bool, device=DEVICE)
    graph = Graph(lambda: results.append(chain.launched(x)), torch.device(DEVICE))
    monkeypatch.setattr(few_rows, "possible", lambda _: False)
    expected = [chain.launched(each) for each in inputs]
    assert not torch.equal(*expected)
    for turn in range(100):
        x.copy_(inputs[turn % 2])
        graph.replay()
        same &= (results[-1] == expected[turn % 2]).all()
    assert bool(same)


def test_weights_of_either_kind_are_found() -> None:
    linear = torch.nn.Linear(DIM, OUTER, bias=False)
    small = Fp8Linear(linear.weight)
    assert decode._weight(linear)[1] is None
    assert decode._weight(small)[1] is small.scale
    assert decode._weight(linear.weight)[0].data_ptr() == linear.weight.data_ptr()
