"""One call of an hour on tiny weights, faster than real time: it keeps its prompt, and nothing grows."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import psutil
import pytest
import torch

from model.bench.models import Sizes, random_models
from model.config import DepformerConfig, LMConfig, MimiConfig, QuantizerConfig, SeanetConfig, TransformerConfig
from model.conversation import Models
from model.folder import ModelFolder
from model.prompt import voice_frames
from model.wire import AgentFrame, Cut
from tests.model.rig import Rig, caller_pcm, request
from tests.model.tiny_folder import VOICE

WINDOW = 120
MINUTES = int(os.environ.get("HOUR_CALL_MINUTES", "60"))
FRAMES = MINUTES * 750
GROWTH = 8 << 20
"""Bytes that the process may grow by after its first tenth: what allocators keep. The sound alone is 173 MB an hour."""


def small_models() -> Models:
    """One layer of everything: what a frame takes is a few milliseconds, and the way of a frame is the whole one."""
    sizes = Sizes(
        LMConfig(
            transformer=TransformerConfig(dim=16, heads=2, layers=1, context=WINDOW, hidden=16),
            depformer=DepformerConfig(dim=8, heads=1, layers=1, hidden=8, steps=8),
            text_card=48,
            card=2048,
            delays=(0, *(0, 1, 1, 1, 1, 1, 1, 1) * 2),
        ),
        MimiConfig(
            seanet=SeanetConfig(dimension=8, filters=2, ratios=(32, 30)),
            transformer=TransformerConfig(
                dim=8, heads=1, layers=1, context=16, hidden=8, norm="layer", mlp="gelu", layer_scale=True, step=2
            ),
            quantizer=QuantizerConfig(dimension=4, codebooks=8, bins=2048, input_dimension=8),
        ),
        torch.float32,
    )
    torch.manual_seed(1)
    return random_models(sizes, torch.device("cpu"))


def give_voice(models: Models, folder: ModelFolder) -> None:
    """Six frames of somebody."""
    folder.voices.mkdir(parents=True)
    codes = torch.randint(0, 2048, (6, 8), generator=torch.Generator().manual_seed(2))
    embeddings, cache = models.lm.record_voice(torch.tensor(voice_frames(codes.tolist())).T)
    torch.save({"embeddings": embeddings[:, None, None], "cache": cache[None]}, folder.voices / f"{VOICE}.pt")


@pytest.mark.long
@pytest.mark.usefixtures("one_thread")
def test_a_call_of_an_hour_is_answered_frame_by_frame_without_growth(tmp_path: Path) -> None:
    models, folder = small_models(), ModelFolder(tmp_path)
    give_voice(models, folder)
    rig = Rig(models, folder, slots=1)
    rig.open(1, request(prompt="hello"))
    call = rig.calls._calls[1]
    assert call.prompt is not None
    stepper = rig.stepper
    prompt = stepper.state.kv.keys[:, stepper.lm_slot[0], :, : call.prompt.positions].clone()
    sound = [caller_pcm(0, index) for index in range(50)]
    process, begun, answered, cuts, early = psutil.Process(), time.process_time(), 0, 0, 0
    for index in range(FRAMES):
        rig.hear(1, index, sound[index % 50])
        rig.settle()
        rig.now += 0.08
        told = rig.told.pop(1)
        answered += sum(isinstance(message, AgentFrame) and message.index == index for message in told)
        cuts += sum(isinstance(message, Cut) for message in told)
        assert call.columns.end - call.columns.start <= WINDOW
        if index == FRAMES // 10:
            gc.collect()
            early = process.memory_info().rss
    gc.collect()
    took, grown = time.process_time() - begun, process.memory_info().rss - early
    assert answered == FRAMES
    assert cuts > FRAMES // WINDOW
    held = stepper.state.kv.keys[:, stepper.lm_slot[0], :, : call.prompt.positions]
    torch.testing.assert_close(held, prompt, rtol=0, atol=2e-5)
    assert grown < GROWTH, f"from {early >> 20} MiB by {grown >> 10} KiB"
    assert took < FRAMES * 0.08, f"{took:.0f} s of a processor's time"
