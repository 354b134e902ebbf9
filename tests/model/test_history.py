"""Slots rebuilt from their history: calls that move to another engine, and calls longer than the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import wire
from model.conversation import Models
from model.engine import StepResult
from model.folder import ModelFolder
from model.history import Columns, kept_frames
from model.lm import LM
from model.prompt import voice_frames
from model.scheduler import FRAME
from model.wire import NO_TOKEN, Cut, Error, History, Resume, Sampling
from tests.model.rig import GREEDY, Rig, caller_pcm, request
from tests.model.tiny_folder import VOICE

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 40


@pytest.fixture(scope="module")
def short(models: Models) -> Models:
    """The same weights with a window of 40 frames."""
    config = models.config
    narrow = replace(config, transformer=replace(config.transformer, context=WINDOW))
    lm = LM(narrow)
    lm.load_state_dict(models.lm.state_dict())
    return replace(models, lm=lm.eval().requires_grad_(False).to(models.device))


@pytest.fixture(scope="module")
def brief(models: Models, tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A voice of four frames, so that a prompt fits into such a window."""
    folder = ModelFolder(tmp_path_factory.mktemp("brief"))
    folder.voices.mkdir()
    codes = torch.randint(0, 2048, (4, 8), generator=torch.Generator().manual_seed(2))
    frames = torch.tensor(voice_frames(codes.tolist()), device=models.device).T
    embeddings, cache = (part.cpu() for part in models.lm.record_voice(frames))
    torch.save({"embeddings": embeddings[:, None, None], "cache": cache[None]}, folder.voices / f"{VOICE}.pt")
    return folder


def test_columns_are_what_the_wire_has_and_are_forgotten_from_the_front() -> None:
    columns = Columns(10)
    rows = [np.full(17, value, np.int64) for value in (5, -2, 7)]
    wire = [columns.append(row) for row in rows]
    assert columns.end == 13
    assert wire[1] == NO_TOKEN.to_bytes(2, "little") * 17
    assert columns.between(10, 13)[0].tolist() == [5, NO_TOKEN, 7]
    columns.forget(12)
    columns.forget(11)
    assert (columns.start, columns.between(12, 13)[16].tolist()) == (12, [7])


