"""The walk in one launch, where a model has let go of the weights of the steps that no conversation walks."""

from __future__ import annotations

import pytest
import torch

from model.fp8_weights import shrink
from tests.model.kernels.test_depformer import Frame, walked
from tests.model.tiny import CONFIG, VOICE, random_lm


@pytest.mark.parametrize("small", [False, True], ids=["float32", "fp8"])
@pytest.mark.parametrize("count", [1, 3])
def test_it_walks_as_with_the_weights_of_all_steps(count: int, small: bool) -> None:
    whole, half = random_lm(1, CONFIG), random_lm(1, CONFIG)
    half.keep_steps(VOICE)
    frame = Frame(whole, count)
    if small:
        whole, half = (shrink(lm, "cpu") for lm in (whole, half))
    for seen, expected in zip(walked(half, frame, VOICE), walked(whole, frame, VOICE), strict=True):
        assert torch.equal(seen, expected)
