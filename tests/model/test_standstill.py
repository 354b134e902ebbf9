"""Work beside the steps that stands still, for a disk or for the device: calls go on, others are refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from model.conversation import Models
from model.engine_options import EngineOptions
from model.engine_start import Started
from model.engine_watch import HUNG_SECONDS, LOOK_SECONDS, QUIET_SECONDS
from model.folder import ModelFolder
from model.gpu_process import Loop
from model.pace import FRAME
from model.ring import make_channel
from model.standstill import DEVICE, DeviceHung, Standstill
from model.wire import Error, Ready, Resume
from tests.model.rig import Rig, caller_pcm, is_ready, request

pytestmark = pytest.mark.usefixtures("one_thread")

NOTHING: dict[str, object] = {DEVICE: None, "voices": None, "clips": None}


def looked(still: Standstill, begin: float, end: float, **signs: object) -> str:
    """Look as often as is done, from `begin` to `end`: the refusal then."""
    while begin < end:
        begin += LOOK_SECONDS
        still.look(begin, {**NOTHING, **signs})
    return still.refusal


def test_only_what_is_the_same_for_three_seconds_stands_still() -> None:
    still = Standstill()
    assert looked(still, 0.0, 60.0) == ""
    assert looked(still, 60.0, 60.0 + QUIET_SECONDS, clips="one") == ""
    assert looked(still, 63.0, 63.0 + QUIET_SECONDS, clips="two") == ""
    assert "clips cannot be read" in looked(still, 66.0, 66.5, clips="two")
    assert still.device_refusal == ""
    assert looked(still, 66.5, 67.0) == ""


def test_an_engine_whose_steps_are_slow_is_given_longer() -> None:
    assert looked(Standstill(1.0), 0.0, 15.0, device="busy") == ""


def test_a_device_is_given_up_after_ten_seconds_and_a_disk_never() -> None:
    still = Standstill()
    refusal = looked(still, 0.0, 600.0, voices="one")
    assert "the disk" in refusal
    assert "the device is busy" in refusal, "a recording's voice goes through the codec there"
    assert looked(still, 600.0, 600.0 + HUNG_SECONDS, device="busy") == still.device_refusal != ""
    with pytest.raises(DeviceHung, match=r"the device does not end .* for 10 s; the engine ends"):
        looked(still, 610.0, 610.5, device="busy")


def test_a_machine_that_was_suspended_is_no_device_that_stands_still() -> None:
    still = Standstill()
    assert looked(still, 0.0, 1.0, device="busy") == ""
    assert looked(still, 86_400.0, 86_400.5, device="busy") == ""


@pytest.fixture
def rig(models: Models, tiny: ModelFolder) -> Rig:
    """A call speaks, and three slots are free."""
    rig = Rig(models, tiny, slots=4)
    rig.open(1, request())
    return rig


def let_pass(rig: Rig, seconds: float) -> None:
    """Its call goes on for so long, each frame answered."""
    frames = rig.frames(1)
    first = frames[-1].index + 1 if frames else 0
    for index in range(first, first + round(seconds / FRAME)):
        rig.hear(1, index, caller_pcm(0, index))
        for _ in range(16):
            rig.calls.work()
            rig.now += FRAME / 16
        assert rig.frames(1)[-1].index == index


@contextmanager
def held_disk(rig: Rig) -> Iterator[None]:
    """Whoever reads a voice waits for it, and does so already."""
    begun, release = threading.Event(), threading.Event()

    def read() -> None:
        begun.set()
        assert release.wait(60)

    parts = rig.assets._thread.beside(read)
    assert next(parts) is False
    try:
        assert begun.wait(60)
        yield
    finally:
        release.set()


@contextmanager
def slow_clips(rig: Rig) -> Iterator[None]:
    """Whoever reads the clip `slow` waits for it."""
    rig.reading.clear()
    try:
        yield
    finally:
        rig.reading.set()


def test_while_a_disk_does_not_answer_calls_go_on_and_no_other_is_taken_that_would_wait_in_vain(rig: Rig) -> None:
    rig.speak(1, 0, 2)
    resume, history = rig.history(1, 0)
    with held_disk(rig):
        rig.calls.open(2, request("c2", prompt="you are another"), rig.history_of_nothing)
        let_pass(rig, QUIET_SECONDS - 1)
        assert rig.calls.refusal == ""
        let_pass(rig, 2)
        assert "the disk" in rig.calls.refusal
        assert rig.told[2] == []
        rig.calls.close(2)
        let_pass(rig, 1)
        assert "the disk" in rig.calls.refusal, "its thread waits still, whoever may have asked"
        rig.calls.open(3, request("c3"), rig.history_of_nothing)
        assert rig.told[3] == [Error("full", rig.calls.refusal)]
        rig.calls.open(4, request("c4", resume=resume), history)
        let_pass(rig, 1)
        assert isinstance(rig.told[4][0], Ready), "what it needs is here, and it has no other engine"
    rig.assets._thread.submit(int).result(60)
    let_pass(rig, FRAME)
    assert rig.calls.refusal == ""


def test_a_call_whose_prompt_is_kept_needs_no_disk(rig: Rig) -> None:
    with held_disk(rig):
        assert is_ready(rig.open(2, request("c2")))


def test_a_clip_that_is_not_to_be_had_holds_up_nobody_who_needs_none(rig: Rig) -> None:
    with slow_clips(rig):
        rig.calls.play(1, "slow")
        assert is_ready(rig.open(2, request("c2", prompt="you are another")))
        let_pass(rig, QUIET_SECONDS + 1)
        assert "clips cannot be read" in rig.calls.refusal


def test_who_waits_for_a_disk_keeps_nobody_from_getting_his_past_back(
    rig: Rig, models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.calls.FAST_FRAMES", 6)
    rig.speak(1, 0, 20)
    resume, history = rig.history(1, 0)
    other = Rig(models, tiny, slots=2)
    other.open(2, request("c2"))
    other.open(1, request(resume=resume), history)
    with slow_clips(other):
        other.calls.play(2, "slow")
        index = 20
        while not other.calls.refusal:
            other.hear(1, index, caller_pcm(0, index))
            index += 1
            assert other.calls.remembering(1)
            other.calls.work()
            other.now += FRAME
        for _ in range(200):
            other.calls.work()
            other.now += FRAME / 16
        assert not other.calls.remembering(1)


@contextmanager
def still_device() -> Iterator[bool]:
    yield False


def test_a_device_that_does_not_end_what_it_was_given_beside_the_steps_is_given_up(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.speak(1, 0, 2)
    monkeypatch.setattr(rig.stepper, "aside", still_device)
    let_pass(rig, QUIET_SECONDS + 1)
    assert rig.calls.refusal == "", "nobody asked for anything"
    rig.calls.open(2, request("c2"), rig.history_of_nothing)
    let_pass(rig, QUIET_SECONDS + 1)
    assert "the device" in rig.calls.refusal
    rig.calls.open(3, request("c3", resume=Resume()), rig.history_of_nothing)
    assert rig.told[3] == [Error("full", rig.calls.refusal)]
    rig.now += 3_600
    let_pass(rig, 1)
    with pytest.raises(DeviceHung):
        let_pass(rig, HUNG_SECONDS)


def test_the_engines_process_tells_why_no_call_is_taken(models: Models, tiny: ModelFolder) -> None:
    ours, ends = make_channel(1 << 16)
    theirs, rig = ends.channel(), Rig(models, tiny, slots=1)
    loop = Loop(theirs, Started(rig.stepper, 1, {1: 0.01}, rig.prompts, rig.assets), EngineOptions(""))
    assert loop._now().refusal == ""
    looked(loop._calls._standstill, 0.0, 2 * QUIET_SECONDS, voices="one")
    assert "the disk" in loop._now().refusal
    ours.close()
    theirs.close()
