"""The split residual quantiser against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.config import QuantizerConfig
from model.mimi.quantizer import Codebook, SplitQuantizer
from tests.model.mimi.tiny import CONFIG, random_mimi

SMALLEST_USAGE = 1e-5


def filled_codebook(bins: int = 50, dimension: int = 4) -> Codebook:
    torch.manual_seed(0)
    book = Codebook(bins, dimension)
    book.cluster_usage.uniform_(0.1, 9.0)
    book.embedding_sum.normal_()
    return book


def centroids(book: Codebook) -> Tensor:
    return book.embedding_sum / torch.clamp(book.cluster_usage, min=SMALLEST_USAGE)[:, None]


def test_the_nearest_entry_has_the_smallest_distance() -> None:
    book = filled_codebook()
    x = torch.randn(300, 4)
    distances = (x.double()[:, None] - centroids(book).double()).norm(dim=-1)
    assert torch.equal(book.nearest(x), distances.argmin(dim=1))
    assert torch.equal(book.entries(book.nearest(x)), centroids(book)[distances.argmin(dim=1)])


def test_an_entry_hardly_used_is_divided_by_the_smallest_usage() -> None:
    """Clamped, not shifted: an entry in normal use is divided by just its usage."""
    book = filled_codebook()
    book.cluster_usage[:3] = torch.tensor([0.0, 1e-7, 2e-5])
    entries = book.entries(torch.arange(3))
    expected = book.embedding_sum[:3].double() / torch.tensor([[1e-5], [1e-5], [2e-5]], dtype=torch.double)
    torch.testing.assert_close(entries.double(), expected, rtol=1e-6, atol=0.0)


def test_the_first_of_equal_entries_wins() -> None:
    book = filled_codebook()
    book.embedding_sum[[7, 20, 33]] = book.embedding_sum[7].clone()
    book.cluster_usage[[20, 33]] = book.cluster_usage[7].clone()
    assert book.nearest(centroids(book)[[33, 20, 7]]).tolist() == [7, 7, 7]


def test_entries_follow_sums_loaded_later() -> None:
    """Filled in place, or put in place of what was there."""
    book, other = filled_codebook(), filled_codebook()
    other.embedding_sum += 1.0
    every = torch.arange(50)
    assert not torch.equal(book.entries(every), centroids(other))
    book.load_state_dict(other.state_dict())
    assert torch.equal(book.entries(every), centroids(other))
    other.embedding_sum -= 2.0
    book.load_state_dict({name: tensor.clone() for name, tensor in other.state_dict().items()}, assign=True)
    assert torch.equal(book.entries(every), centroids(other))
    book.double()
    assert book.entries(every).dtype == torch.double


def test_codes_are_two_residual_quantisers_of_one_latent() -> None:
    quantizer = random_mimi().quantizer
    latent = 3.0 * torch.randn(2, CONFIG.quantizer.input_dimension, 5)
    codes = quantizer.encode(latent, 12)
    total = torch.zeros_like(latent)
    for side, columns in ((quantizer.rvq_first, codes[:, :1]), (quantizer.rvq_rest, codes[:, 1:])):
        rest = side.input_proj(latent)
        summed = torch.zeros_like(rest)
        for book, code in zip(side.codebooks, columns.unbind(1), strict=False):
            entry = centroids(book)[code].transpose(1, 2)
            distances = (rest.transpose(1, 2)[:, :, None] - centroids(book)).norm(dim=-1)
            assert torch.equal(code, distances.argmin(dim=-1))
            rest = rest - entry
            summed = summed + entry
        total = total + side.output_proj(summed)
    torch.testing.assert_close(quantizer.decode(codes), total)


def test_the_semantic_code_alone_can_be_had_and_decoded() -> None:
    quantizer = random_mimi().quantizer
    latent = torch.randn(1, CONFIG.quantizer.input_dimension, 5)
    codes = quantizer.encode(latent, 1)
    assert codes.shape == (1, 1, 5)
    torch.testing.assert_close(quantizer.decode(codes), quantizer.rvq_first.decode(codes))


@pytest.mark.parametrize("n_q", [0, -1, 4])
def test_codebooks_that_are_not_there_are_refused(n_q: int) -> None:
    quantizer = SplitQuantizer(QuantizerConfig(dimension=2, codebooks=3, bins=4, input_dimension=2))
    with pytest.raises(ValueError, match="1 to 3"):
        quantizer.encode(torch.zeros(1, 2, 1), n_q)
