"""Which slots step now: admission, the order of each call's frames, and the account of who was late.

Owns slots, queues of caller frames and deadlines. Pure: time comes in as seconds, sound as opaque bytes. Knows no
network, no tokens and no device.

A frame is 80 ms. Its 16 ticks are 5 ms apart, and a step begins on one: all frames that wait then are stepped
together. How many ticks are used follows from what a step costs: one call has all sixteen, so that it waits
little; many calls share a few, so that each step reads the weights for as many as possible, but never so few that a
frame which has just missed its tick could not be answered in time. A call whose frames come when too many others' do
waits a few ticks more in every frame, as far as its deadline allows, so that steps do not burst.

Where steps take most of the time there is no room to wait: with 128 calls on an H200 a tick is 40 ms and a step of all
39. Callers whose clocks agree, as those of one carrier may, then all come to one tick, and together might miss it by
little and be late. So a group that is fuller than reckoned with is stepped before its tick, when it is time for who
has waited longest; and where some in one step would still be late, in two, if so nobody is.

    frame arrives ──> queue of its slot ──> due at the next tick in use, held a little ──> step ──> account
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from model.metrics import Histogram
from model.pace import BUSY, FRAME, LATEST, cost_of, pace

LONGEST_HOLD = FRAME / 2
"""A frame is never held longer than this to spread the load."""
WATCHED = 2.0
"""Seconds over which late frames are counted for admission."""
LATE_PART = 0.01
"""Part of the watched frames that may be late before no call is taken."""
LATE_LEAST = 2
PAUSE = 5.0
"""Seconds without admission after frames ran late."""
LATE_CALLS = (0, 1, 2, 5, 10, 25, 50, 100, 250)
"""Bounds of the histogram of calls by their late frames."""
_FULLER = 1.25
"""A step at a tick that many callers come to, by the mean."""
_TIGHT = 0.95 * FRAME
"""Seconds after which an answer is in danger: more than `LATEST`, so that one of a step begun a little late is not."""
_ROUNDING = 1e-9


def all_taken(slots: int) -> str:
    """Why a worker with so many slots takes no other call."""
    return "the only slot of this worker is taken" if slots == 1 else f"all {slots} slots of this worker are taken"


class Refused(Exception):
    """No call is taken now; the message says why."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A caller frame to be stepped. pcm: b"" is silence in place of a frame that never came."""

    slot: int
    index: int
    pcm: bytes
    arrived: float
    wanted: float
    """From when its answer is waited for: `arrived`, or later where it was sent ahead of its time."""


class _Waiting(NamedTuple):
    tick: float
    """At which it is due."""
    frame: Frame


@dataclass(slots=True)
class Account:
    """How a call was served."""

    frames: int = 0
    """Frames answered, and those whose answer was overdue when the call ended."""
    late: int = 0
    """Frames answered more than 80 ms after their answer was wanted, or not at all although that was over.

    Of a burst, as a gateway sends of what came while a call was resumed, only the first is wanted when it comes, each
    of the others 80 ms after the one before: how long they waited elsewhere is not known here.
    """
    unanswered: int = 0
    """Of the late ones, those that never had an answer: the caller left, or the call went elsewhere, meanwhile."""
    worst: float = 0.0
    """Seconds from when an answer was wanted to the answer, or to the call's end where there was none."""
    lost: int = 0
    """Caller frames that never came and were taken for silence."""
    repeated: int = 0
    """Caller frames that came a second time, or too late, and were left out."""

    def told(self) -> str:
        """A sentence for the log."""
        never = f", {self.unanswered} of them never" if self.unanswered else ""
        latest = f", the latest after {1000 * self.worst:.0f} ms" if self.late else ""
        again = f", {self.repeated} came again" if self.repeated else ""
        answered = f"{self.late} of {self.frames} frames were answered late{never}{latest}"
        return f"{answered}; {self.lost} of the caller's never came{again}"


@dataclass(slots=True)
class _Slot:
    next_in: int
    """Index of the caller frame that comes next."""
    waiting: deque[Frame] = field(default_factory=deque)
    hold: float | None = None
    """Seconds that its frames wait beyond their tick; None before the first frame."""
    phase: float = 0.0
    """When in the frame it is stepped, seconds below 0.08."""
    expected: float = -math.inf
    """When the next caller frame is."""
    account: Account = field(default_factory=Account)


