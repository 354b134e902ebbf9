"""Slots rebuilt from their history: calls that move to another engine, and calls longer than the window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model import history as history_module
from model import wire
from model.codec_passes import CodecPasses
from model.config import TEXT_PAD, LMConfig
from model.conversation import Models, role_ids
from model.engine import Stepper, StepResult
from model.folder import ModelFolder
from model.history import _FEW, Columns, TakenOver, kept_frames
from model.interleaving import STARVED
from model.long_reads import LongReads
from model.pace import FRAME
from model.prompt import SILENCE, SINE, check_length, longest_prompt, prompt_length
from model.scheduler import Scheduler
from model.shared_passes import SharedPasses
from model.wire import NO_TOKEN, Cut, Error, History, Resume, Sampling
from tests.model.rig import GREEDY, WINDOW, Rig, as_ids, caller_pcm, request

pytestmark = pytest.mark.usefixtures("one_thread")


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
    columns.wipe()
    assert columns.end == columns.start


@pytest.mark.parametrize("kept", [1, 300])
def test_columns_leave_nothing_where_they_were(kept: int) -> None:
    """Neither what a long call forgets, nor where they had less room, nor at its end."""
    columns, rooms = Columns(), list[Any]()
    for index in range(1_000):
        columns.append(np.full(17, index % 2000 + 1, np.int64))
        if not any(columns._room is room for room in rooms):
            rooms.append(columns._room)
        columns.forget(index + 1 - kept)
        assert sum(np.count_nonzero(room) for room in rooms) == 17 * (columns.end - columns.start)
    assert columns.between(999, 1_000)[:, 0].tolist() == [1_000] * 17
    assert len(rooms) > 3
    columns.wipe()
    assert not any(room.any() for room in rooms)


@pytest.mark.parametrize("context", [40, 400, 3000])
def test_with_any_prompt_that_is_taken_a_slot_keeps_newest_frames_in_45_per_cent_of_the_window(context: int) -> None:
    for text in range(longest_prompt(context) - prompt_length(0, 0) + 1):
        prompt = check_length(0, text, context, reprimed=True)
        kept = kept_frames(context, prompt)
        assert kept >= context // 20
        assert prompt + kept <= 0.45 * context


def test_what_is_kept_of_long_calls_leaves_a_large_gpu_time_for_others_and_more_would_take_all() -> None:
    """By calculation, from what was measured: one re-priming of a full-sized call, with 45 % of its window, took an
    H200 371 ms beside 127 calls that spoke (`deploy/benchmarks.md`)."""
    window, calls, took = 3_000, 128, 0.371
    measured, early = window * 9 // 20, window // 20

    def share(kept: int) -> float:
        """Of its time, if `kept` frames, prompt and all, are read again whenever the rest of a call's window is full,
        less the frames by which that is done early; a longer reading takes as much longer."""
        return calls * took * kept / measured / (FRAME * (window - 1 - kept - early))

    assert 0.35 < share(300 + kept_frames(window, 300)) < 0.45
    assert share(2_500) > 1


def test_a_prompt_that_could_not_be_given_back_is_refused_and_taken_where_none_is(
    short: Models, brief: ModelFolder
) -> None:
    reprimed, sliding = Rig(short, brief), Rig(short, brief, context="sliding")
    told = reprimed.open(1, request(prompt="hello"))
    assert isinstance(told, Error)
    assert told.code == "invalid"
    assert "16 are the most that long calls can be given back" in told.message
    assert isinstance(sliding.open(1, request(prompt="hello")), wire.Ready)


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


@pytest.mark.parametrize("frames", [8, 9, 10, 11])
def test_a_call_primed_anew_goes_on_token_for_token_wherever_in_its_ring_of_cells_it_stands(
    models: Models, tiny: ModelFolder, frames: int
) -> None:
    unbroken, renewed = Rig(models, tiny), Rig(models, tiny)
    for rig in (unbroken, renewed):
        rig.open(1, request())
        rig.speak(1, 0, frames)
    renewed.calls._renew(renewed.calls._calls[1], 0)
    renewed.settle()
    for rig in (unbroken, renewed):
        rig.speak(1, frames, frames + 6)
    assert renewed.stepper.lm_slot[0] != unbroken.stepper.lm_slot[0]
    assert renewed.columns(1) == unbroken.columns(1)


@pytest.mark.parametrize("frames", [8, 9, 10, 11])
def test_a_call_taken_over_goes_on_as_the_unbroken_one_once_it_knows_the_rest_whenever_it_was_cut(
    models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    monkeypatch.setattr("model.calls.FAST_FRAMES", 6)
    first, second = Rig(models, tiny), Rig(models, tiny)
    first.open(1, request())
    first.speak(1, 0, frames)
    resume, history = first.history(1, 0)
    second.open(1, request(resume=resume), history)
    second.settle()
    for rig in (first, second):
        rig.speak(1, frames, frames + 6)
    assert second.columns(1) == first.columns(1)[frames:]


def saturated(rig: Rig, step: float, frames: int) -> None:
    """So many more frames of calls 1 and 2, by turns, while each step takes `step` seconds."""
    real = rig.stepper.step

    def slow(slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        rig.now += step
        return real(slots, pcm)

    first = len(rig.frames(1))
    coming = [
        (rig.now + FRAME * index + step * (session - 1), session, first + index)
        for index in range(frames)
        for session in (1, 2)
    ]
    rig.stepper.step = slow  # type: ignore[method-assign]
    while coming or rig.scheduler.next_due() is not None:
        while coming and coming[0][0] <= rig.now:
            came, session, index = coming.pop(0)
            rig.calls.frame(session, index, caller_pcm(session, index), came)
        if not rig.calls.work():
            rig.now = min(at for at in (coming[0][0] if coming else None, rig.calls.wake_at()) if at is not None)
    rig.stepper.step = real  # type: ignore[method-assign]


def test_on_an_engine_without_a_pause_between_its_steps_priming_anew_comes_to_an_end(
    models: Models, tiny: ModelFolder
) -> None:
    """Eight steps come between two of its parts: four frames more of each call."""
    rig = Rig(models, tiny, slots=2)
    rig.scheduler = rig.calls.scheduler = Scheduler(2, costs={1: FRAME / 2, 2: FRAME / 2})
    for session in (1, 2):
        rig.open(session, request(f"c{session}"))
    saturated(rig, FRAME / 2, 6)
    rig.calls._renew(rig.calls._calls[1], 2)
    saturated(rig, FRAME / 2, 24)
    assert [message for message in rig.told[1] if isinstance(message, Cut)] == [Cut(2)]
    assert len(rig.calls._spares) == 1
    assert rig.scheduler.late == 0
    assert _FEW >= STARVED, "of one call alone all eight steps can be"


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


@pytest.mark.parametrize(("prompt", "left"), [("you are", 5), ("you are a", 4), ("you like", 3), ("be kind", 2)])
@pytest.mark.parametrize("past", [1, 6])
def test_a_call_whose_prompt_nearly_fills_the_window_is_taken_over_with_its_newest_frames(
    short: Models, brief: ModelFolder, prompt: str, left: int, past: int
) -> None:
    """Where calls are not primed anew, the longest prompts leave one frame of the talk in sight."""
    frames = prompt_length(4, len(role_ids(short, prompt)))
    assert frames == WINDOW - left
    first, second = Rig(short, brief, context="sliding"), Rig(short, brief, context="sliding")
    first.open(1, request(prompt=prompt))
    first.speak(1, 0, past)
    resume, history = first.history(1, 0)
    second.open(1, request(prompt=prompt, resume=resume), history)
    lm_slot, state = second.stepper.lm_slot[0], second.stepper.state
    offset = int(state.cache.offset[lm_slot])
    assert offset == int(state.kv.offsets[lm_slot]) + 1
    assert frames < offset < WINDOW, "something of the talk, and the prompt is in sight"
    assert state.cache.tokens[lm_slot, :, (offset - 1) % 4].tolist() == as_ids(first.calls._calls[1].columns)[-1]
    second.settle()
    for rig in (first, second):
        rig.speak(1, past, past + 6)
    assert len(second.frames(1)) == 6
    if past == 1:
        assert second.columns(1)[0] == first.columns(1)[1], "until the window slides"


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


@pytest.mark.parametrize(("frames", "heard", "missed"), [(12, 0, 3), (12, 5, 9), (12, 15, 3), (0, 4, 4), (12, 12, 0)])
def test_what_nobody_answered_holds_the_callers_codes_each_in_its_own_column_as_far_as_they_are_known(
    models: Models, frames: int, heard: int, missed: int
) -> None:
    config, draw = models.config, torch.Generator().manual_seed(frames + heard)
    codes = torch.randint(0, 2048, (8, heard), generator=draw)
    answered = torch.randint(0, 40, (frames, 17), generator=draw).numpy().astype("<u2")
    resume = Resume(10, frames, heard, missed)
    taken = TakenOver(config, resume, Columns(10, answered.tobytes()), codes)
    columns = taken.columns.between(10, taken.columns.end)
    assert columns.shape[1] == frames + missed
    assert columns[:, :frames].tolist() == answered.T.tolist()
    following = torch.cat((columns[:, frames:], taken.ahead[:, None]), dim=1)
    for place in range(missed + 1):
        column = [TEXT_PAD, *SILENCE, *SINE]
        for book in range(8):
            frame = place - missed + heard - config.delays[9 + book]
            if 0 <= frame < heard:
                column[9 + book] = int(codes[book, frame])
        assert following[:, place].tolist() == column
    delayed = [delay > 0 for delay in config.delays]
    assert taken.given.tolist() == (delayed if missed else [False] * 9 + delayed[9:])


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_what_nobody_answered_takes_no_longer_for_ten_seconds_than_for_one(models: Models) -> None:
    """Of hundreds of calls taken over at once, all of it between two steps."""
    counts = []
    for missed in (12, 120):
        with _Counting() as counting:  # type: ignore[no-untyped-call]
            TakenOver(models.config, Resume(0, 0, 125, missed), Columns(), torch.zeros((8, 125), dtype=torch.long))
        counts.append(counting.count)
    assert counts[0] == counts[1]


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


def test_a_history_that_is_refused_is_overwritten(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[Columns] = []
    repaired = history_module._repaired

    def watched(config: LMConfig, columns: Columns) -> Columns:
        known.append(columns)
        return repaired(config, columns)

    monkeypatch.setattr(history_module, "_repaired", watched)
    stepper = Stepper(models, 1)
    share = SharedPasses(CodecPasses(stepper), LongReads(stepper)).share(0)
    history = History(np.full((2, 17), 2500, "<u2").tobytes(), b"")
    with pytest.raises(ValueError, match="made with another"):
        next(TakenOver.of(models.config, share, 0, Resume(0, 2, 0, 0), history))
    assert not known[0]._room.any()
