"""Reading alone: every byte of every tensor once, in one launch, wherever they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.bench.floor import ReadOnly
from model.kernels import read
from model.kernels.read import Reads

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def largest(part: Tensor) -> int:
    return int(part.contiguous().view(torch.int32).max())


def numbers(*shape: int) -> Tensor:
    return torch.randint(0, 1 << 30, shape, dtype=torch.int32, device=DEVICE)


def test_all_of_a_tensor_is_read_and_nothing_else() -> None:
    for words in (1, 4, 8191, 8192, 8193, 3 * 8192 + 5):
        part = numbers(words + 1)[:words]
        reads = Reads([part])
        reads()
        assert reads._sums.tolist() == [largest(piece) for piece in torch.split(part, 8192)]


def test_gaps_between_rows_are_left_out() -> None:
    ring = numbers(3, 4, 2500, 8)
    ring[:, :, 2000:] = 2**31 - 1
    part = ring[1][:, :2000]
    reads = Reads([part, ring[2][:2, :300]])
    reads()
    rows = [*part, *ring[2][:2, :300]]
    expected = [largest(piece) for row in rows for piece in torch.split(row.reshape(-1), 8192)]
    assert reads._sums.tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.uint8, torch.float32, torch.long])
def test_tensors_of_any_type_are_read_in_words_of_four_bytes(dtype: torch.dtype) -> None:
    parts = [torch.ones((5, 12), dtype=dtype, device=DEVICE), torch.full((7, 4), 3, dtype=dtype, device=DEVICE)]
    reads = Reads(parts)
    reads()
    assert reads._sums.tolist() == [largest(part) for part in parts]


def test_sixteen_bytes_are_read_at_once_only_of_what_lies_so() -> None:
    """Of the scales of a window of 2,999 it does not, of keys and values it does."""
    whole = numbers(64)
    for part, wide in (
        (whole[4:8], 1),
        (whole[1:5], 0),
        (whole[:5], 0),
        (whole.view(8, 8)[:, :4], 1),
        (whole.view(8, 8)[:, :3], 0),
        (numbers(4, 9)[:, :8], 0),
    ):
        reads = Reads([whole, part])
        reads()
        assert (reads.pieces[:, 1] & 1).tolist() == [1] + [wide] * (len(reads.pieces) - 1)
        assert reads._sums[0] == largest(whole)
        assert int(reads._sums[1:].max()) == largest(part)


def test_what_cannot_be_given_as_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="by itself"):
        Reads([numbers(2, 4, 4)[:, :, :2]])


def test_however_many_tensors_there_are_it_is_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch takes is no part of reading."""
    launched: list[tuple[int, ...]] = []
    kernel = read._read

    class Watched:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            launched.append(grid)
            return kernel[grid]

    monkeypatch.setattr(read, "_read", Watched())
    reads = Reads([numbers(10_000) for _ in range(50)])
    reads()
    assert launched == [(100,)]
    if DEVICE.type == "cuda":
        launched.clear()
        ReadOnly([numbers(10_000) for _ in range(50)])()
        assert launched == [(100,)]
