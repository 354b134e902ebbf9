"""Many calls taken over at once: they share passes, the first speak before the last can, all before any knows more."""

from __future__ import annotations

import threading
from collections.abc import Generator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.call_jobs import Job
from model.codec_passes import SOUND
from model.conversation import Models
from model.folder import ModelFolder
from model.mimi.codec import MimiState
from model.pace import FRAME
from model.scheduler import Frame
from model.wire import FRAME_SAMPLES, Ready
from tests.model.rig import Rig, caller_pcm, read_passes, request

pytestmark = pytest.mark.usefixtures("one_thread")

CALLS = 8
FRAMES = 20
FAST = 6


@pytest.fixture
def first(models: Models, tiny: ModelFolder) -> Rig:
    """A worker with one call, of 20 frames."""
    rig = Rig(models, tiny, slots=1)
    rig.open(1, request())
    rig.speak(1, 0, FRAMES)
    return rig


def taken_over(first: Rig, second: Rig, calls: int) -> Rig:
    """`second` has just been handed so many calls like the one of `first`."""
    resume, history = first.history(1, 0)
    for session in range(calls):
        second.calls.open(session, request(f"c{session}", resume=replace(resume)), history)
        second.hear(session, FRAMES, caller_pcm(0, FRAMES))
    return second


