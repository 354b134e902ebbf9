"""What the codec hears after it was given a caller's newest sound again, as when a call is taken over.

With the published window: 250 positions at 25 Hz, 125 frames, 10 s. Each layer sees that far back, so that the second
one depends on sound from before: exact it is where two windows are heard again, not where one is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soxr
import torch
from torch import Tensor

from model.config import mimi_from_json, mimi_full
from model.history import CODEC_FRAMES
from model.load import load_mimi
from model.mimi.codec import Mimi, MimiState
from model.wav import read_wav
from model.wire import FRAME_SAMPLES
from tests.model.golden_files import GOLDEN, read_json

CALLER = Path(__file__).parents[3] / "gateway" / "phone" / "callers" / "bank-hours.wav"
WINDOW = 125
AT = (300, 350, 400)
"""Frames after which the call is taken over."""
AFTER = 2 * WINDOW


@pytest.fixture(scope="module")
def mimi() -> Mimi:
    """Small widths, two layers, random weights, and the published window."""
    sizes = read_json("mimi-tiny.json")
    config = mimi_from_json(sizes)
    context = mimi_full().transformer.context
    assert context == 2 * WINDOW
    return load_mimi(
        GOLDEN / sizes["weights"], replace(config, transformer=replace(config.transformer, context=context))
    )


@pytest.fixture(scope="module")
def caller() -> Tensor:
    """`[1, 1, samples]`: a caller who says the same again and again."""
    wav = read_wav(CALLER)
    sound = torch.from_numpy(soxr.resample(wav.pcm[0], wav.rate, 24_000)).float()
    samples = (max(AT) + AFTER) * FRAME_SAMPLES
    return sound.repeat(1 + samples // len(sound))[None, None, :samples]


def heard(mimi: Mimi, state: MimiState, sound: Tensor) -> Tensor:
    """Codes `[8, n]`, two seconds at a time."""
    parts = torch.split(sound, 25 * FRAME_SAMPLES, dim=2)
    return torch.cat([mimi.encode_step(state, torch.tensor([0]), part, 8) for part in parts], dim=2)[0]


def right(mimi: Mimi, caller: Tensor, kept: int) -> list[float]:
    """Part of the codes that are right in the first 4 s, up to 10 s, and after, with `kept` frames heard again."""
    whole = heard(mimi, mimi.streaming(1), caller)
    same = []
    for at in AT:
        state = mimi.streaming(1)
        heard(mimi, state, caller[:, :, (at - kept) * FRAME_SAMPLES : at * FRAME_SAMPLES])
        codes = heard(mimi, state, caller[:, :, at * FRAME_SAMPLES : (at + AFTER) * FRAME_SAMPLES])
        same.append((codes == whole[:, at : at + AFTER]).float())
    agreement = torch.stack(same).mean(dim=(0, 1))
    return [float(part.mean()) for part in torch.split(agreement, [50, WINDOW - 50, AFTER - WINDOW])]


@pytest.mark.usefixtures("one_thread")
def test_of_one_window_heard_again_nine_in_ten_codes_are_right_and_all_once_it_has_passed(
    mimi: Mimi, caller: Tensor
) -> None:
    assert CODEC_FRAMES == WINDOW
    first, later, after = right(mimi, caller, CODEC_FRAMES)
    assert first == pytest.approx(0.9, abs=0.05)
    assert 0.95 < later < 1.0
    assert after > 0.999


@pytest.mark.usefixtures("one_thread")
def test_of_two_windows_heard_again_all_codes_are_right(mimi: Mimi, caller: Tensor) -> None:
    assert min(right(mimi, caller, 2 * WINDOW)) > 0.999
