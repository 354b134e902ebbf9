"""One call of an hour on tiny weights, faster than real time: it keeps its prompt, and nothing grows."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from model.conversation import load_models
from model.lm import LM
from model.wire import AgentFrame, Cut
from tests.model.rig import Rig, caller_pcm, request
from tests.model.tiny_folder import make_folder

WINDOW = 120
MINUTES = int(os.environ.get("HOUR_CALL_MINUTES", "60"))
FRAMES = MINUTES * 750
GROWTH = 24 << 20
"""Bytes that the process may grow by after its first tenth: what allocators keep."""


@pytest.mark.long
def test_a_call_of_an_hour_is_answered_frame_by_frame_without_growth(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = make_folder(tmp_path)
    models = load_models(folder)
    config = replace(models.config, transformer=replace(models.config.transformer, context=WINDOW))
    lm = LM(config)
    lm.load_state_dict(models.lm.state_dict())
    rig = Rig(replace(models, lm=lm.eval().requires_grad_(False)), folder, slots=1)
    rig.open(1, request(prompt="hello"))
    call = rig.calls._calls[1]
    assert call.prompt is not None
    stepper = rig.stepper
    prompt = stepper.state.kv.keys[:, stepper.lm_slot[0], :, : call.prompt.positions].clone()
    sound = [caller_pcm(0, index) for index in range(50)]
    process, begun, answered, cuts, early = psutil.Process(), time.monotonic(), 0, 0, 0
    for index in range(FRAMES):
        rig.calls.frame(1, index, sound[index % 50])
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
    assert answered == FRAMES
    assert cuts > FRAMES // WINDOW
    held = stepper.state.kv.keys[:, stepper.lm_slot[0], :, : call.prompt.positions]
    torch.testing.assert_close(held, prompt, rtol=0, atol=2e-5)
    assert process.memory_info().rss - early < GROWTH
    assert time.monotonic() - begun < 60 * MINUTES
