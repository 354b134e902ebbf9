"""Slots, ticks and deadlines: pure, with a clock that the test moves."""

from __future__ import annotations

import random

import pytest

from model.pace import BUSY, FRAME, LATEST, TICKS, cost_of, pace
from model.scheduler import LATE_CALLS, LONGEST_HOLD, PAUSE, Account, Frame, Refused, Scheduler

QUICK = {1: 0.005, 2: 0.0052, 4: 0.0055, 8: 0.0062, 16: 0.0075, 32: 0.0105, 128: 0.033}
COSTS = {1: 0.004, 8: 0.006, 16: 0.009, 32: 0.016, 64: 0.027, 128: 0.045}


def serve(scheduler: Scheduler, now: float, step: float = 0.0) -> list[Frame]:
    """Step all that is due until `now`, each step taking `step` seconds."""
    served = []
    while (due := scheduler.next_due()) is not None and due <= now:
        frames = scheduler.due(due)
        scheduler.stepped(frames, due + step)
        served += frames
    return served


def test_a_slot_goes_to_one_call_at_a_time_and_the_call_beyond_is_refused_with_the_reason() -> None:
    scheduler = Scheduler(2)
    first, second = scheduler.open(0.0), scheduler.open(0.0)
    assert {first, second} == {0, 1}
    with pytest.raises(Refused, match="all 2 slots of this worker are taken"):
        scheduler.open(0.0)
    scheduler.close(first, 0.0)
    assert scheduler.open(0.0) == first


def test_a_worker_of_one_slot_says_so() -> None:
    scheduler = Scheduler(1)
    scheduler.open(0.0)
    assert scheduler.refusal(0.0) == "the only slot of this worker is taken"


def test_every_frame_is_stepped_once_and_in_order_however_they_come() -> None:
    chance = random.Random(7)
    scheduler = Scheduler(5, costs=COSTS)
    slots = [scheduler.open(0.0) for _ in range(5)]
    sent = dict.fromkeys(slots, 0)
    served: list[Frame] = []
    now = 0.0
    while now < 20.0:
        now += chance.uniform(0.0, 0.03)
        slot = chance.choice(slots)
        for _ in range(chance.choice((0, 1, 1, 1, 4))):
            scheduler.push(slot, sent[slot], bytes([sent[slot] % 256]), now)
            sent[slot] += 1
        frames = scheduler.due(now)
        assert len({frame.slot for frame in frames}) == len(frames), "a slot twice in one step"
        scheduler.stepped(frames, now)
        served += frames
    served += serve(scheduler, now + 10.0)
    for slot in slots:
        assert [frame.index for frame in served if frame.slot == slot] == list(range(sent[slot]))


def test_a_frame_that_never_came_is_silence_in_its_place_and_one_that_comes_too_late_is_left_out() -> None:
    scheduler = Scheduler(1)
    slot = scheduler.open(0.0)
    for index, pcm in ((0, b"a"), (3, b"d"), (1, b"b"), (4, b"e")):
        scheduler.push(slot, index, pcm, 0.0)
    assert [(frame.index, frame.pcm) for frame in serve(scheduler, 1.0)] == [
        (0, b"a"),
        (1, b""),
        (2, b""),
        (3, b"d"),
        (4, b"e"),
    ]
    account = scheduler.account(slot)
    assert (account.frames, account.lost, account.repeated) == (5, 2, 1)


def test_a_call_taken_over_begins_with_its_next_frame() -> None:
    scheduler = Scheduler(1)
    slot = scheduler.open(0.0, next_index=1203)
    scheduler.push(slot, 1203, b"x", 0.0)
    assert [frame.index for frame in serve(scheduler, 1.0)] == [1203]
    assert scheduler.account(slot).lost == 0


def test_one_call_waits_for_an_eighth_of_a_frame_at_most() -> None:
    scheduler = Scheduler(64, costs=COSTS)
    slot = scheduler.open(0.0)
    for index in range(20):
        arrived = 1.0 + index * FRAME + 0.0137
        scheduler.push(slot, index, b"", arrived)
        due = scheduler.next_due()
        assert due is not None
        assert 0 <= due - arrived <= FRAME / 8
        assert [frame.index for frame in scheduler.due(due)] == [index]


def test_the_busier_the_engine_the_fewer_its_ticks() -> None:
    ticks = [pace(calls, COSTS).ticks for calls in (1, 8, 32, 64, 128)]
    assert ticks == sorted(ticks, reverse=True)
    assert ticks[0] == TICKS
    assert ticks[-1] == 2


def test_a_frame_that_has_just_missed_its_tick_is_in_time_however_busy_the_engine_is() -> None:
    one_tick = pace(128, {32: 0.03, 64: 0.03, 128: 0.04})
    assert one_tick.ticks == 2, "with one, which is less work, half of the frames would be late"
    assert one_tick.busy > BUSY
    assert one_tick.answer <= LATEST
    assert pace(128, {64: 0.05, 128: 0.06}).ticks == 1, "too late for some, but not later and later"
    assert pace(128, {64: 0.05, 128: 0.09}).ticks == 1


