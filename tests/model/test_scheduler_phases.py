"""When callers' frames come: at random, all at once, in a few groups, drifting; on a device that is busy in a step."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence

import pytest

from model.capacity import batch_sizes
from model.pace import BUSY, FRAME, LATEST, cost_of, pace
from model.scheduler import Frame, Scheduler

JITTER = 0.008
"""Seconds that frames come late at most."""
MEASURED = {1: 0.0056, 32: 0.0149, 64: 0.0226, 128: 0.0394, 150: 0.0466}
"""Seconds of a step on an H200 with FP8 keys and values at 08eb550, full windows: deploy/benchmarks.md."""


def step_cost(count: int) -> float:
    """Seconds of a step of `count` calls with full windows in FP8 on an H200: a line through what was measured."""
    return 0.00637 + 0.00028 * count


def measured_cost(count: int) -> float:
    """The same, between what was measured."""
    for (fewer, least), (more, most) in itertools.pairwise(MEASURED.items()):
        if count <= more:
            return least + (most - least) * (count - fewer) / (more - fewer)
    raise ValueError(f"no step of {count} calls was measured")


def costs_of(calls: int, cost: Callable[[int], float] = step_cost) -> dict[int, float]:
    return {size: cost(size) for size in batch_sizes(calls)}


def talk(
    phases: Sequence[float],
    length: int,
    cost: Callable[[int], float] = step_cost,
    drift: Sequence[float] | None = None,
    jitter: float = JITTER,
) -> Scheduler:
    """A call at each of `phases` talks for `length` frames, which come up to `jitter` late. `drift`: seconds by which a
    call's frames are further apart than they should be."""
    calls, chance = len(phases), random.Random(len(phases))
    costs = costs_of(calls, cost)
    scheduler = Scheduler(calls, costs=costs)
    opened = [
        (phase, FRAME + more, scheduler.open(0.0)) for phase, more in zip(phases, drift or [0.0] * calls, strict=True)
    ]
    coming = [(phase + index * apart, slot, index) for phase, apart, slot in opened for index in range(length)]
    arriving = deque(sorted((due + chance.random() * jitter, slot, index) for due, slot, index in coming))
    now = 0.0
    while arriving or scheduler.next_due() is not None:
        while arriving and arriving[0][0] <= now:
            arrived, slot, index = arriving.popleft()
            scheduler.push(slot, index, b"", arrived)
        frames = scheduler.due(now)
        if frames:
            assert len({frame.slot for frame in frames}) == len(frames), "a slot twice in one step"
            now += cost_of(costs, len(frames))
            scheduler.stepped(frames, now)
            continue
        moments = [moment for moment in (scheduler.next_due(), arriving[0][0] if arriving else None) if moment]
        now = max(now, min(moments, default=now))
    assert scheduler.frames == length * calls
    return scheduler


@pytest.mark.parametrize(
    ("calls", "length"),
    [
        *((calls, 60) for calls in (1, 8, 33, 64, 100, 128, 150)),
        pytest.param(128, 3_750, marks=pytest.mark.long, id="five minutes"),
    ],
)
def test_nobody_is_late_at_any_phase_with_what_an_h200_takes_for_a_step(calls: int, length: int) -> None:
    """Calls at random phases, whose frames come up to 8 ms late; the device is busy while it steps."""
    chance = random.Random(calls)
    assert talk([chance.random() * FRAME for _ in range(calls)], length).late == 0


@pytest.mark.parametrize("cost", [step_cost, measured_cost])
@pytest.mark.parametrize("calls", [64, 128, 150])
@pytest.mark.parametrize("jitter", [0.0, JITTER])
def test_nobody_is_late_where_all_come_at_one_phase(calls: int, cost: Callable[[int], float], jitter: float) -> None:
    late = {}
    for place in range(16):  # from just after one of two ticks until just before the next
        phase = 0.0002 + 0.0025 * place
        late[phase] = talk([phase] * calls, 5, cost, jitter=jitter).late
    assert not any(late.values()), late