class Scheduler:
    """The slots of one engine. `costs` is what a step takes, seconds by number of slots, as measured."""

    def __init__(self, slots: int, *, largest: int | None = None, costs: Mapping[int, float] | None = None) -> None:
        """`largest`: most slots in one step."""
        self.capacity = slots
        self.frames = self.late = self.lost = 0
        """Of all calls since the start, as in Account."""
        self.late_calls = Histogram(LATE_CALLS)
        """Calls that are over, by their late frames."""
        self._largest = slots if largest is None else largest
        self._costs = dict(sorted((costs or {}).items()))
        self._free = list(range(slots - 1, -1, -1))
        self._open: dict[int, _Slot] = {}
        self._pace_of = functools.cache(lambda calls: pace(max(1, calls), self._costs))
        self._pace = self._pace_of(0)
        self._recent: deque[tuple[float, int, int]] = deque()
        self._recent_frames = self._recent_late = 0
        self._paused_until = -math.inf
        self._why_paused = ""

    @property
    def active(self) -> int:
        return len(self._open)

    def refusal(self, now: float) -> str:
        """Why no call is taken now; empty if one is."""
        if not self._free:
            return all_taken(self.capacity)
        if now < self._paused_until:
            return self._why_paused
        # What waits too long already is late whenever it is answered: while the engine stands still, nothing is.
        self._forget(now)
        overdue = sum(len(_overdue(state, now)) for state in self._open.values())
        return self._if_late(self._recent_frames + overdue, self._recent_late + overdue)

    def open(self, now: float, next_index: int = 0, *, under_way: bool = False) -> int:
        """Give a slot to a call whose first caller frame is `next_index`. Raises Refused.

        A call `under_way`, which lost another engine, is taken even if frames run late: better late than lost.
        """
        if (reason := self.refusal(now)) and not (under_way and self._free):
            raise Refused(reason)
        slot = self._free.pop()
        self._open[slot] = _Slot(next_index)
        self._pace = self._pace_of(self.active)
        return slot

    def close(self, slot: int, now: float) -> Account:
        """The call is over; what waits of it is forgotten, but if it waits for too long already it was late. Returns
        how it was served."""
        closed = self._open.pop(slot)
        self._free.append(slot)
        self._pace = self._pace_of(self.active)
        account = closed.account
        if overdue := _overdue(closed, now):
            account.frames += len(overdue)
            account.late += len(overdue)
            account.unanswered = len(overdue)
            account.worst = max(account.worst, now - overdue[0].wanted)
            self._count(now, len(overdue), len(overdue))
        if account.frames:
            self.late_calls.observe(account.late)
        return account

    def push(self, slot: int, index: int, pcm: bytes, came: float) -> None:
        """A caller frame came at `came`, before now where whoever tells us was busy: its tick may be over.

        Those before it that have not come are silence; one that is too late is left out.
        """
        state = self._open[slot]
        if index < state.next_in:
            state.account.repeated += 1
            return
        # Behind others of its own that wait, it can be no later than the caller is ahead.
        wanted = max(came, state.expected) if state.waiting else came
        for missing in range(state.next_in, index):
            state.waiting.append(Frame(slot, missing, b"", came, wanted))
            state.account.lost += 1
            self.lost += 1
        state.waiting.append(Frame(slot, index, pcm, came, wanted))
        state.expected = wanted + FRAME
        state.next_in = index + 1
        if state.hold is None:
            state.hold = self._choose_hold(came)
        state.phase = (self._tick_after(came) + self._held(state, came)) % FRAME

    def due(self, now: float) -> list[Frame]:
        """The frames to step now, at most one a slot, those that wait longest first. They leave their queues."""
        waiting = self._waiting()
        ready = [one for one in waiting if one.tick <= now + _ROUNDING]
        if not ready and (group := _of_next_tick(waiting)) and self._begins(group) <= now + _ROUNDING:
            ready = group
        frames = sorted((one.frame for one in ready), key=lambda frame: frame.arrived)[: self._largest]
        chosen = frames[: self._in_time(frames, now)]
        for frame in chosen:
            self._open[frame.slot].waiting.popleft()
        return chosen

    def next_due(self) -> float | None:
        """When `due` has something next; None if nothing waits."""
        group = _of_next_tick(self._waiting())
        return self._begins(group) if group else None

    def stepped(self, frames: Sequence[Frame], now: float) -> list[Frame]:
        """The answers of `frames` are ready: keep account. Returns those that were late."""
        late = []
        for frame in frames:
            state = self._open.get(frame.slot)
            took = now - frame.wanted
            if state is not None:
                state.account.frames += 1
                state.account.worst = max(state.account.worst, took)
                state.account.late += took > FRAME
            if took > FRAME:
                late.append(frame)
        self._count(now, len(frames), len(late))
        return late

    def _count(self, now: float, frames: int, late: int) -> None:
        """Of the engine, for admission too."""
        self.frames += frames
        self.late += late
        self._recent.append((now, frames, late))
        self._recent_frames += frames
        self._recent_late += late
        self._forget(now)
        if reason := self._if_late(self._recent_frames, self._recent_late):
            self._paused_until = now + PAUSE
            self._why_paused = reason

    def _forget(self, now: float) -> None:
        """What is watched no longer."""
        while self._recent and self._recent[0][0] < now - WATCHED:
            _, count, were_late = self._recent.popleft()
            self._recent_frames -= count
            self._recent_late -= were_late

    @staticmethod
    def _if_late(frames: int, late: int) -> str:
        """Why no call is taken where `late` of the last `frames` were; empty if one is."""
        if late <= max(LATE_LEAST, LATE_PART * frames):
            return ""
        return f"frames run late ({late} of {frames} in {WATCHED:.0f} s); no call is taken until they are on time"

    def account(self, slot: int) -> Account:
        return self._open[slot].account

    def _waiting(self) -> list[_Waiting]:
        """The first frame that waits of each call. One that waited behind another is held no longer."""
        return [
            _Waiting(self._tick_after(frame.arrived) + self._held(state, frame.arrived), frame)
            for state in self._open.values()
            if state.waiting and (frame := state.waiting[0])
        ]

    def _begins(self, group: Sequence[_Waiting]) -> float:
        """When those that wait for the same tick are stepped: then; or before it, if they are more than reckoned with:
        when it is time for who has waited longest.

        No sooner, though all have come: whether all had would decide in each frame anew when a call is answered, and
        an answer that comes 20 ms later than the one before is a gap in what the caller hears.
        """
        tick = group[0].tick
        if len(group) <= self._full():
            return tick
        oldest, newest = min(one.frame.wanted for one in group), max(one.frame.arrived for one in group)
        return min(tick, max(newest, oldest + LATEST - cost_of(self._costs, len(group))))

    def _full(self) -> int:
        """The most calls that are reckoned with at one tick."""
        return max(self._fuller(), self._most_within(BUSY * self._spacing()))

    def _fuller(self) -> int:
        return math.ceil(_FULLER * self.active / self._pace.ticks)

    def _in_time(self, frames: Sequence[Frame], now: float) -> int:
        """How many of `frames`, which waited longest first, are stepped now: all, but where in two steps nobody is late
        who in one would be. Where somebody is late in any case, one step is the least work."""
        count = len(frames)
        if count <= self._full() or self._longest(frames, count, now) <= _TIGHT:
            return count
        sizes = (size for size in self._costs if size < count)
        longest, first = min(((self._longest(frames, size, now), size) for size in sizes), default=(math.inf, count))
        return first if longest <= FRAME else count

    def _longest(self, frames: Sequence[Frame], first: int, now: float) -> float:
        """Seconds that one of `frames` waits for its answer if so many are stepped now, and the others right after."""
        waits, done = [], now
        for part in (frames[:first], frames[first:]):
            if part:
                done += cost_of(self._costs, len(part))
                waits.append(done - min(frame.wanted for frame in part))
        return max(waits)

    def _held(self, state: _Slot, arrived: float) -> float:
        """A whole number of the ticks now in use, within the deadline: others may have been when it was chosen."""
        spacing = self._spacing()
        held = min(state.hold or 0.0, max(0.0, self._most_hold(arrived)))
        return math.floor(held / spacing + _ROUNDING) * spacing

    def _most_hold(self, arrived: float) -> float:
        """Seconds that a frame can wait beyond its tick and still be answered in time, by a step fuller than most."""
        cost = cost_of(self._costs, self._fuller())
        return LATEST - cost - (self._tick_after(arrived) - arrived)

    def _spacing(self) -> float:
        return FRAME / self._pace.ticks

    def _tick_after(self, moment: float) -> float:
        spacing = self._spacing()
        return math.ceil(moment / spacing - _ROUNDING) * spacing

    def _most_within(self, seconds: float) -> int:
        """The largest number of slots measured whose step takes no longer."""
        return max((count for count, took in self._costs.items() if took <= seconds + _ROUNDING), default=1)

    def _choose_hold(self, came: float) -> float:
        """How long a new call's frames wait beyond their tick: until the first that has room. Where steps take most of
        the time not at all: others' would not be over by then, and to step with them is less work.

        It stays so while the call lasts. When others have left, those that stay are not spread anew: of 64 calls that
        came at one phase, the 16 that stay may be stepped by 6, 3 and 7, where there are four ticks. None is late for
        that; but a hold that grew in the middle of a call would be a gap in what its caller hears.
        """
        if self._pace.busy > BUSY:
            return 0.0
        spacing, first = self._spacing(), self._tick_after(came)
        longest = min(LONGEST_HOLD, self._most_hold(came))
        room = max(math.ceil(self.active / self._pace.ticks), self._most_within(BUSY * spacing))
        others = [state for state in self._open.values() if state.hold is not None]
        counts = []
        for held in range(max(0, math.floor(longest / spacing + _ROUNDING)) + 1):
            phase = (first + held * spacing) % FRAME
            count = sum(1 for state in others if _apart(state.phase, phase) < spacing / 2)
            if count < room:
                return held * spacing
            counts.append((count, held))
        return min(counts)[1] * spacing


def _of_next_tick(waiting: Sequence[_Waiting]) -> list[_Waiting]:
    tick = min((one.tick for one in waiting), default=0.0)
    return [one for one in waiting if one.tick <= tick + _ROUNDING]


def _overdue(state: _Slot, now: float) -> list[Frame]:
    """The frames that wait although their answers were wanted more than 80 ms ago."""
    return [frame for frame in state.waiting if now - frame.wanted > FRAME]


def _apart(one: float, other: float) -> float:
    """Distance of two phases around the frame."""
    distance = abs(one - other) % FRAME
    return min(distance, FRAME - distance)