def test_what_was_not_measured_costs_what_the_next_larger_does_or_in_proportion() -> None:
    assert cost_of(COSTS, 9) == 0.009
    assert cost_of(COSTS, 256) == 0.09
    assert cost_of({}, 3) == 0.0


def test_calls_that_come_at_once_are_spread_over_the_ticks_and_none_waits_long() -> None:
    scheduler = Scheduler(32, costs=COSTS)
    slots = [scheduler.open(0.0) for _ in range(32)]
    used = pace(32, COSTS).ticks
    sizes: list[int] = []
    for index in range(10):
        arrived = 1.0 + index * FRAME
        for slot in slots:
            scheduler.push(slot, index, b"", arrived)
        while (due := scheduler.next_due()) is not None:
            assert due - arrived <= LONGEST_HOLD + FRAME / used
            sizes.append(len(scheduler.due(due)))
    assert used > 1
    assert cost_of(COSTS, max(sizes)) <= BUSY * FRAME / used + 1e-9, "a step has no time left at its tick"
    assert min(sizes) > 1, "steps crumble into single calls"


def when_all_talk(calls: int) -> tuple[list[int], list[float]]:
    """Calls that came one after the other, each at a phase of its own. What they then step like for twelve frames:
    the sizes of steps, and how long frames waited."""
    chance = random.Random(5)
    scheduler = Scheduler(128, costs=QUICK)
    phases = [chance.random() * FRAME for _ in range(calls)]
    arrivals = sorted(
        ((call + index) * FRAME + phase, call, index)
        for call, phase in enumerate(phases)
        for index in range(calls + 12 - call)
    )
    slots: dict[int, int] = {}
    sizes: list[int] = []
    waited: list[float] = []
    for now, call, index in arrivals:
        while (due := scheduler.next_due()) is not None and due <= now:
            frames = scheduler.due(due)
            if due > calls * FRAME:
                sizes.append(len(frames))
                waited += [due - frame.arrived for frame in frames]
        if index == 0:
            slots[call] = scheduler.open(now)
        scheduler.push(slots[call], index, b"", now)
    return sizes, waited


@pytest.mark.parametrize("calls", [64, 128])
def test_calls_that_came_while_there_were_few_step_with_the_others_when_there_are_many(calls: int) -> None:
    sizes, _ = when_all_talk(calls)
    assert pace(calls, QUICK).ticks == 4
    assert len(sizes) <= 12 * 4 + 1, "between two ticks in use nothing is stepped"


def test_a_few_calls_wait_for_a_tick_and_hardly_more() -> None:
    _, waited = when_all_talk(8)
    assert max(waited) <= 3 * FRAME / pace(8, QUICK).ticks


def test_a_full_step_takes_those_that_wait_longest_and_the_rest_comes_next() -> None:
    scheduler = Scheduler(4, largest=2)
    slots = [scheduler.open(0.0) for _ in range(4)]
    for place, slot in enumerate(reversed(slots)):
        scheduler.push(slot, 0, b"", 0.001 * place)
    late = 1.0
    first, second = scheduler.due(late), scheduler.due(late)
    assert [frame.slot for frame in (*first, *second)] == list(reversed(slots))
    assert scheduler.due(late) == []


def test_every_late_answer_is_counted_for_its_call_and_calls_are_refused_until_they_are_on_time() -> None:
    scheduler = Scheduler(3)
    slot, other = scheduler.open(0.0), scheduler.open(0.0)
    for index in range(10):
        scheduler.push(slot, index, b"", index * FRAME)
        frames = scheduler.due(index * FRAME + 0.01)
        late = scheduler.stepped(frames, index * FRAME + (0.1 if index >= 6 else 0.05))
        assert late == (frames if index >= 6 else [])
    account = scheduler.account(slot)
    assert (account.frames, account.late) == (10, 4)
    assert account.worst == pytest.approx(0.1)
    assert (scheduler.frames, scheduler.late) == (10, 4)
    assert scheduler.account(other).late == 0
    assert scheduler.late_calls.counts == [0] * 10, "only of calls that are over"
    now = 10 * FRAME
    with pytest.raises(Refused, match="frames run late"):
        scheduler.open(now)
    taken = scheduler.open(now, 50, under_way=True)
    with pytest.raises(Refused, match="all 3 slots"):
        scheduler.open(now, 50, under_way=True)
    scheduler.close(taken, now)
    scheduler.close(slot, now)
    within_five = LATE_CALLS.index(5)
    assert [place for place, count in enumerate(scheduler.late_calls.counts) if count] == [within_five]
    assert scheduler.late_calls.total == 4
    assert scheduler.refusal(now + PAUSE + 1) == ""
    scheduler.open(now + PAUSE + 1)


