"""A log book that remembers all a call says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.transcript import Utterance


@dataclass
class Told:
    """Implements `gateway.call.LogBook`."""

    utterances: list[Utterance] = field(default_factory=list)
    events: list[tuple[float, str, Mapping[str, Any]]] = field(default_factory=list)
    was_over: int = 0

    def utterance(self, one: Utterance) -> None:
        self.utterances.append(one)

    def event(self, at: float, kind: str, data: Mapping[str, Any]) -> None:
        self.events.append((at, kind, data))

    def over(self) -> None:
        self.was_over += 1
