"""Calls on one engine: what each is told, and what it never is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from model.call_jobs import Job
from model.conversation import Models
from model.engine import StepResult
from model.folder import ModelFolder
from model.pace import FRAME, TICKS
from model.prompt import SILENCE
from model.wire import Error, Late, Ready, Sampling
from tests.model.rig import GREEDY, Rig, caller_pcm, is_ready, request

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rig(models: Models, tiny: ModelFolder) -> Rig:
    return Rig(models, tiny, slots=2)


def test_each_caller_frame_is_answered_once_with_sound_and_a_column(rig: Rig) -> None:
    assert rig.open(1, request()) == Ready("personaplex")
    rig.speak(1, 0, 5)
    assert [frame.index for frame in rig.frames(1)] == [0, 1, 2, 3, 4]
    assert {(len(frame.pcm), len(frame.tokens)) for frame in rig.frames(1)} == {(3840, 34)}
    assert rig.frames(1)[0].tokens[4:18] == b"".join(code.to_bytes(2, "little") for code in SILENCE[1:])


def test_the_call_beyond_the_slots_is_refused_at_once_and_the_next_after_a_hang_up_taken(rig: Rig) -> None:
    rig.open(1, request("a"))
    rig.open(2, request("b"))
    assert rig.open(3, request("c")) == Error("full", "all 2 slots of this worker are taken")
    rig.calls.close(1)
    assert is_ready(rig.open(4, request("d")))


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(prompt="the bank " * 200), "frames"),
        (request(sampling=Sampling(top_k=0)), "top-k keeps at least 1 token"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_and_its_slot_is_free_again(
    rig: Rig, asked: object, reason: str
) -> None:
    told = rig.open(1, asked)  # type: ignore[arg-type]
    assert isinstance(told, Error)
    assert told.code == "invalid"
    assert reason in told.message
    assert rig.scheduler.active == 0
    assert is_ready(rig.open(2, request()))


def test_an_unknown_voice_is_refused_by_its_name(rig: Rig) -> None:
    told = rig.open(1, request(voice="NOBODY"))
    assert isinstance(told, Error)
    assert "NOBODY" in told.message


def test_frames_sent_before_the_slot_speaks_are_answered_when_it_does(rig: Rig) -> None:
    rig.calls.open(1, request(), rig.history_of_nothing)
    for index in range(3):
        rig.hear(1, index, caller_pcm(0, index))
    rig.settle()
    assert [frame.index for frame in rig.frames(1)] == [0, 1, 2]


def test_nothing_late_reaches_the_next_caller_of_a_slot(models: Models, tiny: ModelFolder) -> None:
    rig = Rig(models, tiny, slots=1)
    rig.open(1, request("first", greeting="hello and thank you"))
    rig.speak(1, 0, 6, seed=1)
    rig.hear(1, 6, caller_pcm(1, 6))
    rig.calls.close(1)
    before = len(rig.told[1])
    rig.open(2, request("second"))
    rig.hear(1, 7, caller_pcm(1, 7))
    rig.calls.say(1, "late words")
    rig.speak(2, 0, 10)
    assert len(rig.told[1]) == before
    fresh = Rig(models, tiny, slots=1)
    fresh.open(1, request("second"))
    fresh.speak(1, 0, 10)
    assert rig.columns(2) == fresh.columns(1)
    assert [frame.pcm for frame in rig.frames(2)] == [frame.pcm for frame in fresh.frames(1)]


def held(rig: Rig, lm_slot: int, start: int = 0) -> bool:
    """Whether anything is kept in a language memory from position `start` on."""
    rig.wait_for_device()
    return any(bool(ring[:, lm_slot, :, start:].any()) for ring in rig.stepper.state.kv.rings())


def test_what_a_call_leaves_in_memory_is_wiped_behind_the_steps_of_others(rig: Rig) -> None:
    for session in (1, 2):
        rig.open(session, request(f"c{session}"))
    rig.speak(1, 0, 4)
    call = rig.calls._calls[1]
    lm_slot, columns = rig.stepper.lm_slot[call.slot], call.columns._room
    assert held(rig, lm_slot)
    assert columns.any()
    rig.calls.close(1)
    assert not columns.any()
    rig.hear(2, 0, caller_pcm(0, 0))
    rig.now += FRAME
    wake = rig.calls.wake_at()
    assert rig.calls.work()
    assert len(rig.frames(2)) == 1
    assert held(rig, lm_slot), "nobody waited for it"
    assert wake is not None
    assert rig.calls.wake_at() is not None, "though no call is due"
    assert rig.calls.work()
    assert not held(rig, lm_slot)
    assert held(rig, rig.stepper.lm_slot[rig.calls._calls[2].slot])
    assert not rig.calls.work()
    assert rig.calls.wake_at() is None


def test_what_a_call_heard_and_said_last_and_was_told_to_say_is_overwritten_when_it_ends(rig: Rig) -> None:
    rig.open(1, request(greeting="hello Ann"))
    rig.open(2, request("other"))
    rig.speak(1, 0, 3)
    stepper, (slot, other) = rig.stepper, (call.slot for call in rig.calls._calls.values())
    stepper.step([slot, other], [caller_pcm(0, 3), caller_pcm(1, 0)])
    assert len(stepper._buffers) == 2
    mirrored = [part for buffers in stepper._buffers.values() for part in (buffers._in, buffers._out)]
    words = (stepper.words._pieces[slot], stepper.words._here[0][slot])
    assert all(bool(part.any()) for part in words)
    assert all(bool(part.any()) for one in mirrored for part in (one._here, one._there))
    rig.calls.close(1)
    rig.wait_for_device()
    assert not any(bool(part.any()) for part in words)
    assert not any(bool(part.any()) for one in mirrored for part in (one._here, one._there))
    rig.speak(2, 1, 3)
    assert len(rig.frames(2)) == 3


def test_a_slot_that_is_taken_again_at_once_is_wiped_first_and_never_afterwards(
    models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, fresh = Rig(models, tiny, slots=1), Rig(models, tiny, slots=1)
    rig.open(1, request())
    rig.speak(1, 0, 12, seed=1)
    rig.calls.close(1)
    with monkeypatch.context() as patch:
        patch.setattr(rig.stepper, "wipe", lambda: False)  # other work kept it from its turn
        for each in (rig, fresh):
            assert is_ready(each.open(2, request("second")))
    call = rig.calls._calls[2]
    assert call.prompt is not None
    assert not held(rig, rig.stepper.lm_slot[call.slot], call.prompt.positions)
    assert not rig.stepper.unwiped
    for each in (rig, fresh):
        each.speak(2, 0, 6)
    assert rig.columns(2) == fresh.columns(2)


def test_a_slot_whose_numbers_break_down_is_closed_and_its_neighbour_goes_on(models: Models, tiny: ModelFolder) -> None:
    rig, calm = Rig(models, tiny, slots=2), Rig(models, tiny, slots=2)
    for each in (rig, calm):
        each.open(1, request("broken"))
        each.open(2, request("whole"))
        each.speak(2, 0, 2)
    rig.stepper.state.kv.values[:, rig.stepper.lm_slot[0]] = float("nan")
    rig.hear(1, 0, caller_pcm(0, 0))
    for each in (rig, calm):
        each.speak(2, 2, 5)
    errors = [message for message in rig.told[1] if isinstance(message, Error)]
    assert [error.code for error in errors] == ["failed"]
    assert rig.frames(1) == []
    assert rig.columns(2) == calm.columns(2)
    assert rig.calls.faults == 1
    assert is_ready(rig.open(3, request("next")))
    rig.speak(3, 0, 2)
    assert len(rig.frames(3)) == 2


def test_a_prompt_that_was_kept_with_numbers_that_are_none_is_read_anew_after_it_has_cost_a_call(
    rig: Rig,
) -> None:
    rig.open(1, request())
    rig.calls.close(1)
    ((_, saved),) = rig.prompts._kept.values()
    for ring in saved.rings:
        ring[...] = float("nan")
    rig.open(2, request("unlucky"))
    rig.speak(2, 0, 1)
    assert isinstance(rig.told[2][-1], Error)
    for session, prompt in ((3, "you are a kind teacher"), (4, "you are another")):
        assert is_ready(rig.open(session, request(f"c{session}", prompt=prompt)))
        rig.speak(session, 0, 2)
        assert len(rig.frames(session)) == 2


def test_a_caller_whose_frames_get_lost_is_heard_as_silent_there(rig: Rig, models: Models, tiny: ModelFolder) -> None:
    rig.open(1, request())
    rig.speak(1, 0, 2)
    rig.speak(1, 4, 6)
    assert [frame.index for frame in rig.frames(1)] == [0, 1, 2, 3, 4, 5]
    told = Rig(models, tiny)
    told.open(1, request())
    told.speak(1, 0, 2)
    for index in (2, 3):
        told.hear(1, index, bytes(3840))
        told.settle()
    told.speak(1, 4, 6)
    assert rig.columns(1) == told.columns(1)
    account = rig.calls.close(1)
    assert account is not None
    assert (account.frames, account.lost) == (6, 2)


def test_a_frame_that_comes_again_is_left_out_and_told_when_the_call_ends(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.open(1, request("twice"))
    rig.speak(1, 0, 3)
    rig.speak(1, 1, 4)
    assert [frame.index for frame in rig.frames(1)] == [0, 1, 2, 3]
    rig.calls.close(1)
    assert "call twice: 0 of 4 frames were answered late; 0 of the caller's never came, 2 came again" in caplog.text


def test_late_answers_are_counted_and_told_when_the_call_ends(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.open(1, request("slow"))
    step = rig.stepper.step

    def slow(slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        rig.now += 1.5 * FRAME
        return step(slots, pcm)

    rig.stepper.step = slow  # type: ignore[method-assign]
    rig.speak(1, 0, 4)
    assert isinstance(rig.open(2, request("refused")), Error)
    account = rig.calls.close(1)
    assert account is not None
    assert account.late == 4
    assert [message.index for message in rig.told[1] if isinstance(message, Late)] == [0, 1, 2, 3]
    assert "call slow" in caplog.text
    assert "4 of 4 frames were answered late, the latest after 12" in caplog.text
    assert "ms; 0 of the caller's never came" in caplog.text


def late(rig: Rig, session: int) -> list[int]:
    return [message.index for message in rig.told[session] if isinstance(message, Late)]


def test_frames_that_came_while_the_engine_stood_still_are_late_and_a_burst_is_not(rig: Rig) -> None:
    rig.open(1, request("stood still"))
    begun = rig.now
    rig.now += 5 * FRAME
    for index in range(4):
        rig.calls.frame(1, index, caller_pcm(0, index), begun + index * FRAME)
    rig.settle()
    assert late(rig, 1) == [0, 1, 2, 3]
    assert rig.open(2, request("refused")) == Error("full", rig.scheduler.refusal(rig.now))
    assert "frames run late (4 of 4" in rig.scheduler.refusal(rig.now)

    rig.now += 60
    rig.open(3, request("sent ahead"))
    step = rig.stepper.step

    def slow(slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        rig.now += FRAME / 2
        return step(slots, pcm)

    rig.stepper.step = slow  # type: ignore[method-assign]
    begun = rig.now
    rig.now += FRAME / 4
    for index in range(4):
        rig.calls.frame(3, index, caller_pcm(0, index), begun)
    rig.settle()
    assert len(rig.frames(3)) == 4
    assert late(rig, 3) == []


def test_frames_sent_before_the_slot_speaks_are_late_by_when_they_came(rig: Rig) -> None:
    rig.calls.open(1, request(), rig.history_of_nothing)
    for index in range(4):
        rig.hear(1, index, caller_pcm(0, index))
        rig.now += FRAME
    rig.settle()
    assert late(rig, 1) == [0, 1, 2, 3]


def test_a_frame_told_of_afterwards_steps_at_once_and_its_call_keeps_the_tick_at_which_it_came(
    models: Models, tiny: ModelFolder
) -> None:
    dues = []
    for told_after in (0.0, 0.0213):
        rig = Rig(models, tiny, slots=2)
        rig.open(1, request("before"))
        rig.open(2, request("at the same phase"))
        begun = rig.now = math.ceil(rig.now / FRAME) * FRAME + 0.0011
        rig.hear(1, 0, caller_pcm(0, 0))
        rig.settle()
        rig.now = begun + FRAME + told_after
        rig.calls.frame(2, 0, caller_pcm(0, 0), begun + FRAME)
        if told_after:
            rig.calls.work()
            assert len(rig.frames(2)) == 1, "its tick is over: it waits for no other"
        rig.settle()
        rig.now = begun + 2 * FRAME
        rig.hear(2, 1, caller_pcm(0, 1))
        due = rig.scheduler.next_due()
        assert due is not None
        dues.append(due - begun)
    assert dues[1] == pytest.approx(dues[0])
    assert dues[0] > 2 * FRAME + FRAME / TICKS, "held for a tick with room"


def test_closing_a_call_while_it_is_being_prepared_leaves_everything_free(rig: Rig) -> None:
    rig.calls.open(1, request(), rig.history_of_nothing)
    rig.calls.work()
    rig.calls.close(1)
    rig.settle()
    assert rig.told[1] == []
    assert rig.scheduler.active == 0
    assert rig.calls.close(1) is None


def test_a_hang_up_does_not_make_the_others_wait_for_what_was_begun_for_it(
    models: Models, tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is put in order where it was begun: in the stream behind that of the steps, which waits for nothing."""
    rig = Rig(models, tiny, slots=3)
    stepper, within, put_in_order = rig.stepper, [False], list[str]()
    reset, let_go_lm = stepper.reset, stepper.let_go_lm

    @contextmanager
    def aside() -> Iterator[bool]:
        within[0] = True
        yield True
        within[0] = False

    def watched(name: str, work: Callable[[int], None]) -> Callable[[int], None]:
        def do(slot: int) -> None:
            assert within[0], f"{name} in the stream of the steps"
            put_in_order.append(name)
            work(slot)

        return do

    monkeypatch.setattr("model.history._FEW", 2)
    monkeypatch.setattr(stepper, "aside", aside)
    monkeypatch.setattr(stepper, "reset", watched("slot", reset))
    monkeypatch.setattr(stepper, "let_go_lm", watched("language memory", let_go_lm))
    rig.open(1, request("talks"))
    rig.speak(1, 0, 12)
    rig.calls._renew(rig.calls._calls[1], 0)
    while rig.calls._spares:
        assert rig.part()
    rig.calls.open(2, request("opened", prompt="a long prompt " * 8), rig.history_of_nothing)
    while rig.prompts.misses < 2:
        rig.part()
    monkeypatch.setattr(stepper, "join", lambda: pytest.fail("the next step would wait"))
    put_in_order.clear()
    for session in (1, 2):
        rig.calls.close(session)
    assert put_in_order == ["language memory", "slot", "language memory", "slot", "language memory"]
    assert len(rig.calls._spares) == 1
    rig.wait_for_device()
    assert not stepper.state.kv.offsets.any()