def test_how_late_the_latest_was_is_said_only_of_a_call_that_had_late_answers() -> None:
    lost = Account(frames=50, worst=0.04, lost=2)
    assert lost.told() == "0 of 50 frames were answered late; 2 of the caller's never came"
    late = Account(frames=50, late=3, worst=0.0954)
    assert late.told() == "3 of 50 frames were answered late, the latest after 95 ms; 0 of the caller's never came"
    again = Account(frames=50, repeated=2)
    assert again.told() == "0 of 50 frames were answered late; 0 of the caller's never came, 2 came again"


def test_a_caller_who_sends_ahead_of_time_makes_no_answer_late_and_closes_the_engine_to_nobody() -> None:
    scheduler, now = Scheduler(2), 0.0
    slot = scheduler.open(now)
    for index in range(12):
        scheduler.push(slot, index, b"", now)
    for _ in range(12):
        frames = scheduler.due(now)
        now += 0.05
        scheduler.stepped(frames, now)
    assert (scheduler.account(slot).frames, scheduler.account(slot).late) == (12, 0)
    assert scheduler.refusal(now) == ""


def test_what_was_sent_ahead_or_came_late_excuses_no_late_answer_after_it() -> None:
    scheduler = Scheduler(1)
    slot = scheduler.open(0.0)
    for index in range(5):
        scheduler.push(slot, index, b"", 0.0)
    serve(scheduler, 0.1)
    for index in range(5, 15):
        came = index * FRAME - (0.2 if index < 10 else 0.0)
        scheduler.push(slot, index, b"", came)
        scheduler.stepped(scheduler.due(came + FRAME), came + FRAME + 0.01)
    assert scheduler.account(slot).late == 10


def test_an_engine_that_falls_behind_is_late_with_every_frame_that_waits() -> None:
    scheduler, now = Scheduler(1), 0.0
    slot = scheduler.open(now)
    for index in range(20):
        scheduler.push(slot, index, b"", index * FRAME)
        if index % 2:  # a step takes as long as two frames
            frames = scheduler.due(index * FRAME + 0.01)
            scheduler.stepped(frames, (index + 2) * FRAME)
    assert (scheduler.account(slot).frames, scheduler.account(slot).late) == (10, 10)


def test_a_call_that_ended_while_its_step_ran_is_counted_for_the_engine_only() -> None:
    scheduler = Scheduler(1)
    slot = scheduler.open(0.0)
    scheduler.push(slot, 0, b"", 0.0)
    frames = scheduler.due(0.0)
    assert scheduler.close(slot, 0.1).frames == 0
    scheduler.stepped(frames, 0.5)
    assert (scheduler.frames, scheduler.late) == (1, 1)


def stood_still(scheduler: Scheduler, slot: int, frames: int) -> float:
    """A caller's frames come and none is stepped: when the one after them would come."""
    for index in range(frames):
        scheduler.push(slot, index, b"", index * FRAME)
    return frames * FRAME


def test_a_caller_who_hangs_up_on_an_engine_that_stands_still_has_missed_every_frame() -> None:
    scheduler = Scheduler(3)
    slot, brief = scheduler.open(0.0), scheduler.open(0.0)
    scheduler.push(brief, 0, b"", 4.79)
    now = stood_still(scheduler, slot, 60) + 0.01
    account = scheduler.close(slot, now)
    assert (account.frames, account.late, account.unanswered) == (60, 60, 60)
    assert account.worst == pytest.approx(4.81)
    assert account.told() == (
        "60 of 60 frames were answered late, 60 of them never, the latest after 4810 ms; 0 of the caller's never came"
    )
    assert scheduler.close(brief, now) == Account(), "its answer was still in time"
    assert (scheduler.frames, scheduler.late) == (60, 60)
    assert (sum(scheduler.late_calls.counts), scheduler.late_calls.total) == (1, 60)
    assert "frames run late (60 of 60 in 2 s)" in scheduler.refusal(now)
    assert scheduler.refusal(now + PAUSE + 1) == ""


def test_no_call_is_taken_while_the_engine_stands_still() -> None:
    scheduler = Scheduler(2)
    slot = scheduler.open(0.0)
    now = stood_still(scheduler, slot, 4)
    assert scheduler.refusal(2.9 * FRAME) == "", "two are overdue, as they may be"
    with pytest.raises(Refused, match=r"frames run late \(3 of 3 in 2 s\)"):
        scheduler.open(3.1 * FRAME)
    while frames := scheduler.due(now):
        scheduler.stepped(frames, now)
    assert "frames run late" in scheduler.refusal(now), "and not until they have been on time for a while"


def test_a_burst_that_waits_for_its_turn_closes_the_engine_to_nobody() -> None:
    scheduler = Scheduler(2)
    slot = scheduler.open(0.0)
    for index in range(12):
        scheduler.push(slot, index, b"", 0.0)
    assert scheduler.refusal(0.1) == ""
    assert scheduler.close(slot, 0.1).late == 1


def test_what_waits_of_a_call_is_forgotten_with_it() -> None:
    scheduler = Scheduler(1)
    slot = scheduler.open(0.0)
    scheduler.push(slot, 0, b"the caller's", 0.0)
    scheduler.close(slot, 0.01)
    assert scheduler.open(0.0) == slot
    assert serve(scheduler, 1.0) == []
