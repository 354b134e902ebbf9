"""Work beside calls in full swing, on a model small enough for a CPU: done as the engine does it, beside frames."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from model.bench.beside import Beside, BesideCalls
from model.bench.drive import wait_until
from model.bench.models import Sizes, fill_windows, random_models, sizes_of, stand
from model.bench.talk import CallEnded, Job, Run, Talk
from model.engine import Stepper
from model.fp8 import E4M3
from model.history import renewed_every
from model.mimi.codec import Mimi, MimiState
from model.pace import FRAME
from model.scheduler import Scheduler
from model.wire import FRAME_SAMPLES, AgentFrame, Error

pytestmark = pytest.mark.usefixtures("one_thread")

SLOTS = 2
FRAMES = 300
"""Several windows."""
SECONDS = 0.4
KINDS = ["open_from_cache", "uncached_prompt", "resume_fast", "resume_deep", "reprime_each_second", "resume_all"]


def smaller() -> Sizes:
    """Than `tiny`, by layers and depth steps: what a frame takes is what its operations take to be begun."""
    sizes = sizes_of("tiny")
    main = replace(sizes.lm.transformer, dim=16, heads=2, layers=1, hidden=16)
    depth = replace(sizes.lm.depformer, dim=8, heads=1, layers=1, hidden=8, steps=8)
    return replace(sizes, lm=replace(sizes.lm, transformer=main, depformer=depth))


def make_stepper() -> Stepper:
    """With a slot more than calls are measured."""
    return Stepper(random_models(smaller(), torch.device("cpu")), SLOTS + 1, kv_dtype=E4M3)


@pytest.fixture
def stepper(monkeypatch: pytest.MonkeyPatch) -> Stepper:
    """Its calls are taken, however slow this machine is."""
    monkeypatch.setattr("model.scheduler.LATE_PART", 1.0)
    return make_stepper()


def beside(stepper: Stepper) -> BesideCalls:
    stand(stepper, SLOTS, FRAMES)
    return BesideCalls(stepper, SLOTS, {1: 0.01, 2: 0.01}, SECONDS, FRAMES)


@dataclass
class Seen:
    """Of one measuring: runs with callers, and calls and frames of each of the codec's passes that was not a step."""

    calls: BesideCalls
    runs: list[tuple[Run, Sequence[Job]]] = field(default_factory=list)
    heard: list[tuple[int, int]] = field(default_factory=list)
    said: list[tuple[int, int]] = field(default_factory=list)
    found: dict[str, Beside] = field(default_factory=dict)


