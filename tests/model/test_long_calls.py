"""Calls that outlast their window: their prompt is given back beside steps, or they slide as the reference does."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from model import fp8, wire
from model.conversation import Models
from model.engine import StepResult
from model.folder import ModelFolder
from model.history import kept_frames
from model.pace import FRAME, TICKS
from model.streaming import SavedKV
from model.wire import Cut
from tests.model.device import DEVICE
from tests.model.rig import WINDOW, Rig, caller_pcm, request

pytestmark = pytest.mark.usefixtures("one_thread")

SOME = 5 if DEVICE == "cuda" else 2
"""Windows that a call outlives with keys of less precision."""


def prompt_is_there(rig: Rig, session: int, prompt: SavedKV) -> None:
    """Every key of the prompt is in sight of the slot's next step, unchanged."""
    call = rig.calls._calls[session]
    lm_slot = rig.stepper.lm_slot[call.slot]
    state = rig.stepper.state
    assert int(state.cache.offset[lm_slot]) <= WINDOW - 1
    assert int(state.cache.offset[lm_slot]) == call.columns.end + call.base
    for held, expected in zip(state.kv.save(lm_slot, prompt.length).rings, prompt.rings, strict=True):
        torch.testing.assert_close(held.float(), expected.float(), rtol=0, atol=2e-5)


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
        self.prompt = rig.stepper.state.kv.save(rig.stepper.lm_slot[call.slot], call.prompt.positions)
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
        prompt_is_there(self._rig, session, self.prompt)


@pytest.mark.parametrize(
    ("kv_dtype", "windows"),
    [(torch.float32, 5), (torch.bfloat16, SOME), (fp8.E4M3, SOME)],
    ids=["float32", "bf16", "fp8"],
)
def test_a_call_over_five_windows_keeps_its_prompt_and_goes_on_elsewhere_as_it_would_here(
    short: Models, brief: ModelFolder, kv_dtype: torch.dtype, windows: int
) -> None:
    """Token for token where keys are exact: others are rounded anew in passes of other sizes."""
    rig = Rig(short, brief, slots=2, kv_dtype=kv_dtype)
    rig.open(1, request(prompt=""))
    rig.open(2, request("other", prompt=""))
    call, watch = rig.calls._calls[1], PromptWatch(rig)
    last = windows * WINDOW
    rig.speak(1, 0, last)
    assert watch.steps == last
    watch.look(1)
    cuts = [message.index for message in rig.told[1] if isinstance(message, Cut)]
    assert cuts == sorted(set(cuts))
    assert len(cuts) >= windows
    assert rig.calls.cuts == len(cuts)
    assert [frame.index for frame in rig.frames(1)] == list(range(last))
    assert call.columns.start == cuts[-1]
    (spare,) = rig.calls._spares
    held = (ring[:, spare].float() for ring in rig.stepper.state.kv.rings())
    assert not any(bool(ring.any()) for ring in held), "what it was before is gone"
    # From the same cut, another engine goes on as this one.
    resume, history = rig.history(1, cuts[-1])
    other = Rig(short, brief, kv_dtype=kv_dtype)
    other.open(1, request(prompt="", resume=resume), history)
    prompt_is_there(other, 1, watch.prompt)
    for each in (rig, other):
        each.speak(1, last, last + 6)
    assert [frame.index for frame in other.frames(1)[:6]] == list(range(last, last + 6))
    if kv_dtype == torch.float32:
        assert other.columns(1)[:6] == rig.columns(1)[last : last + 6]


def test_a_call_gets_its_prompt_back_when_it_is_asked_for_once_and_goes_on_meanwhile(
    short: Models, brief: ModelFolder
) -> None:
    rig = Rig(short, brief, context="sliding")
    rig.open(1, request(prompt=""))
    rig.speak(1, 0, WINDOW)
    call = rig.calls._calls[1]
    assert call.prompt is not None
    assert not rig.calls.remembering(1)
    for _ in range(2):
        rig.calls.renew(1)
    assert rig.calls.remembering(1)
    assert len(rig.calls._jobs) == 1
    rig.settle()
    assert not rig.calls.remembering(1)
    start = WINDOW - kept_frames(WINDOW, call.prompt.frames)
    assert [message.index for message in rig.told[1] if isinstance(message, Cut)] == [start]
    rig.speak(1, WINDOW, WINDOW + 2)
    assert [frame.index for frame in rig.frames(1)] == list(range(WINDOW + 2))


