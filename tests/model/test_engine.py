"""The step of many slots: each as if it were alone, whatever the others do."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model import fp8
from model.conversation import Conversation, Models, load_voice, role_ids
from model.engine import Sound, Stepper
from model.folder import ModelFolder
from model.prompt_cache import Prompt, PromptCache, make_prompt
from model.wire import Sampling
from tests.model.rig import MEMORIES, Rig, caller_pcm, memories, request
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


def test_a_step_walks_the_codebooks_of_one_voice_and_no_more(
    models: Models, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walking those of both chooses the same, and takes the depformer twice the time."""
    stepper, lm, config, walked = Stepper(models, 1), models.lm, models.config, list[int]()
    walk = lm.choose_audio

    def watched(*given: Any) -> tuple[Tensor, Tensor]:
        logits, chosen = walk(*given)
        walked.append(logits.shape[1])
        return logits, chosen

    begin(stepper, 0, prompt, Sampling(seed=1))
    monkeypatch.setattr(lm, "choose_audio", watched)
    stepper.step([0], [caller_pcm(0, 0)])
    assert set(walked) == {config.codebooks}
    assert config.depformer.steps == 2 * config.codebooks


def sampling_of(number: int) -> Sampling:
    return Sampling(seed=number) if number % 2 else Sampling(0.0, 0.0)


@dataclass(frozen=True)
class Said:
    """A frame of a call, and its place in a step of `among` slots: arithmetic rounds otherwise for other sizes."""

    row: int
    among: int
    tokens: list[int]
    pcm: Sound


def said_among_idle(
    models: Models, prompt: Prompt, number: int, frames: Sequence[Said], kv_dtype: torch.dtype
) -> Iterator[Said]:
    """What call `number` says in slot 0 of an engine whose other slots hear silence and have no call."""
    stepper = Stepper(models, 3, kv_dtype=kv_dtype, batches=(1, 2, 4))
    begin(stepper, 0, prompt, sampling_of(number))
    for index, frame in enumerate(frames):
        slots, sound = list(range(1, frame.among)), [b""] * (frame.among - 1)
        slots.insert(frame.row, 0)
        sound.insert(frame.row, caller_pcm(number, index))
        result = stepper.step(slots, sound)
        yield Said(frame.row, frame.among, result.tokens[frame.row].tolist(), result.pcm[frame.row])


def move(stepper: Stepper, slot: int) -> None:
    """Let a call go on from the spare language memory, as one that is re-primed does."""
    state, here, spare = stepper.state, stepper.lm_slot[slot], stepper.spare_lm_slots.pop()
    held, offset = int(state.kv.offsets[here]), int(state.cache.offset[here])
    state.kv.load(spare, state.kv.save(here, held), held)
    state.cache.move(here, offset, spare, offset)
    stepper.spare_lm_slots.append(stepper.point(slot, spare))


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, fp8.E4M3])
def test_slots_are_independent_through_random_joins_leaves_and_pauses(
    models: Models, prompt: Prompt, kv_dtype: torch.dtype
) -> None:
    """Every frame of every call, in batches of the sizes that steps are captured for, with keys as a GPU keeps them."""
    chance = random.Random(3)
    stepper = Stepper(models, 3, kv_dtype=kv_dtype, batches=(1, 2, 4))
    calls: dict[int, int] = {}
    said: dict[int, list[Said]] = {}
    left = 0
    for number in range(36):
        slot = chance.randrange(3)
        if slot in calls and chance.random() < 0.1:
            del calls[slot]
            stepper.reset(slot)
            left += 1
        elif slot not in calls or chance.random() < 0.1:
            calls[slot], said[number] = number, []
            begin(stepper, slot, prompt, sampling_of(number))
        elif chance.random() < 0.3:
            move(stepper, slot)
        stepping = [slot for slot in calls if chance.random() < 0.7]
        if not stepping:
            continue
        chance.shuffle(stepping)
        result = stepper.step(stepping, [caller_pcm(calls[slot], len(said[calls[slot]])) for slot in stepping])
        assert result.finite.all()
        for row, slot in enumerate(stepping):
            said[calls[slot]].append(Said(row, len(stepping), result.tokens[row].tolist(), result.pcm[row]))
    assert left >= 2
    assert len(said) >= 6
    for number, frames in said.items():
        for index, other in enumerate(said_among_idle(models, prompt, number, frames, kv_dtype)):
            assert frames[index].tokens == other.tokens, f"frame {index} of call {number}"
            assert np.abs(frames[index].pcm.astype(int) - other.pcm).max() <= 3


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


def without_memory(models: Models, slots: int, kv_dtype: torch.dtype) -> Stepper:
    """On a device where all that happens happens by shapes alone; for steps of four rows."""
    lm, mimi = copy.deepcopy(models.lm).to("meta"), copy.deepcopy(models.mimi).to("meta")
    return Stepper(Models(lm, mimi, models.tokenizer), slots, kv_dtype=kv_dtype, batches=(4,))