@pytest.fixture
def second(first: Rig, models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A worker that has just been handed eight calls, whose past is longer than what they speak again with."""
    monkeypatch.setattr("model.calls.FAST_FRAMES", FAST)
    return taken_over(first, Rig(models, tiny, slots=CALLS), CALLS)


def ready(rig: Rig) -> int:
    """Calls that speak."""
    return sum(isinstance(one, Ready) for told in rig.told.values() for one in told)


def prepare_all(rig: Rig) -> None:
    """Let all have asked for their prompts, and all prompts be there."""
    hold = threading.Event()
    rig.assets._thread.submit(hold.wait, 60)
    assert not rig.calls._advance_job(), "all wait for the thread"
    hold.set()
    rig.assets._thread.submit(int).result(60)


def until_all_are_ready(rig: Rig) -> None:
    while ready(rig) < CALLS:
        rig.settle(once=True)


def test_all_speak_before_any_remembers_more_than_its_newest_frames(second: Rig) -> None:
    deep: list[int] = []
    with read_passes(second) as seen:
        while second.calls.work() or second._jump():
            deep += [ready(second) for lm_slots, _ in seen if lm_slots[0] not in second.stepper.lm_slot[:CALLS]]
            seen.clear()
    assert len(deep) >= CALLS, "each got the rest of its past"
    assert set(deep) == {CALLS}
    assert [len(second.frames(session)) for session in range(CALLS)] == [1] * CALLS
    offsets = second.stepper.state.cache.offset[second.stepper.lm_slot[:CALLS]].tolist()
    prompt = second.calls._calls[0].prompt
    assert prompt is not None
    assert offsets == [prompt.frames + FRAMES + 1] * CALLS


def test_where_many_wait_each_speaks_again_with_less_of_its_past_and_gets_the_rest_too(
    second: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = 4
    monkeypatch.setattr("model.calls._FEW_WAITING", CALLS - 1)
    monkeypatch.setattr("model.calls.HASTY_FRAMES", hasty)
    monkeypatch.setattr("model.long_reads._COLUMNS", 3 * hasty)
    with read_passes(second) as seen:
        prepare_all(second)
        until_all_are_ready(second)
        pasts = [length for rows, length in seen if rows[0] in second.stepper.lm_slot[:CALLS] and length == hasty]
        assert len(pasts) == 3, "three calls in a pass, and those of the last read no more than those of the first"
        seen.clear()
        while second.calls.work() or second._jump():
            pass
        assert len(seen) >= CALLS
    offsets = second.stepper.state.cache.offset[second.stepper.lm_slot[:CALLS]].tolist()
    prompt = second.calls._calls[0].prompt
    assert prompt is not None
    assert offsets == [prompt.frames + FRAMES + 1] * CALLS


@pytest.mark.parametrize("padded", [False, True], ids=["as long as it is", "filled up as on a GPU"])
def test_eight_calls_read_their_past_in_one_pass_and_go_on_as_they_would_have(
    first: Rig, models: Models, tiny: ModelFolder, padded: bool
) -> None:
    second = Rig(models, tiny, slots=CALLS)
    passes = second.calls._passes
    passes.reads._padded = passes.codec._padded = padded
    taken_over(first, second, CALLS)
    with read_passes(second) as seen:
        prepare_all(second)
        until_all_are_ready(second)
    prompt = second.calls._calls[0].prompt
    assert prompt is not None
    of_prompt, of_pasts = [rows for rows, _ in seen if len(rows) == 1], [each for each in seen if len(each[0]) > 1]
    assert len(of_prompt) == len(list(prompt.inputs(0))), "which all of them have, and one reads"
    assert of_pasts == [(second.stepper.lm_slot[:CALLS], 32 if padded else FRAMES)]
    for rig in (first, second):
        for index in range(FRAMES, FRAMES + 6):
            for session in rig.calls._calls:
                rig.hear(session, index, caller_pcm(0, index))
            rig.settle()
            rig.now += FRAME
    for session in range(CALLS):
        assert second.columns(session) == first.columns(1)[FRAMES:]


def test_the_first_speak_while_the_others_are_still_prepared(
    first: Rig, models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.long_reads._SIZES", (1, CALLS))
    calls = 2 * CALLS + 1
    second = taken_over(first, Rig(models, tiny, slots=calls), calls)
    prepare_all(second)
    passes = 0
    spoke: list[int] = []
    work = second.calls._passes.work

    def counted() -> bool:
        nonlocal passes
        passes += (did := work())
        return did

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second.calls._passes, "work", counted)
        while len(spoke) < calls:
            second.settle(once=True)
            second.now += 0.01
            spoke += [passes] * (sum(bool(second.frames(session)) for session in range(calls)) - len(spoke))
    # Each eight take three: they hear, read and speak. One of the next eight's may come before a tick lets them step.
    assert spoke[CALLS - 1] <= passes - 5
    assert spoke[2 * CALLS - 1] <= passes - 2


def test_the_more_calls_wait_to_speak_the_fewer_steps_come_between_their_parts(
    first: Rig, models: Models, tiny: ModelFolder
) -> None:
    def steps_in_a_row(calls: int) -> int:
        second = taken_over(first, Rig(models, tiny, slots=calls + 1), calls)
        second.calls._interleaving.parted(None)
        prepare_all(second)
        count = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(second.scheduler, "due", lambda now: [Frame(0, 0, b"", 0.0, 0.0)])
            patch.setattr(second.calls, "_step", lambda frames: None)
            patch.setattr(second.calls, "_advance_job", lambda: pytest.fail("its turn"))
            while count < 100:
                try:
                    second.calls.work()
                except pytest.fail.Exception:
                    return count
                count += 1
        return count

    assert [steps_in_a_row(calls) for calls in (1, 2, 8)] == [8, 4, 1]


def test_parts_that_take_long_are_not_all_done_before_the_next_step(first: Rig) -> None:
    """Those that only come to wait for a pass count, too; it is begun when all have come."""
    calls, come = first.calls, list[int]()

    def parts(number: int) -> Generator[bool]:
        first.now += 0.002
        come.append(number)
        while len(come) < CALLS:
            yield False

    calls._jobs = [Job(calls._calls[1], parts(number)) for number in range(CALLS)]
    turns = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calls._passes, "work", lambda: pytest.fail("not all have come"))
        while calls._jobs:
            assert first.part()
            turns.append(len(come))
    assert turns[:3] == [3, 6, CALLS]


def test_eight_calls_take_as_many_passes_of_the_codec_as_one(second: Rig) -> None:
    rows: list[int] = []
    mimi = second.stepper.models.mimi
    encode = mimi.encode_step

    def watched(state: MimiState, slots: Tensor, pcm: Tensor, n_q: int | None = None) -> Tensor:
        if pcm.shape[2] > FRAME_SAMPLES:  # not a step
            rows.append(slots.shape[0])
        return encode(state, slots, pcm, n_q)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mimi, "encode_step", watched)
        prepare_all(second)
        until_all_are_ready(second)
    parts = list(second.calls._passes.codec.parts(torch.zeros(FRAMES * FRAME_SAMPLES, dtype=SOUND)))
    assert rows == [CALLS] * len(parts)
    heard = second.stepper.codec.encoder_kv.offsets
    for session, call in second.calls._calls.items():
        assert heard[call.slot] == 2 * (FRAMES + len(second.frames(session))), "of what a caller said, nothing twice"


def test_whoever_has_the_least_room_when_the_spare_is_free_gets_it(second: Rig) -> None:
    """Not whoever had when it was asked for."""
    until_all_are_ready(second)
    calls = second.calls
    hurried = calls._jobs[-1].call
    hurried.base += 50
    while hurried.renewing:
        assert second.part()
    assert sum(call.renewing for call in calls._calls.values()) == CALLS - 1


def test_who_holds_the_spare_has_no_more_room_than_who_waits_for_it(second: Rig) -> None:
    until_all_are_ready(second)
    calls = second.calls
    assert second.part()
    assert not calls._spares
    second.reading.clear()
    hurried = calls._jobs[-1].call
    calls.play(hurried.session, "slow")
    for _ in range(20):
        second.part()
    assert not calls._spares, "somebody waits, and all have room"
    hurried.base = calls._room._window - 2 - hurried.columns.end
    for _ in range(20):
        second.part()
    assert not hurried.renewing
    assert sum(call.renewing for call in calls._calls.values()) == CALLS - 2
    second.reading.set()


def test_one_whose_window_is_nearly_full_does_not_wait_for_others_to_speak(second: Rig) -> None:
    until_all_are_ready(second)
    calls = second.calls
    assert not any(job.pressing for job in calls._jobs)
    hurried = calls._jobs[-1].call
    second.reading.clear()
    calls.play(hurried.session, "slow")
    spare = second.stepper.spare_lm_slots[0]
    for _ in range(20):
        second.part()
    assert int(second.stepper.state.kv.offsets[spare]) == 0, "somebody waits, and all have room"
    hurried.base = calls._room._window - 2 - hurried.columns.end
    second.part()
    assert int(second.stepper.state.kv.offsets[spare]) > 0
    second.reading.set()