def test_a_call_gets_its_prompt_back_also_where_step_follows_upon_step(short: Models, brief: ModelFolder) -> None:
    """Where there is no pause, more frames are answered between two parts of the work than the last part is to read."""
    rig = Rig(short, brief, slots=1, context="sliding")
    rig.open(1, request(prompt=""))
    rig.speak(1, 0, WINDOW)
    late = 60
    for index in range(WINDOW, WINDOW + late):
        rig.hear(1, index, caller_pcm(0, index))
    rig.calls.renew(1)
    while rig.calls.remembering(1):
        assert rig.calls.work()
    call = rig.calls._calls[1]
    assert len(rig.frames(1)) < WINDOW + late // 2
    assert int(rig.stepper.state.cache.offset[rig.stepper.lm_slot[call.slot]]) == call.columns.end + call.base


def test_a_call_that_is_given_its_prompt_back_too_late_is_counted_frame_by_frame_and_told_of_once(
    short: Models, brief: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(short, brief, slots=1)
    rig.open(1, request("forgetful", prompt=""))
    call, spare = rig.calls._calls[1], rig.calls._spares.pop()
    assert call.prompt is not None
    whole = WINDOW - call.prompt.frames
    for index in range(whole + 5):
        rig.hear(1, index, caller_pcm(0, index))
        rig.now += FRAME
        rig.calls.work()
        assert len(rig.frames(1)) == index + 1
        assert rig.calls.unprompted == max(0, index + 1 - whole)
    (line,) = (record.message for record in caplog.records if "forgetful" in record.message)
    assert f"from frame {whole} on" in line
    rig.calls._spares.append(spare)
    rig.settle()
    rig.speak(1, whole + 5, whole + 5 + WINDOW)
    assert rig.calls.unprompted == 5, "it has all of it again"
    assert rig.calls.cuts >= 2


EIGHT = 8
STEP, PART = 0.02, 0.025
"""Seconds: two steps of eight calls and a part of other work leave little of a frame's 80 ms."""


def talk_in_time(rig: Rig, frames: int) -> None:
    """Frames of sessions 1 to 8 come every 80 ms, each at a phase of its own, whatever the engine does meanwhile.

    How long the calls took to open, of which voices are read by a thread, does not shift the phases against the ticks.
    No frame comes with a tick: rounding would decide whether it is in that step or alone in the next.
    """
    rig.now = math.ceil(rig.now / FRAME) * FRAME
    coming = sorted(
        (rig.now + index * FRAME + session * 0.01 - FRAME / TICKS / 2, session, index)
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
        if rig.stepper.device.type == "cuda":
            torch.cuda.synchronize()  # a part takes PART, whatever the device takes
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
    assert rig.calls.unprompted == 0, "it is what was asked for"


def test_of_a_call_with_a_sliding_window_no_more_is_held_than_is_in_its_sight(
    short: Models, brief: ModelFolder
) -> None:
    rig, other = (Rig(short, brief, context="sliding") for _ in range(2))
    rig.open(1, request(prompt=""))
    last = 2 * WINDOW
    rig.speak(1, 0, last)
    columns = rig.calls._calls[1].columns
    assert (columns.end, columns.start) == (last, last - WINDOW)
    assert columns.data(last - WINDOW) == b"".join(rig.columns(1)[-WINDOW:])
    resume, history = rig.history(1, 0, missed=2)
    assert isinstance(other.open(1, request(prompt="", resume=resume), history), wire.Ready)
    (missed,) = (message for message in other.told[1] if isinstance(message, wire.Columns))
    assert (missed.index, len(missed.columns)) == (last, 2 * wire.TOKENS_BYTES)
    other.settle()
    assert not other.calls.remembering(1)
    other.speak(1, last + 2, last + 2 + WINDOW)
    assert [frame.index for frame in other.frames(1)] == list(range(last + 2, last + 2 + WINDOW))


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
