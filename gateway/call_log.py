"""What becomes known of one live call, and who is told: the one place it all passes through.

Owns the order: what is said comes here first, and only from here reaches live views and the records.
Whatever must not be shown or kept is taken out here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.live import LiveFeed
from gateway.records.journal import CallJournal
from gateway.transcript import Utterance


class CallLog:
    """One call's; `journal` is None until the call's beginning was handed to the records, or without a database."""

    def __init__(self, call_id: str, live: LiveFeed) -> None:
        self.journal: CallJournal | None = None
        self._call_id = call_id
        self._live = live

    def utterance(self, one: Utterance) -> None:
        """Said, being said, or taken back. Never waits and never fails."""
        self._live.publish(self._call_id, one)
        if self.journal is not None:
            self.journal.utterance(one)

    def event(self, at: float, kind: str, data: Mapping[str, Any]) -> None:
        """Happened `at` seconds from answer. Never waits and never fails."""
        if self.journal is not None:
            self.journal.event(at, kind, data)