class _NoWait(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where the host would wait for the device."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh")
    """Those whose result's shape or value the host must know, and what copies from it: `torch.tensor`, and a number
    assigned to a place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not str(func).startswith(tuple(f"aten.{name}." for name in self.waits)), func
        return func(*args, **(kwargs or {}))


def test_a_slot_is_reset_without_waiting_for_the_device(models: Models) -> None:
    """A call hangs up while it reads for others."""
    stepper = Stepper(models, 3)
    with _NoWait():  # type: ignore[no-untyped-call]
        stepper.reset(1)


class _OnDevice(_NoWait):  # type: ignore[no-untyped-call]
    """Fails where an operation takes or makes a tensor elsewhere, or looks into one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves((args, kwargs, result)):
            assert not isinstance(tensor, Tensor) or tensor.is_meta, f"{func} with a tensor on {tensor.device}"
        return result


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, fp8.E4M3])
def test_a_step_can_be_captured(models: Models, kv_dtype: torch.dtype) -> None:
    """On a device without memory nothing comes from the host in it or goes to it.

    A CUDA graph's capture fails at a copy from the host or a look at a number. Kernels take the place of some of this.
    """
    stepper = without_memory(models, 3, kv_dtype)
    with _OnDevice():  # type: ignore[no-untyped-call]
        stepper._run(4)


class _NothingNew(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails where memory is taken on the device, or the host would wait for it. Counts copies from and to the host."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)]
        if len({tensor.device for tensor in taken}) > 1:
            assert func is torch.ops.aten.copy_.default, func
            assert args[2:] == (True,) or (kwargs or {}).get("non_blocking"), "the host waits for this copy"
            self.copies += 1
        if any(isinstance(made, Tensor) and made.is_meta for made in tree_leaves(result)):
            assert all(one.alias_info is not None for one in func._schema.returns), f"{func} takes memory"
        return result


def test_beside_what_is_captured_a_step_takes_no_memory_and_waits_for_no_copy(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step in which words begin, those of another call are cut, and a third call is put elsewhere and reset."""
    stepper = without_memory(models, 3, torch.bfloat16)
    monkeypatch.setattr("model.engine._Buffers.download", lambda buffers: None)
    monkeypatch.setattr(stepper, "_graphs", lambda batch: None)
    stepper.step([0, 1], [b""] * 2)
    stepper.speech.say(0, "thank you")
    stepper.speech.say(1, "hello")
    with _NothingNew() as seen:
        stepper.step([0, 1, 2], [b""] * 3)
        assert seen.copies == 1 + 2 * 2, "what the step is given, and the words of two calls"
        stepper.speech.cut(1)
        stepper.set_slot(2, Sampling(seed=3), 40)
        stepper.spare_lm_slots[0] = stepper.point(2, stepper.spare_lm_slots[0])
        stepper.reset(2)
        stepper.step([0, 1, 2], [b""] * 3)
    assert seen.copies == 5 + 1


def memory(owner: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is held, by its way there."""
    if isinstance(owner, Tensor):
        yield name, owner
    elif isinstance(owner, list | tuple):
        for place, each in enumerate(owner):
            yield from memory(each, f"{name}[{place}]")
    elif type(owner).__module__.startswith("model.") and not isinstance(owner, torch.nn.Module):
        for attribute, each in getattr(owner, "__dict__", {}).items():
            yield from memory(each, f"{name}.{attribute}")


def test_the_memory_of_slots_is_there_from_the_start_zeroed_and_stays_where_it_is(
    models: Models, tiny: ModelFolder
) -> None:
    rig = Rig(models, tiny, slots=2)
    parts = ("state", "codec", "sampling", "words", "_where", "_counter")
    held = {name: part for each in parts for name, part in memory(getattr(rig.stepper, each), each)}
    places = {name: part.data_ptr() for name, part in held.items()}
    kept = (
        "state.kv.keys",
        "codec.encoder_rows",
        "codec.decoder_kv.values",
        "words._pieces",
        "sampling.seed",
        "_where",
    )
    assert {*kept} <= held.keys()
    for name, part in held.items():
        if rig.stepper.device.type == "cpu" and (".kv." in name or name.startswith("codec.")):
            assert not part.float().any(), name  # on a GPU nobody's slot has been stepped, to capture it
    for session in range(5):
        rig.open(session, request(f"c{session}", greeting="hello"))
        if session:
            rig.calls.close(session - 1)
        rig.speak(session, 0, 3)
    rig.calls._renew(rig.calls._calls[4], 1)
    rig.settle()
    assert rig.calls.cuts == 1
    now = {name: part.data_ptr() for each in parts for name, part in memory(getattr(rig.stepper, each), each)}
    assert places == {name: now[name] for name in places}