@pytest.fixture(scope="module")
def seen() -> Seen:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.scheduler.LATE_PART", 1.0)
        seen = Seen(beside(make_stepper()))
        run, encode, remember = Talk.run, Mimi.encode_step, Mimi.remember

        def watched(self: Talk, seconds: float, jobs: Sequence[Job] = ()) -> Run:
            done = run(self, seconds, jobs)
            if self.slots:
                seen.runs.append((done, jobs))
            return done

        def encoded(self: Mimi, state: MimiState, slots: Tensor, pcm: Tensor, n_q: int | None = None) -> Tensor:
            if pcm.shape[2] > FRAME_SAMPLES:
                seen.heard.append((slots.shape[0], pcm.shape[2] // FRAME_SAMPLES))
            return encode(self, state, slots, pcm, n_q)

        def remembered(self: Mimi, state: MimiState, slots: Tensor, codes: Tensor) -> None:
            seen.said.append((slots.shape[0], codes.shape[2]))
            remember(self, state, slots, codes)

        patch.setattr(Talk, "run", watched)
        patch.setattr(Mimi, "encode_step", encoded)
        patch.setattr(Mimi, "remember", remembered)
        seen.found = seen.calls.measure()
    torch.set_num_threads(threads)
    return seen


def test_each_kind_of_work_is_measured(seen: Seen) -> None:
    assert list(seen.found) == KINDS
    all_at_once = seen.found["resume_all"]
    assert (len(all_at_once.took), all_at_once.others) == (SLOTS, None)
    assert all(len(one.took) == 1 for one in seen.found.values() if one is not all_at_once)


def test_sessions_taken_over_are_heard_and_remember_what_they_said(seen: Seen) -> None:
    fast, whole = seen.calls._asking.fast, seen.calls._asking.whole
    for passes, of in ((seen.heard, 0), (seen.said, 1)):
        first, *more, last = passes
        assert (first, last) == ((1, fast - of), (SLOTS, fast - of))
        assert {calls for calls, _ in more} == {1}, "one is resumed with all, in passes of its own"
        assert sum(frames for _, frames in more) == whole - of


def test_others_talk_while_work_is_done_beside_them_however_short_the_run(seen: Seen) -> None:
    assert len(seen.runs) == len(KINDS) - 1
    for done, jobs in seen.runs:
        assert jobs
        assert all(any(came > job.asked for came, *_ in done.frames) for job in jobs)
        assert any(came < jobs[0].asked for came, *_ in done.frames), "it finds calls in full swing"


def test_the_collector_does_not_walk_what_a_run_keeps_of_frames(seen: Seen) -> None:
    """Of 480,000 in five minutes it would take longer than half a frame, and make those late that are measured."""
    gc.collect()
    assert not any(gc.is_tracked(frame) for done, _ in seen.runs for frame in done.frames)


def test_as_many_frames_come_as_the_time_has_however_late_they_are_seen(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = beside(stepper)._talk
    work, ends = talk.calls.work, time.perf_counter() + 0.5

    def slow() -> bool:
        """The first step takes longer than everything."""
        wait_until(ends)
        return work()

    monkeypatch.setattr(talk.calls, "work", slow)
    phases = talk._phases
    done = talk.run(0.2)
    assert len(done.frames) == sum(math.ceil((0.2 - phase) / FRAME) for phase in phases)


def test_others_talk_until_the_work_is_done(stepper: Stepper) -> None:
    talk = beside(stepper)._talk
    seen = 0

    def over() -> bool:
        nonlocal seen
        seen = len(talk._run.frames)
        return seen >= 20

    done = talk.run(0.1, [Job(lambda moment: None, over, lambda: None)])
    assert seen >= 20
    assert len(done.frames) >= seen, "all are answered, the last ones, too"
    assert not talk._unanswered


def test_others_are_those_who_waited_while_the_work_was_done(stepper: Stepper, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = beside(stepper)
    runs: list[Run] = []
    run = Talk.run

    def watched(self: Talk, seconds: float, jobs: Sequence[Job] = ()) -> Run:
        runs.append(run(self, seconds, jobs))
        return runs[-1]

    monkeypatch.setattr(Talk, "run", watched)
    ends = 0.0

    def begin(moment: float) -> None:
        nonlocal ends
        ends = moment + 0.1

    job = Job(begin, lambda: time.perf_counter() >= ends, lambda: None)
    found = calls._run([job])
    (done,) = runs
    waited = [took for came, took, _ in done.frames if came + took > job.asked and came < job.done]
    assert found.others is not None
    assert (found.others.frames, found.frames) == (len(waited), len(done.frames))
    assert found.others.frames < found.frames, "those answered before it was asked for are not counted"
    assert found.others.max == pytest.approx(1000 * max(waited))
    assert 1 <= found.others.steps <= found.others.frames


def test_frames_are_beside_work_if_they_wait_for_an_answer_meanwhile() -> None:
    run = Run([(0.0, 0.9, 1), (0.5, 0.6, 2), (1.5, 0.01, 3), (2.1, 0.3, 4)], 4)
    job = Job(lambda moment: None, lambda: True, lambda: None, asked=1.0, took=1_000.0)
    refused = replace(job, took=None)
    found = run.beside([job])
    assert found is not None
    assert (found.frames, found.steps) == (2, 2)
    assert found.max == pytest.approx(600)
    assert run.beside([refused]) is None, "it was no work"
    assert run.beside([]) is None


def test_one_with_more_of_a_past_is_there_once_it_remembers_all(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("calls", "bench.asked"):
        monkeypatch.setattr(f"model.{module}.FAST_FRAMES", 4)
    calls = beside(stepper)
    swapped: list[int] = []
    point = stepper.point

    def watched(slot: int, lm_slot: int) -> int:
        swapped.append(slot)
        return point(slot, lm_slot)

    monkeypatch.setattr(stepper, "point", watched)
    calls.measure()
    assert swapped == [SLOTS, 0], "that of the session with all its past, and the caller's who gets the prompt back"
    assert stepper.lm_slot != [0, 1, 2, 4]
    stand(stepper, SLOTS, FRAMES)
    assert (stepper.lm_slot, stepper.spare_lm_slots) == ([0, 1, 2, 4], [3])


def test_calls_that_an_engine_out_of_time_does_not_take_are_counted(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = beside(stepper)
    monkeypatch.setattr("model.bench.beside._LATE_NO_LONGER", 0.0)
    monkeypatch.setattr(Scheduler, "refusal", lambda self, now: "frames run late")
    found = calls.measure()
    for name in ("open_from_cache", "uncached_prompt"):
        assert found[name].took == ()
        assert found[name].refused == ("frames run late",)
        assert found[name].others is None, "nothing was done beside them"
        assert found[name].frames > 0
    assert len(found["resume_fast"].took) == 1, "one that lost its worker is always taken"
    assert found["resume_fast"].refused == ()


def test_calls_are_taken_again_before_work_is_measured_beside_frames_that_were_late_once(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = beside(stepper)
    runs: list[Sequence[Job]] = []
    run = Talk.run

    def watched(self: Talk, seconds: float, jobs: Sequence[Job] = ()) -> Run:
        runs.append(jobs)
        return run(self, seconds, jobs)

    monkeypatch.setattr(Talk, "run", watched)
    monkeypatch.setattr(Scheduler, "refusal", lambda self, now: "frames run late" if len(runs) < 2 else "")
    found = calls.measure()
    assert [one.refused for one in found.values()] == [()] * len(KINDS)
    assert [len(jobs) for jobs in runs] == [0, 0] + [1] * len(KINDS)


def test_calls_get_their_prompts_back_as_often_as_a_workers_do(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once in its turn, no sooner than its time comes, and none is ended for it."""
    calls = beside(stepper)
    talk, seconds = calls._talk, 1.5
    each = renewed_every(stepper.models.config.transformer.context, calls._asking.known.frames) * FRAME
    monkeypatch.setattr("model.bench.beside.renewed_every", lambda context, prompt: SLOTS * 0.4 / FRAME)
    renewed: list[tuple[int, float]] = []
    renew = talk.calls.renew

    def watched(session: int) -> None:
        renewed.append((session, time.perf_counter()))
        renew(session)

    monkeypatch.setattr(talk.calls, "renew", watched)
    begun = time.perf_counter()
    found = calls.repriming(seconds)
    assert each > 3, "the real one is too long for a test"
    assert [session for session, _ in renewed] == [0, 1, 0, 1]
    assert all(moment >= begun + at for (_, moment), at in zip(renewed, (0.2, 0.6, 1.0, 1.4), strict=True))
    assert found.every == pytest.approx(0.4)
    assert len(found.took) == 4
    assert talk.calls.cuts >= 3, "where it stands still at first, a call has nothing yet that it could forget"
    assert found.latency.frames >= sum(math.ceil((seconds - phase) / FRAME) for phase in talk._phases)
    assert (stepper.state.kv.offsets[stepper.lm_slot[:SLOTS]] >= FRAMES).all(), "what comes after finds full windows"


def test_resumed_together_each_has_spoken_or_was_ended_once_it_is_over(
    stepper: Stepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = beside(stepper)
    calls.close()
    told: list[bool] = []

    def run(self: Talk, seconds: float, jobs: Sequence[Job] = ()) -> Run:
        """One speaks and is ended then, before the other speaks."""
        (job,) = jobs
        job.begin(time.perf_counter())
        for session, message in (
            (0, AgentFrame(0, b"", b"")),
            (0, Error("failed", "the model's numbers broke down")),
            (1, AgentFrame(0, b"", b"")),
        ):
            self._tell(session, message)
            told.append(job.over())
        job.end()
        return Run()

    monkeypatch.setattr(Talk, "run", run)
    calls._resume_all()
    assert told == [False, False, True]


def test_windows_are_full_of_numbers_wherever_calls_have_their_memory(stepper: Stepper) -> None:
    rings = stepper.state.kv.rings()
    spare = stepper.spare_lm_slots[0]
    stepper.point(0, spare)
    stepper.spare_lm_slots[0] = 0
    fill_windows(stepper, SLOTS, FRAMES)
    assert all(bool(ring.float()[:, lm_slot].any()) for ring in rings for lm_slot in (1, spare))
    assert stepper.state.kv.offsets.tolist() == [0, FRAMES + 1, 0, FRAMES, 0]


def test_a_call_that_the_engine_ends_ends_the_measuring(stepper: Stepper) -> None:
    calls = beside(stepper)
    with torch.no_grad():
        stepper.models.lm.text_linear.weight.fill_(float("nan"))
    with pytest.raises(CallEnded, match="numbers broke down"):
        calls.random_phases(SECONDS)
