"""Causal convolutions: padding, and chunks that equal the whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.mimi.conv import Carry, CausalConv1d, CausalConvTranspose1d

Layer = CausalConv1d | CausalConvTranspose1d


def in_chunks(layer: Layer, x: Tensor, lengths: list[int]) -> Tensor:
    """`layer` over `x [B, C, T]`, cut into `lengths` that add up to T."""
    rows = torch.zeros(x.shape[0], layer.carried)
    outputs = []
    start = 0
    for length in lengths:
        carry = Carry(rows)
        outputs.append(layer(x[..., start : start + length], carry))
        rows = carry.successor() if layer.carried else rows
        assert rows.shape == (x.shape[0], layer.carried)
        start += length
    assert start == x.shape[-1]
    return torch.cat(outputs, dim=-1)


@pytest.mark.parametrize("repeat_edge", [False, True])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (7, 1), (4, 2), (8, 4), (16, 8)])
@torch.no_grad()
def test_a_convolution_in_chunks_equals_the_whole(kernel: int, stride: int, repeat_edge: bool) -> None:
    torch.manual_seed(kernel)
    layer = CausalConv1d(3, 5, kernel, stride, repeat_edge=repeat_edge)
    x = torch.randn(2, 3, 10 * stride)
    whole = layer(x)
    assert whole.shape == (2, 5, 10)
    for chunks in ([10], [1] * 10, [1, 4, 2, 3], [9, 1]):
        chunked = in_chunks(layer, x, [stride * length for length in chunks])
        torch.testing.assert_close(chunked, whole, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(("kernel", "stride", "groups"), [(4, 2, 1), (4, 2, 6), (8, 4, 1), (16, 8, 1), (5, 4, 1)])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_transposed_convolution_in_chunks_equals_the_whole(kernel: int, stride: int, groups: int, bias: bool) -> None:
    torch.manual_seed(kernel)
    layer = CausalConvTranspose1d(6, 6, kernel, stride, groups=groups, bias=bias)
    x = torch.randn(2, 6, 10)
    whole = layer(x)
    inner = layer.convtr["convtr"]
    assert isinstance(inner, nn.ConvTranspose1d)
    torch.testing.assert_close(whole, inner(x)[..., : 10 * stride], rtol=0.0, atol=1e-6)
    for chunks in ([10], [1] * 10, [1, 4, 2, 3]):
        torch.testing.assert_close(in_chunks(layer, x, chunks), whole, rtol=0.0, atol=1e-6)


def test_a_kernel_that_reaches_two_steps_ahead_is_refused() -> None:
    with pytest.raises(ValueError, match="more than one step"):
        CausalConvTranspose1d(1, 1, 5, 2)


@torch.no_grad()
def test_padding_is_zeros_or_the_edge_on_both_sides() -> None:
    x = torch.tensor([[[2.0, 3.0, 5.0]]])
    for repeat_edge, padded in ((False, [0.0, 0.0, 2.0, 3.0, 5.0, 0.0]), (True, [2.0, 2.0, 2.0, 3.0, 5.0, 5.0])):
        layer = CausalConv1d(1, 1, 4, 2, bias=False, repeat_edge=repeat_edge)
        weight = layer.conv["conv"].weight
        assert isinstance(weight, Tensor)
        expected = functional.conv1d(torch.tensor([[padded]]), weight, stride=2)
        assert torch.equal(layer(x), expected)


@torch.no_grad()
def test_streams_in_one_batch_may_be_at_their_start_or_further() -> None:
    """The repeated edge is each stream's own first sample, and only at its start."""
    layer = CausalConv1d(1, 1, 4, 2, bias=False, repeat_edge=True)
    x = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(0))
    carry = Carry(torch.zeros(1, layer.carried))
    layer(x[:1, :, :4], carry)
    both = Carry(torch.cat((carry.successor(), torch.zeros(1, layer.carried))))
    second = layer(torch.cat((x[:1, :, 4:], x[1:, :, :4])), both)
    torch.testing.assert_close(second[:1], layer(x[:1])[..., 2:], rtol=0.0, atol=1e-6)
    torch.testing.assert_close(second[1:], layer(x[1:, :, :4]), rtol=0.0, atol=1e-6)