def test_prompts_that_are_read_do_not_hold_up_those_who_talk(models: Models, tiny: ModelFolder) -> None:
    rig = Rig(models, tiny, slots=3)
    rig.open(1, request("talking", sampling=GREEDY))
    rig.calls.open(2, request("new", prompt="a long prompt " * 8), rig.history_of_nothing)
    rig.hear(1, 0, caller_pcm(0, 0))
    rig.now += FRAME
    assert rig.calls.work()
    assert [frame.index for frame in rig.frames(1)] == [0], "the step came before the prompt's parts"
    rig.settle()
    assert rig.told[2] == [Ready("personaplex")]


def test_other_work_is_begun_only_if_the_next_step_can_wait_for_it_or_a_prompt_cannot(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.open(1, request())
    rig.settle()
    calls = rig.calls

    def part() -> bool:
        rig.now += 0.012
        return True

    monkeypatch.setattr(calls, "_advance_job", part)
    monkeypatch.setattr(rig.scheduler, "due", lambda now: [])
    monkeypatch.setattr(rig.scheduler, "next_due", lambda: rig.now + 0.001)
    assert calls.work(), "how long a part takes is known after the first"
    assert not calls.work()
    call = calls._calls[1]
    calls._jobs.append(Job(call, iter(()), pressing=False))  # type: ignore[arg-type]
    assert not calls.work()
    assert calls.wake_at() == rig.now + 0.001, "nobody looks again before"
    call.base = calls._room._window - 1 - call.columns.end - 10
    assert calls.work()
