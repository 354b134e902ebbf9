"""The step of many slots: each as if it were alone, whatever the others do."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import fp8
from model.conversation import Conversation, Models, load_voice, role_ids
from model.engine import Stepper
from model.folder import ModelFolder
from model.prompt_cache import Prompt, PromptCache, make_prompt
from model.wire import Sampling
from tests.model.rig import MEMORIES, caller_pcm, memories
from tests.model.tiny_folder import VOICE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prompt(models: Models, tiny: ModelFolder) -> Prompt:
    voice = load_voice(models, tiny.voices / f"{VOICE}.pt")
    return make_prompt(models.config, voice, role_ids(models, "you are a kind teacher"))


def begin(stepper: Stepper, slot: int, prompt: Prompt, sampling: Sampling) -> None:
    """A new call in `slot`."""
    stepper.reset(slot)
    for _ in PromptCache(stepper, 0).fill(prompt, stepper.lm_slot[slot]):
        pass
    stepper.set_slot(slot, sampling, prompt.frames)


def alone(models: Models, prompt: Prompt, sampling: Sampling, seed: int, frames: int) -> list[list[int]]:
    """The tokens of a call that has an engine for itself."""
    stepper = Stepper(models, 1)
    begin(stepper, 0, prompt, sampling)
    return [stepper.step([0], [caller_pcm(seed, index)]).tokens[0].tolist() for index in range(frames)]


def test_a_call_in_a_slot_is_a_conversation_token_for_token(models: Models, tiny: ModelFolder, prompt: Prompt) -> None:
    sampling = Sampling(seed=11)
    voice = load_voice(models, tiny.voices / f"{VOICE}.pt")
    conversation = Conversation(models, voice, role_ids(models, "you are a kind teacher"), sampling)
    stepper = Stepper(models, 2)
    begin(stepper, 1, prompt, sampling)
    for index in range(8):
        pcm = caller_pcm(0, index)
        heard = conversation.frame(torch.from_numpy(np.frombuffer(pcm, "<i2").astype(np.float32) / 32_768.0))
        result = stepper.step([1], [pcm])
        assert result.tokens[0].tolist() == heard.tokens
        expected = np.clip(np.rint(heard.pcm.numpy() * 32_768.0), -32_768, 32_767)
        assert np.abs(result.pcm[0] - expected).max() <= 3
        assert result.finite.all()


def test_slots_are_independent_through_random_joins_leaves_and_pauses(models: Models, prompt: Prompt) -> None:
    chance = random.Random(3)
    stepper = Stepper(models, 3)
    calls: dict[int, tuple[int, Sampling]] = {}
    said: dict[int, list[list[int]]] = {}
    for number in range(28):
        slot = chance.randrange(3)
        if slot not in calls or chance.random() < 0.15:
            calls[slot] = (number, Sampling(seed=number) if number % 2 else Sampling(0.0, 0.0))
            said[number] = []
            begin(stepper, slot, prompt, calls[slot][1])
        stepping = [slot for slot in calls if chance.random() < 0.7]
        if not stepping:
            continue
        chance.shuffle(stepping)
        sound = [caller_pcm(calls[slot][0], len(said[calls[slot][0]])) for slot in stepping]
        result = stepper.step(stepping, sound)
        for row, slot in enumerate(stepping):
            said[calls[slot][0]].append(result.tokens[row].tolist())
    samplings = {number: Sampling(seed=number) if number % 2 else Sampling(0.0, 0.0) for number in said}
    longest = sorted(said, key=lambda number: -len(said[number]))[:3]
    assert len(said[longest[-1]]) >= 4
    for number in longest:
        assert said[number] == alone(models, prompt, samplings[number], number, len(said[number]))


def test_a_step_padded_to_a_larger_batch_is_the_same_and_leaves_other_slots_alone(
    models: Models, prompt: Prompt
) -> None:
    sampling = Sampling(seed=5)
    padded, plain = Stepper(models, 3, batches=(2, 3)), Stepper(models, 3)
    for stepper in (padded, plain):
        for slot in range(2):
            begin(stepper, slot, prompt, sampling)
    untouched = padded.state.kv.keys[:, padded.lm_slot[1]].clone()
    for index in range(3):
        sound = [caller_pcm(0, index)]
        assert padded.step([0], sound).tokens.tolist() == plain.step([0], sound).tokens.tolist()
    assert torch.equal(padded.state.kv.keys[:, padded.lm_slot[1]], untouched)
    with pytest.raises(ValueError, match="4 slots are more than a step takes; 3 at most"):
        padded.batch_for(4)


@pytest.mark.parametrize("where", MEMORIES)
def test_numbers_that_are_none_are_told_of_their_slot_and_stay_in_it(
    models: Models, prompt: Prompt, where: str
) -> None:
    sampling = Sampling(seed=2)
    stepper = Stepper(models, 2)
    for slot in range(2):
        begin(stepper, slot, prompt, sampling)
    said = [stepper.step([0, 1], [caller_pcm(0, 0)] * 2)]
    assert said[0].finite.all()
    memories(stepper, 0)[where][..., 0] = float("nan")
    said.append(stepper.step([0, 1], [caller_pcm(0, 1)] * 2))
    assert said[1].finite.tolist() == [False, True]
    expected = alone(models, prompt, sampling, 0, 2)
    assert [result.tokens[1].tolist() for result in said] == expected
    begin(stepper, 0, prompt, sampling)
    again = [stepper.step([0], [caller_pcm(0, index)]) for index in range(2)]
    assert all(result.finite.all() for result in again)
    assert [result.tokens[0].tolist() for result in again] == expected


class _OnDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where an operation takes or makes a tensor elsewhere, or looks into one."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")
    """Those whose result's shape or value the host must know, and `torch.tensor`, which copies from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert not str(func).startswith(tuple(f"aten.{name}." for name in self.waits)), func
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, f"{func} with a tensor on {tensor.device}"
        return result


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, fp8.E4M3])
def test_a_step_can_be_captured(models: Models, kv_dtype: torch.dtype) -> None:
    """On a device without memory: all of it happens there, by shapes alone; nothing comes from the host or goes to it.

    A CUDA graph's capture fails at a copy from the host or a look at a number. Kernels take the place of some of this.
    """
    lm, mimi = copy.deepcopy(models.lm).to("meta"), copy.deepcopy(models.mimi).to("meta")
    stepper = Stepper(Models(lm, mimi, models.tokenizer), 3, kv_dtype=kv_dtype)
    buffers = stepper._buffers[4] = stepper._buffer(4)
    for name in ("slots", "pcm", "forced", "mask", "tokens", "sound"):
        setattr(buffers, name, getattr(buffers, name).to("meta"))
    with _OnDevice():  # type: ignore[no-untyped-call]
        stepper._run(4)
