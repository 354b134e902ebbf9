"""Prompts that are read once, and what is shared of those that begin alike."""

from __future__ import annotations

import pytest
import torch

from model.codec_passes import CodecPasses
from model.conversation import Models, Voice, load_voice, role_ids
from model.engine import Stepper
from model.folder import ModelFolder
from model.prompt_cache import Prompt, PromptCache, make_prompt
from model.shared_passes import SharedPasses
from model.streaming import SavedKV
from tests.model.device import DEVICE
from tests.model.rig import Rig, is_ready, request
from tests.model.tiny_folder import VOICE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def voice(models: Models, tiny: ModelFolder) -> Voice:
    return load_voice(models, tiny.voices / f"{VOICE}.pt")


def prompt_of(models: Models, voice: Voice, text: str) -> Prompt:
    return make_prompt(models.config, voice, role_ids(models, text))


def different(models: Models, count: int) -> list[Prompt]:
    """So many prompts of one length, with another voice each."""
    voices = (torch.Generator().manual_seed(seed) for seed in range(count))
    return [prompt_of(models, torch.randint(0, 2048, (8, 10), generator=voice), "hello") for voice in voices]


def filled(stepper: Stepper, cache: PromptCache, prompt: Prompt) -> tuple[torch.Tensor, ...]:
    """Everything slot 0 remembers after the prompt."""
    for _ in cache.fill(prompt, 0):
        pass
    state = stepper.state
    keys = state.kv.keys[:, 0, :, : prompt.positions].clone()
    return keys, state.cache.tokens[0].clone(), state.cache.provided[0].clone(), state.kv.offsets[0].clone()


def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(
        a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=2e-5) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("recorded", [False, True])
def test_a_prompt_leaves_what_the_model_reading_it_frame_by_frame_leaves(
    models: Models, voice: Voice, recorded: bool
) -> None:
    told = voice
    if recorded:
        told = torch.randint(0, 2048, (8, 9), generator=torch.Generator().manual_seed(1))
    stepper = Stepper(models, 1)
    prompt = prompt_of(models, told, "the bank is on the corner")
    mine = filled(stepper, PromptCache(stepper, 1 << 30), prompt)
    from model.prompt import prompt_frames, role_frames
    from model.voice import VoiceReplay

    state, ids = models.lm.streaming(1), role_ids(models, "the bank is on the corner")
    if isinstance(told, VoiceReplay):
        models.lm.replay_voice(state, 0, told.embeddings, told.cache)
        models.lm.prefill(state, 0, torch.tensor(role_frames(ids), device=DEVICE).T)
    else:
        models.lm.prefill(state, 0, torch.tensor(prompt_frames(told.T.tolist(), ids), device=DEVICE).T)
    keys = state.kv.keys[:, 0, :, : prompt.positions]
    torch.testing.assert_close(mine[0], keys, rtol=0, atol=2e-5)
    cells = [(prompt.frames + ahead) % state.cache.tokens.shape[2] for ahead in (-1, 0)]
    assert torch.equal(mine[1][:, cells][mine[2][:, cells]], state.cache.tokens[0][:, cells][mine[2][:, cells]])
    assert torch.equal(mine[1][:, cells[0]], state.cache.tokens[0][:, cells[0]])
    assert int(mine[3]) == int(state.kv.offsets[0])


def test_the_second_call_of_a_persona_reads_nothing(models: Models, voice: Voice) -> None:
    stepper = Stepper(models, 1)
    cache = PromptCache(stepper, 1 << 30)
    prompt = prompt_of(models, voice, "you are a kind teacher")
    first = filled(stepper, cache, prompt)
    assert len(list(cache.fill(prompt, 0))) == 0
    assert same(first, filled(stepper, cache, prompt))
    assert (cache.hits, cache.misses) == (2, 1)


def test_a_prompt_that_begins_like_another_reads_only_its_end(models: Models, voice: Voice) -> None:
    stepper, fresh = Stepper(models, 1), Stepper(models, 1)
    cache = PromptCache(stepper, 1 << 30)
    known = prompt_of(models, voice, "you are a kind and wise teacher and you like to listen to you")
    other = prompt_of(models, voice, "you are a kind and wise teacher and you like to listen to me")
    filled(stepper, cache, known)
    shared = other.shared(known)
    assert other.positions > shared > 0.8 * other.positions
    read = sum(chunk.shape[1] for chunk in other.inputs(shared))
    assert read == other.positions - shared
    assert same(filled(stepper, cache, other), filled(fresh, PromptCache(fresh, 0), other))
    assert other not in cache, "an end of its own is not worth a place"


