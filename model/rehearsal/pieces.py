"""What a reply is made of: sentences, and perhaps the end of the call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from model.wire import DoneReason


@dataclass(frozen=True, slots=True)
class Sentence:
    """Said next; figures are written as words already."""

    text: str


@dataclass(frozen=True, slots=True)
class End:
    """The agent is finished once all sentences before this were said."""

    reason: DoneReason
    target: str = ""
    """Name of the persona's transfer target, when the reason is `transfer`."""


Piece = str | End
"""Of a reply that is being put together: text of any length as written, or the end of the call."""

Wanted = Callable[[], bool]
"""Whether a reply that is being made is still wanted; asked from the thread that makes it."""


def always() -> bool:
    """Wanted to the end."""
    return True