@pytest.mark.parametrize(("context", "prompt"), [(3000, 60), (3000, 300), (3000, 1200), (3000, 2900), (40, 21)])
def test_a_slot_keeps_prompt_and_newest_frames_in_45_per_cent_of_the_window_and_always_some(
    context: int, prompt: int
) -> None:
    kept = kept_frames(context, prompt)
    assert kept >= 1
    assert prompt + kept <= max(0.45 * context, prompt + context // 10)
    assert context - 1 - prompt - kept > (context - 1 - prompt) // 3, "it would have to be done again at once"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=9)], ids=["greedy", "by chance"])
def test_a_call_taken_over_goes_on_token_for_token_as_the_unbroken_one(
    models: Models, tiny: ModelFolder, sampling: Sampling
) -> None:
    unbroken = Rig(models, tiny)
    unbroken.open(1, request(sampling=sampling, greeting="hello"))
    unbroken.speak(1, 0, 26)
    first, second = Rig(models, tiny), Rig(models, tiny)
    first.open(1, request(sampling=sampling, greeting="hello"))
    first.speak(1, 0, 16)
    resume, history = first.history(1, 0)
    second.open(7, request(sampling=sampling, greeting="hello", resume=resume), history)
    second.speak(7, 16, 26)
    assert second.columns(7) == unbroken.columns(1)[16:]
    assert [frame.index for frame in second.frames(7)] == list(range(16, 26))
    mine, theirs = (np.frombuffer(rig.frames(n)[-1].pcm, "<i2") for rig, n in ((second, 7), (unbroken, 1)))
    assert np.abs(mine.astype(int) - theirs).max() <= 3


def test_the_callers_sound_is_heard_again_in_parts_between_which_others_step(
    models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.codec_passes.CODEC_PART", 4)
    monkeypatch.setattr("model.history.CHUNK", 5)
    monkeypatch.setattr("model.streaming._CELLS", 1)
    first, second = Rig(models, tiny), Rig(models, tiny)
    first.open(1, request())
    first.speak(1, 0, 12)
    resume, history = first.history(1, 0)
    second.calls.open(1, request(resume=resume), history)
    parts = 0
    while not second.told[1]:
        parts += second.calls.work()
    assert parts >= 3 + 3, "twelve frames of the caller, eleven of the agent"
    for rig in (first, second):
        rig.speak(1, 12, 18)
    assert second.columns(1) == first.columns(1)[12:]


def test_a_call_speaks_with_its_newest_frames_first_and_knows_the_rest_soon_after(
    models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.calls.FAST_FRAMES", 6)
    first, second = Rig(models, tiny), Rig(models, tiny)
    first.open(1, request())
    first.speak(1, 0, 20)
    resume, history = first.history(1, 0)
    second.open(1, request(resume=resume), history)
    call = second.calls._calls[1]
    prompt = call.prompt
    assert prompt is not None
    assert int(second.stepper.state.cache.offset[second.stepper.lm_slot[call.slot]]) == prompt.frames + 6
    second.speak(1, 20, 22)
    assert int(second.stepper.state.cache.offset[second.stepper.lm_slot[call.slot]]) == prompt.frames + 22
    assert len(second.frames(1)) == 2
    # From here on it is what another engine, told the same history, makes of it.
    joined = b"".join((history.columns, *second.columns(1)))
    later, _ = second.history(1, 20)
    third = Rig(models, tiny)
    monkeypatch.setattr("model.calls.FAST_FRAMES", 250)
    sound = first.history(1, 0)[1].caller_pcm + second.history(1, 20)[1].caller_pcm[-2 * 3840 :]
    third.open(1, request(resume=replace(later, cut=0, frames=22)), History(joined, sound))
    second.speak(1, 22, 27)
    third.speak(1, 22, 27)
    assert third.columns(1) == second.columns(1)[2:]


def test_a_call_taken_over_with_a_full_history_has_time_before_the_window_pushes_its_prompt_out(
    short: Models, brief: ModelFolder
) -> None:
    first, second = Rig(short, brief, context="sliding"), Rig(short, brief)
    first.open(1, request(prompt=""))
    prompt = first.calls._calls[1].prompt
    assert prompt is not None
    first.speak(1, 0, WINDOW - 1 - prompt.frames)
    resume, history = first.history(1, 0)
    second.open(1, request(prompt="", resume=resume), history)
    lm_slot = second.stepper.lm_slot[second.calls._calls[1].slot]
    assert int(second.stepper.state.cache.offset[lm_slot]) <= WINDOW - 1 - 2


def test_frames_that_nobody_answered_are_heard_with_the_agent_silent(models: Models, tiny: ModelFolder) -> None:
    first, second = Rig(models, tiny), Rig(models, tiny)
    first.open(1, request())
    first.speak(1, 0, 10)
    resume, history = first.history(1, 0, missed=3)
    second.open(1, request(resume=resume), history)
    second.speak(1, 13, 16)
    assert [frame.index for frame in second.frames(1)] == [13, 14, 15]
    call = second.calls._calls[1]
    (made,) = (message for message in second.told[1] if isinstance(message, wire.Columns))
    assert (made.index, made.columns) == (10, call.columns.data(10)[: 3 * 34])
    silent = call.columns.between(10, 13)
    assert silent[0].tolist() == [3, 3, 3]
    assert silent[1].tolist() == [948] * 3
    heard = Rig(models, tiny)
    heard.open(1, request())
    heard.speak(1, 0, 14)
    theirs = heard.calls._calls[1].columns
    assert silent[9:].tolist() == theirs.between(10, 13)[9:].tolist(), "what it would have heard"


def test_what_was_still_to_be_said_is_said_by_the_next_engine(models: Models, tiny: ModelFolder) -> None:
    first, second = Rig(models, tiny), Rig(models, tiny)
    first.open(1, request())
    first.speak(1, 0, 4)
    resume, history = first.history(1, 0)
    second.open(1, request(greeting="hello", resume=replace(resume, queued=("thank you",))), history)
    second.speak(1, 4, 20)
    assert "thank you" in second.text(1)
    assert "hello" not in second.text(1)


def test_a_history_of_another_model_is_refused(models: Models, tiny: ModelFolder) -> None:
    rig = Rig(models, tiny)
    columns = np.full((2, 17), 2500, "<u2").tobytes()
    told = rig.open(1, request(resume=Resume(0, 2, 0, 0)), History(columns, b""))
    assert isinstance(told, Error)
    assert "made with another" in told.message


class PromptWatch:
    """Sees before every step that every key of each slot's prompt is in its sight, as it was at first."""

    def __init__(self, rig: Rig, seconds: float = 0.0) -> None:
        """All calls have the same prompt, and one is open and has not spoken. seconds: what a step takes."""
        self.steps = 0
        """Of all slots together."""
        self.most_renewing = 0
        """Calls that were being re-primed, or waited for it, at once."""
        self._rig, self._seconds = rig, seconds
        call = next(iter(rig.calls._calls.values()))
        assert call.prompt is not None
        self._keys = rig.stepper.state.kv.keys[:, rig.stepper.lm_slot[call.slot], :, : call.prompt.positions].clone()
        self._step = rig.stepper.step
        rig.stepper.step = self._watched  # type: ignore[method-assign]

    def _watched(self, slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        calls = self._rig.calls
        for slot in slots:
            self.look(calls._by_slot[slot].session)
        self.steps += len(slots)
        self.most_renewing = max(self.most_renewing, sum(call.renewing for call in calls._calls.values()))
        self._rig.now += self._seconds
        return self._step(slots, pcm)

    def look(self, session: int) -> None:
        call, state = self._rig.calls._calls[session], self._rig.stepper.state
        lm_slot = self._rig.stepper.lm_slot[call.slot]
        assert int(state.cache.offset[lm_slot]) <= WINDOW - 1
        assert int(state.cache.offset[lm_slot]) == call.columns.end + call.base
        held = state.kv.keys[:, lm_slot, :, : self._keys.shape[2]]
        torch.testing.assert_close(held, self._keys, rtol=0, atol=2e-5)


def test_a_call_over_five_windows_keeps_its_prompt_and_goes_on_elsewhere_as_it_would_here(
    short: Models, brief: ModelFolder
) -> None:
    rig = Rig(short, brief, slots=2)
    rig.open(1, request(prompt=""))
    rig.open(2, request("other", prompt=""))
    call, watch = rig.calls._calls[1], PromptWatch(rig)
    last = 5 * WINDOW
    rig.speak(1, 0, last)
    assert watch.steps == last
    watch.look(1)
    cuts = [message.index for message in rig.told[1] if isinstance(message, Cut)]
    assert cuts == sorted(set(cuts))
    assert len(cuts) >= 5
    assert rig.calls.cuts == len(cuts)
    assert [frame.index for frame in rig.frames(1)] == list(range(last))
    assert call.columns.start == cuts[-1]
    assert len(rig.calls._spares) == 1
    # From the same cut, another engine goes on as this one.
    resume, history = rig.history(1, cuts[-1])
    other = Rig(short, brief)
    other.open(1, request(prompt="", resume=resume), history)
    for each in (rig, other):
        each.speak(1, last, last + 6)
    assert other.columns(1)[:6] == rig.columns(1)[last : last + 6]


EIGHT = 8
STEP, PART = 0.02, 0.025
"""Seconds: two steps of eight calls and a part of other work leave little of a frame's 80 ms."""


def talk_in_time(rig: Rig, frames: int) -> None:
    """Frames of sessions 1 to 8 come every 80 ms, each at a phase of its own, whatever the engine does meanwhile."""
    coming = sorted(
        (rig.now + index * FRAME + session * 0.01, session, index)
        for session in range(1, EIGHT + 1)
        for index in range(frames)
    )
    coming.reverse()
    while True:
        while coming and coming[-1][0] <= rig.now:
            due, session, index = coming.pop()
            rig.calls.frame(session, index, caller_pcm(session, index), due)
        if rig.calls.work():
            continue
        moments = [coming[-1][0]] if coming else []
        if (wake := rig.calls.wake_at()) is not None:
            moments.append(wake)
        if not moments:
            return
        rig.now = max(rig.now, min(moments))


def test_calls_that_share_one_spare_memory_keep_their_prompts_though_steps_and_parts_take_time(
    short: Models, brief: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(short, brief, slots=EIGHT, costs={EIGHT: STEP})
    for session in range(1, EIGHT + 1):
        rig.open(session, request(str(session), prompt=""))
    watch, part = PromptWatch(rig, STEP), rig.calls._advance_job

    def in_time() -> bool:
        did = part()
        rig.now += PART * did
        return did

    monkeypatch.setattr(rig.calls, "_advance_job", in_time)
    frames = 3 * WINDOW
    talk_in_time(rig, frames)
    assert watch.steps == EIGHT * frames
    assert watch.most_renewing > 1, "one waits for the other's spare"
    for session in range(1, EIGHT + 1):
        watch.look(session)
        assert [frame.index for frame in rig.frames(session)] == list(range(frames))
        assert len([message for message in rig.told[session] if isinstance(message, Cut)]) >= 3
    assert len(rig.calls._spares) == 1
    assert rig.scheduler.late == 0


def test_a_sliding_window_is_the_references_and_cuts_nothing(short: Models, brief: ModelFolder) -> None:
    rig = Rig(short, brief, context="sliding")
    rig.open(1, request(prompt=""))
    rig.speak(1, 0, WINDOW)
    assert not any(isinstance(message, Cut) for message in rig.told[1])
    call = rig.calls._calls[1]
    assert int(rig.stepper.state.cache.offset[rig.stepper.lm_slot[call.slot]]) > WINDOW


def test_across_a_slid_window_no_engine_can_go_on_exactly_though_it_goes_on(short: Models, brief: ModelFolder) -> None:
    """Not a defect that could be mended: what the deeper layers keep of a frame was made of frames since forgotten.

    Of the first layer everything can be had again from the tokens; of the second nothing that saw further back.
    """
    unbroken, other = (Rig(short, brief, context="sliding") for _ in range(2))
    unbroken.open(1, request(prompt=""))
    last = 2 * WINDOW
    unbroken.speak(1, 0, last)
    resume, history = unbroken.history(1, 0)
    assert isinstance(other.open(1, request(prompt="", resume=resume), history), wire.Ready)
    other.speak(1, last, last + 30)
    unbroken.speak(1, last, last + 30)
    assert [frame.index for frame in other.frames(1)] == list(range(last, last + 30))
    here, there = (_newest_values(rig, last, 5) for rig in (unbroken, other))
    torch.testing.assert_close(there[0], here[0], rtol=0, atol=2e-5)
    assert (there[1] - here[1]).abs().max() > 1e-3
    assert other.columns(1) != unbroken.columns(1)[last:]


def _newest_values(rig: Rig, end: int, count: int) -> torch.Tensor:
    """What a call's layers keep of the `count` frames before frame `end`: `[layers, heads, count, hd]`."""
    call, state = rig.calls._calls[1], rig.stepper.state
    cells = (torch.arange(end - count, end) + call.base) % WINDOW
    return state.kv.values[:, rig.stepper.lm_slot[call.slot]][:, :, cells]


def test_calls_that_began_together_are_not_cut_together(short: Models, brief: ModelFolder) -> None:
    rig = Rig(short, brief, slots=3)
    for session in (1, 2, 3):
        rig.open(session, request(f"c{session}", prompt=""))
    at: dict[int, int] = {}
    for index in range(WINDOW):
        for session in (1, 2, 3):
            rig.hear(session, index, b"\0" * 3840)
        rig.settle()
        rig.now += 0.08
        for session in (1, 2, 3):
            if session not in at and any(isinstance(message, Cut) for message in rig.told[session]):
                at[session] = index
    assert len(set(at.values())) == 3
