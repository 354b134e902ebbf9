"""A worker's numbers as Prometheus reads them (text exposition format 0.0.4). Pure; standard library only.

Owns the shape of counters, gauges and histograms. Never a label for a call: what differs from call to call is a
histogram.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge"]
_PREFIX = "callplex_worker_"


@dataclass(slots=True)
class Histogram:
    """How often values of which size came. counts: one for each bound, of values up to it, and one of those beyond."""

    bounds: tuple[int, ...]
    counts: list[int] = field(default_factory=list)
    total: int = 0
    """Of all values."""

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    def observe(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def exposition(values: Iterable[tuple[str, Kind, int]], histograms: Mapping[str, Histogram]) -> str:
    """The text for `/metrics`; names come without the prefix."""
    lines = [f"# TYPE {_PREFIX}{name} {kind}\n{_PREFIX}{name} {value}\n" for name, kind, value in values]
    for name, histogram in histograms.items():
        lines += _histogram(_PREFIX + name, histogram)
    return "".join(lines)


def _histogram(name: str, histogram: Histogram) -> Iterator[str]:
    yield f"# TYPE {name} histogram\n"
    count = 0
    for bound, number in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        count += number
        yield f'{name}_bucket{{le="{bound}"}} {count}\n'
    yield f"{name}_sum {histogram.total}\n{name}_count {count}\n"
