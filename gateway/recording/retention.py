"""When sound is too old to be kept, and its deletion. Knows no database: who calls it says what there is.

Pure but for the store: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gateway.recording.store import Deletion, RecordingStore, StoreError

DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A call whose recording is kept."""

    call_id: str
    persona: str
    ended_at: float
    """Seconds since 1970."""
    recording: str
    """Its name in the store."""


def is_due(ended_at: float, days: int | None, now: float) -> bool:
    """Whether what ended then has been kept for its `days`; None: it is kept for ever."""
    return days is not None and now - ended_at >= days * DAY


def delete_due(
    store: RecordingStore, calls: Iterable[Kept], audio_days: Mapping[str, int | None], now: float
) -> Iterator[tuple[Kept, Deletion | StoreError]]:
    """Delete the recordings that have had their days; blocks for disk and network.

    `audio_days` by persona; of one that is not named, nothing is deleted. Each result is returned before
    the next is begun, so that its proof can be written down at once; one that failed comes again next time.
    """
    for call in calls:
        if is_due(call.ended_at, audio_days.get(call.persona), now):
            try:
                yield call, store.delete(call.recording, now)
            except StoreError as error:
                yield call, error
