"""What befalls a call while a spare language memory is filled for it: it goes on stepping, or hangs up.

Parts are two columns long here, and one is done after each frame, so that frames come between all of them.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import pairwise

import pytest

from model.conversation import Models
from model.engine_options import EngineOptions
from model.engine_start import Started
from model.folder import ModelFolder
from model.gpu_process import Loop
from model.history import Columns, kept_frames, refill, renewed_ahead, renewed_every
from model.pace import FRAME
from model.prompt_cache import Prompt, PromptCache
from model.ring import make_channel
from model.wire import Cut, History, Resume, Sampling
from tests.model.rig import GREEDY, Rig, caller_pcm, request, with_window

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOW = 60
LEAST = 5
"""Frames that come while a memory is filled, at least."""
by_chance_too = pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=9)], ids=["greedy", "by chance"])


@pytest.fixture(scope="module")
def narrow(models: Models) -> Models:
    return with_window(models, WINDOW)


@pytest.fixture
def came_between(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small parts, and how many frames came during each refill that has ended."""
    monkeypatch.setattr("model.history.CHUNK", 2)
    monkeypatch.setattr("model.history._FEW", 2)
    came: list[int] = []

    def watched(prompts: PromptCache, prompt: Prompt, lm_slot: int, columns: Columns, start: int) -> Generator[bool]:
        before = columns.end
        yield from refill(prompts, prompt, lm_slot, columns, start)
        came.append(columns.end - before)

    monkeypatch.setattr("model.calls.refill", watched)
    return came


def speak_between_parts(rig: Rig, start: int, end: int) -> None:
    """The caller's frames from `start` up to `end`; after each is answered one part of other work is done."""
    calls = rig.calls
    for index in range(start, end):
        rig.hear(1, index, caller_pcm(0, index))
        rig.now += FRAME
        calls.work()
        assert rig.frames(1)[-1].index == index
        while calls._jobs and not calls._advance_job():
            pass  # the device is not done with the part before