@pytest.mark.parametrize("groups", [2, 3, 4])
@pytest.mark.parametrize("calls", [128, 150])
def test_nobody_is_late_where_a_few_gateways_each_send_all_of_theirs_at_once(calls: int, groups: int) -> None:
    for seed in range(6):
        chance = random.Random(seed)
        phases = [chance.random() * FRAME for _ in range(groups)]
        assert talk([phases[call % groups] for call in range(calls)], 8).late == 0, phases


@pytest.mark.parametrize("calls", [128, 150])
def test_nobody_is_late_where_half_of_the_calls_come_at_one_phase(calls: int) -> None:
    for seed in range(6):
        chance = random.Random(seed)
        common = chance.random() * FRAME
        phases = [common if call % 2 else chance.random() * FRAME for call in range(calls)]
        assert talk(phases, 8).late == 0, seed


def test_nobody_is_late_while_the_clocks_of_three_gateways_drift_through_each_other() -> None:
    """By 5 ms a second at most, a hundred times what real clocks do: 8 s show what they come to in 13 minutes."""
    chance = random.Random(3)
    phases, drifts = [1.0 + chance.random() * FRAME for _ in range(3)], [-0.0004, 0.00006, 0.0004]
    calls = range(128)
    scheduler = talk([phases[call % 3] for call in calls], 100, drift=[drifts[call % 3] for call in calls])
    assert scheduler.late == 0


def opened(calls: int) -> Scheduler:
    """So many calls, on a device as fast as an H200, that have each had one frame at 1.001 s, just after a tick."""
    assert pace(calls, costs_of(calls)).ticks == 2
    scheduler = Scheduler(calls, costs=costs_of(calls))
    for _ in range(calls):
        scheduler.open(0.0)
    push(scheduler, range(calls), 0, 1.001)
    assert len(scheduler.due(1.04)) == calls
    return scheduler


def push(scheduler: Scheduler, slots: Sequence[int], index: int, came: float) -> None:
    for slot in slots:
        scheduler.push(slot, index, b"", came)


def slots_of(frames: Sequence[Frame]) -> set[int]:
    return {frame.slot for frame in frames}


@pytest.mark.parametrize("calls", [127, 128])
def test_callers_who_come_at_once_are_stepped_in_time_and_at_one_time_whether_or_not_all_have_come(calls: int) -> None:
    scheduler = opened(128)
    push(scheduler, range(100), 1, 1.081)
    push(scheduler, range(100, calls), 1, 1.084)
    due = 1.081 + LATEST - step_cost(128)
    assert due < 1.12
    assert scheduler.next_due() == pytest.approx(due)
    assert scheduler.due(due - 0.001) == []
    assert len(scheduler.due(due + 0.001)) == calls, "also where it begins a little late"


def test_a_group_no_fuller_than_reckoned_with_waits_for_its_tick() -> None:
    scheduler = opened(128)
    push(scheduler, range(64), 1, 1.081)
    assert scheduler.next_due() == pytest.approx(1.12)


def test_those_who_came_first_are_stepped_first_where_one_step_for_all_would_make_them_late() -> None:
    scheduler = opened(128)
    push(scheduler, range(64), 1, 1.081)
    push(scheduler, range(64, 128), 1, 1.119)
    now = 1.12
    assert now + step_cost(128) > 1.081 + FRAME
    assert slots_of(scheduler.due(now)) == set(range(64))
    now += step_cost(64)
    assert scheduler.next_due() == pytest.approx(1.12)
    assert slots_of(scheduler.due(now)) == set(range(64, 128))
    assert now + step_cost(64) < 1.119 + LATEST


def test_where_somebody_is_late_in_any_case_all_are_stepped_at_once() -> None:
    scheduler = opened(128)
    push(scheduler, range(64), 1, 1.081)
    push(scheduler, range(64, 128), 1, 1.119)
    assert len(scheduler.due(1.16)) == 128


def test_nobody_is_held_where_steps_take_most_of_the_time() -> None:
    calls = 150
    assert pace(calls, costs_of(calls)).busy > BUSY
    scheduler = Scheduler(calls, costs=costs_of(calls))
    for _ in range(calls):
        scheduler.open(0.0)
    push(scheduler, range(calls), 0, 1.0)
    assert len(scheduler.due(1.0)) == calls
