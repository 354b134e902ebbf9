"""The step as a CUDA graph: what it says is what the same step says uncaptured, and what a CPU says.

Steps are of one slot, two and three, for which other kernels are chosen. Without a GPU nothing is captured: there the
comparison is one of padded steps with others.
"""

from __future__ import annotations

import warnings

import pytest
import torch

from model import fp8
from model.clip import Clip
from model.conversation import Models, load_models, load_voice, role_ids
from model.cuda_graphs import HIGH_PRIORITY, LOW_PRIORITY, stream
from model.engine import Stepper
from model.folder import ModelFolder
from model.prompt_cache import Prompt, PromptCache, make_prompt
from model.wire import Sampling
from tests.model.rig import caller_pcm
from tests.model.tiny_folder import VOICE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE != "cuda", reason="there is no CUDA device")

FRAMES = 30
SAMPLINGS = (Sampling(temperature=0.0, text_temperature=0.0), Sampling(seed=7), Sampling(seed=8))
Said = list[list[list[int]]]


@pytest.fixture(scope="module")
def on_cpu(tiny: ModelFolder) -> Models:
    return load_models(tiny, "cpu")


@pytest.fixture(scope="module")
def on_device(tiny: ModelFolder, on_cpu: Models) -> Models:
    return load_models(tiny, DEVICE) if DEVICE == "cuda" else on_cpu


@pytest.fixture(scope="module")
def prompt(on_cpu: Models, tiny: ModelFolder) -> Prompt:
    """Of an odd length: kernels that need multiples of 16 somewhere would show it."""
    voice = load_voice(on_cpu, tiny.voices / f"{VOICE}.pt")
    return make_prompt(on_cpu.config, voice, role_ids(on_cpu, "you are a kind teacher of odd lengths"))


def talk(stepper: Stepper, prompt: Prompt, frames: int = FRAMES) -> Said:
    """Three calls, of which one pauses now and then and one is alone now and then: the tokens of each."""
    prompts = PromptCache(stepper, 1 << 28)
    for slot, sampling in enumerate(SAMPLINGS):
        stepper.reset(slot)
        with stepper.aside():
            for _ in prompts.fill(prompt, stepper.lm_slot[slot]):
                pass
        stepper.join()
        stepper.set_slot(slot, sampling, prompt.frames)
    said: Said = [[], [], []]
    for frame in range(frames):
        slots = [1] if frame % 4 == 3 else [0, 2] if frame % 3 == 1 else [2, 0, 1]
        result = stepper.step(slots, [caller_pcm(slot, len(said[slot])) for slot in slots])
        assert result.finite.all()
        for row, slot in enumerate(slots):
            said[slot].append(result.tokens[row].tolist())
    return said


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, fp8.E4M3])
def test_captured_is_as_written(on_device: Models, prompt: Prompt, kv_dtype: torch.dtype) -> None:
    captured = Stepper(on_device, 3, kv_dtype=kv_dtype, batches=(1, 2, 4))
    assert all(bool(captured.launches(count)) == (DEVICE == "cuda") for count in (1, 2, 3))
    plain = Stepper(on_device, 3, kv_dtype=kv_dtype)
    assert talk(captured, prompt) == talk(plain, prompt)


@on_a_gpu
def test_a_gpu_says_what_a_cpu_says(on_device: Models, on_cpu: Models, prompt: Prompt) -> None:
    on_gpu = talk(Stepper(on_device, 3, kv_dtype=torch.float32, batches=(1, 2, 4)), prompt)
    assert on_gpu == talk(Stepper(on_cpu, 3, kv_dtype=torch.float32), prompt)


@on_a_gpu
def test_steps_take_no_memory(on_device: Models, prompt: Prompt) -> None:
    stepper = Stepper(on_device, 3, kv_dtype=fp8.E4M3, batches=(1, 2, 4))
    talk(stepper, prompt, 5)
    stepper.step([1], [b""])
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for _ in range(50):
        stepper.step([0, 1, 2], [b""] * 3)
        stepper.step([1], [b""])
    torch.cuda.synchronize()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


class _Waits:
    """The stream of the steps: counts when it is waited for, and lets that alone pass where waiting is an error."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream, self.count = stream, 0

    def synchronize(self) -> None:
        self.count += 1
        _let_wait(True)
        self._stream.synchronize()
        _let_wait(False)


def _let_wait(allowed: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not know every operation that waits
        torch.cuda.set_sync_debug_mode("default" if allowed else "error")


@on_a_gpu
def test_the_host_waits_once_in_a_step_whatever_begins_in_it(on_device: Models, prompt: Prompt) -> None:
    """Words, a clip, a cut, a memory put in another's place, a slot made new."""
    stepper = Stepper(on_device, 3, kv_dtype=fp8.E4M3, batches=(1, 2, 4))
    talk(stepper, prompt, 5)
    assert stepper._steps is not None
    waits = _Waits(stepper._steps)
    stepper._steps = waits  # type: ignore[assignment]
    spare = stepper.spare_lm_slots[0]
    torch.cuda.synchronize()
    _let_wait(False)
    try:
        stepper.speech.say(0, "thank you")
        stepper.speech.say(1, "hello")
        stepper.speech.play(2, Clip("hm", torch.randint(0, 40, (9, 3))))
        stepper.step([0, 1, 2], [b""] * 3)
        stepper.speech.cut(1)
        stepper.state.cache.move(stepper.lm_slot[0], 40, spare, 30)
        spare = stepper.point(0, spare)
        stepper.reset_lm(spare)
        stepper.reset(2)
        stepper.set_slot(2, SAMPLINGS[1], 9)
        stepper.step([0, 1, 2], [b""] * 3)
    finally:
        _let_wait(True)
    assert waits.count == 2


@on_a_gpu
def test_what_is_copied_lies_where_a_gpu_copies_by_itself_and_other_work_stands_behind_steps(
    on_device: Models,
) -> None:
    before = torch.cuda.current_stream()
    device = torch.device("cuda")
    torch.cuda.set_stream(stream(device, HIGH_PRIORITY))
    try:
        stepper = Stepper(on_device, 3, batches=(1, 2))
        for mirrored in (each for buffers in stepper._buffers.values() for each in (buffers._in, buffers._out)):
            assert mirrored._here.is_pinned()
            assert mirrored._there.is_cuda
        assert all(part.is_pinned() for part in stepper.words._here)
        with stepper.aside():
            assert torch.cuda.current_stream().priority == LOW_PRIORITY
        assert stepper._steps is not None
        assert stepper._steps.priority == HIGH_PRIORITY < LOW_PRIORITY
    finally:
        torch.cuda.set_stream(before)


@on_a_gpu
def test_numbers_that_are_none_stay_in_their_slot(on_device: Models, prompt: Prompt) -> None:
    stepper = Stepper(on_device, 3, kv_dtype=torch.bfloat16, batches=(4,))
    expected = talk(stepper, prompt)
    talk(stepper, prompt, 1)
    stepper.state.kv.keys[:, stepper.lm_slot[1], :, 3] = float("nan")
    result = stepper.step([0, 1, 2], [caller_pcm(slot, 1) for slot in range(3)])
    assert result.finite.tolist() == [True, False, True]
    assert talk(stepper, prompt) == expected