def go_on(rig: Rig, other: Rig, asked: Sampling, cut: int, columns: list[bytes]) -> None:
    """From here on `rig` says what `other` does, to which its call is handed with the `columns` since `cut`."""
    last, (call,) = rig.frames(1)[-1].index + 1, rig.calls._calls.values()
    rig.settle()
    assert not call.renewing
    heard = min(last, 125)
    sound = b"".join(caller_pcm(0, index) for index in range(last - heard, last))
    resume = Resume(cut, len(columns), heard, 0)
    other.open(1, request(prompt="", sampling=asked, resume=resume), History(b"".join(columns), sound))
    other.settle()
    for each in (rig, other):
        each.speak(1, last, last + 6)
    assert [frame.index for frame in other.frames(1)] == list(range(last, last + 6))
    assert rig.columns(1)[-6:] == other.columns(1)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are re-primed so early that there is time for as many parts."""
    monkeypatch.setattr("model.window_room.WindowRoom.margin", 16)


@pytest.mark.usefixtures("soon")
@by_chance_too
def test_a_call_that_is_reprimed_while_it_speaks_knows_all_that_came_meanwhile(
    narrow: Models, brief: ModelFolder, came_between: list[int], sampling: Sampling
) -> None:
    rig = Rig(narrow, brief, slots=1)
    rig.open(1, request(prompt="", sampling=sampling))
    last = 3 * WINDOW // 2
    speak_between_parts(rig, 0, last)
    assert rig.calls.cuts >= 2
    assert min(came_between) >= LEAST, "the spare memory catches up with a call that goes on"
    assert [frame.index for frame in rig.frames(1)] == list(range(last))
    cut = rig.calls._calls[1].columns.start
    go_on(rig, Rig(narrow, brief, slots=1), sampling, cut, rig.columns(1)[cut:])


@by_chance_too
def test_a_call_taken_over_that_speaks_before_it_has_its_past_knows_all_that_came_meanwhile(
    narrow: Models, brief: ModelFolder, came_between: list[int], sampling: Sampling
) -> None:
    first, second = Rig(narrow, brief, slots=1, context="sliding"), Rig(narrow, brief, slots=1)
    first.open(1, request(prompt="", sampling=sampling))
    first.speak(1, 0, 16)
    resume, history = first.history(1, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.calls.FAST_FRAMES", 3)
        second.open(1, request(prompt="", sampling=sampling, resume=resume), history)
    speak_between_parts(second, 16, 32)
    assert len(came_between) == 1
    assert came_between[0] >= LEAST
    assert not second.calls.cuts
    go_on(second, Rig(narrow, brief, slots=1), sampling, 0, first.columns(1) + second.columns(1))


def test_calls_taken_over_together_that_wait_for_the_spare_memory_keep_their_prompts(
    models: Models, short: Models, brief: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has as much of a past as fits when it is taken over; until its turn comes that is too much."""
    monkeypatch.setattr("model.history.CHUNK", 2)
    monkeypatch.setattr("model.history._FEW", 2)
    monkeypatch.setattr("model.calls.FAST_FRAMES", 3)
    calls, context = 4, short.config.transformer.context
    first, second = Rig(short, brief, slots=1, context="sliding"), Rig(short, brief, slots=calls)
    first.open(1, request(prompt=""))
    prompt = first.calls._calls[1].prompt
    assert prompt is not None
    whole = context - 1 - prompt.frames - max(2, context // 20)
    first.speak(1, 0, whole)
    resume, history = first.history(1, 0)
    for session in range(calls):
        second.calls.open(session, request(f"c{session}", prompt="", resume=replace(resume)), history)
    while sum(map(len, second.told.values())) < calls:
        second.settle(once=True)
    for index in range(whole, whole + 60):
        for session in range(calls):
            second.hear(session, index, caller_pcm(0, index))
        second.now += FRAME
        while any(not frames or frames[-1].index < index for frames in map(second.frames, range(calls))):
            second.calls.work()
        for _ in range(6):
            second.part()
    assert second.calls.unprompted == 0


@pytest.mark.usefixtures("soon")
def test_a_call_that_hangs_up_while_it_is_reprimed_leaves_the_spare_memory_to_the_next(
    narrow: Models, brief: ModelFolder, came_between: list[int]
) -> None:
    rig = Rig(narrow, brief, slots=2)
    for session in (1, 2):
        rig.open(session, request(f"c{session}", prompt=""))
    index = 0
    while rig.calls._spares:
        speak_between_parts(rig, index, index + 1)
        index += 1
    assert not came_between, "it is in the midst of it"
    rig.calls.close(1)
    (spare,) = rig.calls._spares
    assert spare not in [*rig.stepper.lm_slot]
    assert int(rig.stepper.state.kv.offsets[spare]) == 0
    rig.speak(2, 0, WINDOW)
    assert any(isinstance(message, Cut) for message in rig.told[2])


@pytest.mark.parametrize("prompt", [60, 300, 1_500])
def test_128_calls_that_began_together_are_reprimed_in_time_for_an_hour_on_an_h200(prompt: int) -> None:
    """By numbers alone, in frames: one after another, through the spare memory, who had least room when it asked first.

    One took 371 ms beside 127 others that spoke (deploy/benchmarks.md).
    """
    context, slots, took = 3_000, 128, 0.371 / FRAME
    margin, whole = context // 20, context - 1 - prompt
    ahead = [renewed_ahead(context, prompt, slot, margin) for slot in range(slots)]
    assert max(map(ahead.count, ahead)) * took < margin, "those who ask at once have had their turn before the end"
    later = renewed_ahead(context, prompt, None, margin)
    asks: list[tuple[float, int, int]] = [(whole - ahead[slot], ahead[slot], slot) for slot in range(slots)]
    heapify(asks)
    waiting: list[tuple[int, float, int]] = []
    now = busy = 0.0
    while now < 45_000:
        while asks and asks[0][0] <= now:
            asked, room, slot = heappop(asks)
            heappush(waiting, (room, asked, slot))
        if not waiting:
            now = asks[0][0]
            continue
        room, asked, slot = heappop(waiting)
        now, busy = now + took, busy + took
        assert now < asked + room, f"the call in slot {slot} lost its prompt"
        heappush(asks, (asked + whole - kept_frames(context, prompt) - later, later, slot))
    between = whole - kept_frames(context, prompt) - later
    assert busy <= slots * took * (now / between + 1), "each once, and again when what is left of the window is full"
    assert busy < 0.45 * now, "the rest is for calls that are opened and taken over"


def test_a_long_call_is_reprimed_each_time_its_window_is_nearly_full(narrow: Models, brief: ModelFolder) -> None:
    rig = Rig(narrow, brief, slots=1)
    rig.open(1, request(prompt=""))
    rig.speak(1, 0, 4 * WINDOW)
    (call,) = rig.calls._calls.values()
    assert call.prompt is not None
    cuts = [message.index for message in rig.told[1] if isinstance(message, Cut)]
    assert len(cuts) > 2
    each = {later - cut for cut, later in pairwise(cuts[1:])}
    assert each == {renewed_every(WINDOW, call.prompt.frames)}


@pytest.mark.parametrize("told", [EngineOptions(""), EngineOptions("", context="sliding")], ids=["nothing", "to slide"])
def test_the_engines_process_reprimes_calls_unless_it_is_told_to_slide(
    models: Models, tiny: ModelFolder, told: EngineOptions
) -> None:
    ours, ends = make_channel(1 << 16)
    theirs, rig = ends.channel(), Rig(models, tiny, slots=1)
    loop = Loop(theirs, Started(rig.stepper, 1, {1: 0.01}, rig.prompts, rig.assets), told)
    assert loop._calls._reprimes == (told.context == "reprime")
    ours.close()
    theirs.close()