def test_the_least_recently_used_prompt_goes_when_memory_is_full(models: Models, voice: Voice) -> None:
    stepper = Stepper(models, 1)
    prompts = []
    for seed in range(3):
        codes = torch.randint(0, 2048, (8, 10), generator=torch.Generator().manual_seed(seed))
        prompts.append(prompt_of(models, codes, "hello"))
    one = PromptCache(stepper, 1 << 30)
    filled(stepper, one, prompts[0])
    cache = PromptCache(stepper, int(2.5 * one.nbytes))
    for index in (0, 1, 0, 2):
        filled(stepper, cache, prompts[index])
    assert [prompt in cache for prompt in prompts] == [True, False, True]
    assert cache.nbytes <= 2.5 * one.nbytes
    assert cache.evictions == 1
    tiny = PromptCache(stepper, one.nbytes - 1)
    filled(stepper, tiny, prompts[0])
    assert tiny.nbytes == 0


def test_room_is_made_before_a_prompt_is_copied(models: Models, voice: Voice, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept never takes more than it may, not even while another is copied: the device may be full then."""
    stepper = Stepper(models, 1)
    prompts = []
    for seed in range(4):
        codes = torch.randint(0, 2048, (8, 10 + seed), generator=torch.Generator().manual_seed(seed))
        prompts.append(prompt_of(models, codes, "hello"))
    one = PromptCache(stepper, 1 << 30)
    filled(stepper, one, prompts[-1])
    most = int(2.5 * one.nbytes)
    cache = PromptCache(stepper, most)
    save, copied = stepper.state.kv.save, list[int]()

    def watched(slot: int, length: int) -> SavedKV:
        held, saved = cache.nbytes, save(slot, length)
        copied.append(held + saved.nbytes)
        return saved

    monkeypatch.setattr(stepper.state.kv, "save", watched)
    for prompt in prompts:
        filled(stepper, cache, prompt)
    assert len(copied) == 4
    assert max(copied) <= most
    assert [prompt in cache for prompt in prompts] == [False, False, True, True]


def full_memory(slot: int, length: int) -> SavedKV:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 304.00 MiB.")


def test_calls_go_on_where_the_device_has_no_memory_to_keep_their_prompts(
    models: Models, tiny: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(models, tiny, slots=3)
    assert is_ready(rig.open(1, request("first", prompt="you are a kind teacher")))
    kept = rig.prompts.nbytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.stepper.state.kv, "save", full_memory)
        assert is_ready(rig.open(2, request("second", prompt="the bank on the corner is open, and we like to listen")))
    rig.speak(2, 0, 2)
    assert len(rig.frames(2)) == 2
    assert 0 == rig.prompts.nbytes < kept, "what it had is given back"
    (line,) = (record.getMessage() for record in caplog.records if "memory" in record.getMessage())
    assert "is full" in line
    assert line.endswith("start it with fewer --slots")
    assert is_ready(rig.open(3, request("third", prompt="you are a kind teacher")))
    rig.speak(3, 0, 2)
    assert len(rig.frames(3)) == 2


def test_of_a_full_device_s_prompts_those_used_last_stay_and_no_more_than_they_are_kept_from_then_on(
    models: Models, voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = Stepper(models, 1)
    prompts = different(models, 6)
    cache = PromptCache(stepper, 1 << 30)
    for prompt in prompts[:4]:
        filled(stepper, cache, prompt)
    all_four, save = cache.nbytes, stepper.state.kv.save
    monkeypatch.setattr(stepper.state.kv, "save", full_memory)
    filled(stepper, cache, prompts[4])
    assert [prompt in cache for prompt in prompts[:5]] == [False, False, True, True, False]
    monkeypatch.setattr(stepper.state.kv, "save", save)
    filled(stepper, cache, prompts[5])
    assert [prompt in cache for prompt in prompts] == [False, False, False, True, False, True]
    assert cache.nbytes == all_four // 2


def test_prompts_read_ahead_of_calls_push_none_of_each_other_out_and_the_first_of_them_goes_last(
    models: Models, voice: Voice
) -> None:
    stepper = Stepper(models, 1)
    prompts = different(models, 4)
    one = PromptCache(stepper, 1 << 30)
    assert one.warm(prompts[0])
    cache = PromptCache(stepper, int(2.5 * one.nbytes))
    assert [cache.warm(prompt) for prompt in prompts] == [True, True, False, False]
    assert cache.misses == 2, "what there is no room for is not read"
    assert cache.warm(prompts[0]), "it is there"
    filled(stepper, cache, prompts[2])
    assert [prompt in cache for prompt in prompts] == [True, False, True, False]


def test_of_prompts_that_begin_alike_one_is_read_before_the_others_even_where_calls_share_passes(
    models: Models, voice: Voice
) -> None:
    stepper = Stepper(models, 4)
    cache = PromptCache(stepper, 1 << 30)
    passes = SharedPasses(CodecPasses(stepper), cache.reads)
    texts = "you are a kind teacher", "you are a kind teacher", "you are a kind host", ""
    prompts = [prompt_of(models, voice, text) for text in texts]
    filling = [cache.fill(prompt, slot, passes.share(slot)) for slot, prompt in enumerate(prompts)]
    while filling:
        filling = [parts for parts in filling if next(parts, None) is False]
        passes.work()
    assert (cache.hits, cache.misses) == (1, 3)
    for slot, prompt in enumerate(prompts):
        alone = Stepper(models, 1)
        held = stepper.state.kv.keys[:, slot, :, : prompt.positions]
        expected = filled(alone, PromptCache(alone, 1 << 30), prompt)
        torch.testing.assert_close(held, expected[0], rtol=0, atol=2e-5)


FACTS = "you are a kind and wise teacher and you help children with numbers; today is"


def passes_for(models: Models, voice: Voice, texts: list[str], most_bytes: int = 1 << 30, padded: bool = False) -> int:
    """Passes until so many calls have the prompts of `texts`, where the one of another day is kept if it fits.

    `padded`: filled up to a few sizes, as on a GPU.
    """
    stepper, alone = Stepper(models, len(texts)), Stepper(models, 1)
    cache = PromptCache(stepper, most_bytes)
    filled(stepper, cache, prompt_of(models, voice, f"{FACTS} sunday"))
    passes, count = SharedPasses(CodecPasses(stepper), cache.reads), 0
    passes.reads._padded = passes.codec._padded = padded
    prompts = [prompt_of(models, voice, text) for text in texts]
    filling = [cache.fill(prompt, slot, passes.share(slot)) for slot, prompt in enumerate(prompts)]
    while filling := [parts for parts in filling if next(parts, None) is False]:
        count += passes.work()
    for slot, prompt in enumerate(prompts):
        held = stepper.state.kv.keys[:, slot, :, : prompt.positions]
        expected = filled(alone, PromptCache(alone, 0), prompt)
        torch.testing.assert_close(held, expected[0], rtol=0, atol=2e-5)
    return count


@pytest.mark.parametrize(("padded", "passes"), [(False, 2), (True, 1)], ids=["as long as it is", "filled up"])
def test_nobody_waits_for_a_prompt_that_will_not_be_kept(
    models: Models, voice: Voice, padded: bool, passes: int
) -> None:
    """Most of each is known, and all read the rest together: in one pass for each length."""
    longer = [f"{FACTS} monday x{letter}" for letter in "abcdefg"]
    assert passes_for(models, voice, [f"{FACTS} monday"] * 8, padded=padded) == 1
    assert passes_for(models, voice, [*longer, f"{FACTS} monday"], padded=padded) == passes


def test_nobody_waits_for_a_prompt_that_memory_has_no_room_for(models: Models, voice: Voice) -> None:
    alone = passes_for(models, voice, [f"{FACTS} monday"], most_bytes=1)
    assert passes_for(models, voice, [f"{FACTS} monday"] * 4, most_bytes=1) == alone


def test_nobody_waits_for_a_prompt_that_spares_little(models: Models, voice: Voice) -> None:
    """All of these are kept, for half of each is new; what they have in common of it is a few letters."""
    rest = "is who calls; the bank on the corner is open, and on sunday you like to be kind to those who call you"
    texts = [f"{FACTS} monday, x{letter} {rest}" for letter in "abcd"]
    known, mine, theirs = (prompt_of(models, voice, text) for text in (f"{FACTS} sunday", *texts[:2]))
    assert known.shared(mine) < theirs.shared(mine) < 0.75 * mine.positions
    assert passes_for(models, voice, texts) == passes_for(models, voice, texts[:1])


def test_a_prompt_whose_reader_hangs_up_is_read_by_the_next(models: Models, voice: Voice) -> None:
    stepper = Stepper(models, 2)
    cache = PromptCache(stepper, 1 << 30)
    passes = SharedPasses(CodecPasses(stepper), cache.reads)
    prompt = prompt_of(models, voice, "you are a kind teacher")
    gone, there = (cache.fill(prompt, slot, passes.share(slot)) for slot in (0, 1))
    assert [next(gone), next(there)] == [False, False]
    assert len(passes._wishes) == 1
    gone.close()
    while next(there, None) is False:
        passes.work()
    assert prompt in cache
    assert int(stepper.state.cache.offset[1]) == prompt.frames


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "in passes with others"])
def test_a_prompt_that_was_begun_with_what_is_then_distrusted_is_not_kept(
    models: Models, voice: Voice, shared: bool
) -> None:
    stepper = Stepper(models, 2)
    cache = PromptCache(stepper, 1 << 30)
    passes = SharedPasses(CodecPasses(stepper), cache.reads)
    rest = "the bank on the corner is open, and on sunday you like to be kind to those who call you" * 2
    bad, begun = prompt_of(models, voice, "you are a kind teacher"), prompt_of(models, voice, f"you are a kind {rest}")
    filled(stepper, cache, bad)
    assert cache._known(begun)[1] > 0
    filling = cache.fill(begun, 1, passes.share(1) if shared else None)
    next(filling)
    assert cache.hits + cache.misses == 2
    cache.distrust(bad)
    while next(filling, None) is not None:
        passes.work()
    assert begun not in cache
    assert int(stepper.state.cache.offset[1]) == begun.frames, "its call speaks, and is ended if its numbers are bad"
    filled(stepper, cache, begun)
    assert begun in cache, "read anew"
