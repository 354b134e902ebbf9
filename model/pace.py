"""How often calls are stepped: the number of ticks in a frame, from what a step of so many of them costs.

Owns what a frame may take, and the choice of ticks. Pure. Knows no slots and no calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

FRAME = 0.08
"""Seconds between two frames of a call, and what an answer may take."""
BUSY = 0.6
"""Part of the time that steps may take when the number of ticks in use is chosen."""
LATEST = 0.9 * FRAME
"""Seconds in which ticks and holds let a frame be answered: what comes between two steps has the rest."""
TICKS = 16
"""The most that a frame has."""
_NUMBERS = (TICKS, 8, 4, 2, 1)
"""Of ticks that may be in use."""


class Pace(NamedTuple):
    """How a number of calls is stepped."""

    ticks: int
    answer: float
    """Seconds to the answer of a frame that has just missed a tick."""
    busy: float
    """Part of the time that steps take."""


def pace(calls: int, costs: Mapping[int, float]) -> Pace:
    """As many ticks as leave the device time to breathe, of those that answer in time; else the least work that does.

    Where no number of ticks does, the soonest that can be kept up. `costs` as for `cost_of`.
    """
    paces = []
    for ticks in _NUMBERS:
        cost = cost_of(costs, math.ceil(calls / ticks))
        paces.append(Pace(ticks, FRAME / ticks + cost, min(ticks, calls) * cost / FRAME))
    timely = [one for one in paces if one.answer <= LATEST and one.busy <= 1]
    calm = [one for one in timely if one.busy <= BUSY]
    if calm:
        return calm[0]
    if timely:
        return min(timely, key=lambda one: one.busy)
    return min(paces, key=lambda one: (max(1.0, one.busy), one.answer))


def cost_of(costs: Mapping[int, float], count: int) -> float:
    """Seconds of a step of `count` slots, from `costs` by number of slots in rising order: as the next larger one
    measured, or in proportion to the largest."""
    measured, seconds = count, 0.0
    for measured, seconds in costs.items():
        if measured >= count:
            return seconds
    return seconds * count / measured
