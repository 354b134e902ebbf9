"""Many calls taken over at once: all speak before any of them remembers more, and they share the codec's passes."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from torch import Tensor

from model.conversation import Models
from model.folder import ModelFolder
from model.mimi.codec import MimiState
from model.wire import FRAME_SAMPLES, Ready
from tests.model.rig import Rig, caller_pcm, request

pytestmark = pytest.mark.usefixtures("one_thread")

CALLS = 8
FRAMES = 20
FAST = 6


@pytest.fixture
def second(models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A worker that has just been handed eight calls of another, each of 20 frames."""
    monkeypatch.setattr("model.calls.FAST_FRAMES", FAST)
    first, second = Rig(models, tiny, slots=1), Rig(models, tiny, slots=CALLS)
    first.open(1, request())
    first.speak(1, 0, FRAMES)
    resume, history = first.history(1, 0)
    for session in range(CALLS):
        second.calls.open(session, request(f"c{session}", resume=replace(resume)), history)
        second.calls.frame(session, FRAMES, caller_pcm(0, FRAMES))
    return second


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
    read = second.stepper.models.lm.read

    def watched(state: object, lm_slot: int, inputs: Tensor) -> None:
        if lm_slot not in second.stepper.lm_slot[:CALLS]:
            deep.append(ready(second))
        read(state, lm_slot, inputs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second.stepper.models.lm, "read", watched)
        second.settle()
    assert len(deep) >= CALLS, "each got the rest of its past"
    assert set(deep) == {CALLS}
    assert [len(second.frames(session)) for session in range(CALLS)] == [1] * CALLS
    offsets = second.stepper.state.cache.offset[second.stepper.lm_slot[:CALLS]].tolist()
    prompt = second.calls._calls[0].prompt
    assert prompt is not None
    assert offsets == [prompt.frames + FRAMES + 1] * CALLS


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
    assert rows == [CALLS]
    heard = second.stepper.codec.encoder_kv.offsets
    for session, call in second.calls._calls.items():
        assert heard[call.slot] == 2 * (FRAMES + len(second.frames(session))), "of what a caller said, nothing twice"


def test_one_whose_window_is_nearly_full_does_not_wait_for_others_to_speak(second: Rig) -> None:
    until_all_are_ready(second)
    calls = second.calls
    assert all(job.room is not None for job in calls._jobs)
    hurried = calls._jobs[-1].call
    second.reading.clear()
    calls.play(hurried.session, "slow")
    spare = second.stepper.spare_lm_slots[0]
    for _ in range(20):
        calls._advance_job()
    assert int(second.stepper.state.kv.offsets[spare]) == 0, "somebody waits, and all have room"
    hurried.base = calls._window - 2 - hurried.columns.end
    calls._advance_job()
    assert int(second.stepper.state.kv.offsets[spare]) > 0
    second.reading.set()
