"""What becomes known of one live call, and who is told: the one place it all passes through.

Owns the order: what is said comes here first, and only from here reaches live views and the records.
Whatever must not be shown or kept is taken out here, in the text at once and in the recording by
muting it before it is released.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gateway.call import MASKED_KEY
from gateway.live import LiveFeed
from gateway.recording.recorder import Recorder
from gateway.records.journal import CallJournal
from gateway.redaction.redactor import Redacted, Redactor
from gateway.redaction.rules import Rules
from gateway.transcript import Utterance

REDACT_EVERY = 1.0
"""Seconds between two looks at what was said: one costs about half a millisecond, whatever has changed."""


class CallLog:
    """One call's; `journal` is None until the call's beginning was handed to the records, or without a database."""

    def __init__(
        self, call_id: str, live: LiveFeed, rules: Rules, recorder: Recorder | None = None, recording: str = ""
    ) -> None:
        """`recording`: what the store calls that which `recorder` keeps."""
        self.journal: CallJournal | None = None
        self.now: Callable[[], float] = lambda: 0.0
        """Seconds from answer."""
        self._call_id = call_id
        self._live = live
        self._recorder = recorder
        self._recording = recording
        self._redactor = Redactor(rules) if rules else None
        self._changed: dict[int, Utterance] = {}
        self._told: dict[int, Utterance] = {}
        self._timer: asyncio.TimerHandle | None = None

    def utterance(self, one: Utterance) -> None:
        """Said, being said, or taken back. Never waits and never fails."""
        if self._redactor is None:
            self._tell(one)
            return
        # What the agent was about to say is nobody's business where words are redacted.
        self._changed[one.number] = replace(one, unsaid="")
        self._wait()

    def event(self, at: float, kind: str, data: Mapping[str, Any]) -> None:
        """Happened `at` seconds from answer. Never waits and never fails."""
        if self._redactor is not None and kind == "keypad":
            # A card number comes key by key; the transcript, which sees them together, tells what they were.
            data = {**data, "key": MASKED_KEY}
        if self.journal is not None:
            self.journal.event(at, kind, data)
            if kind == "consent" and data["heard"] and self._recording:
                self.journal.recorded(self._recording)

    def over(self) -> None:
        """Nothing more will be said: decide what was still held back, and let the recording have the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._redactor is not None:
            self._redact(self._redactor)
            self._take(self._redactor.finish())

    def utterances(self) -> list[Utterance] | None:
        """What may be kept of all that was said, by start; None where nothing is redacted."""
        if self._redactor is None:
            return None
        return sorted((one for one in self._told.values() if one.text), key=lambda one: (one.start, one.number))

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(REDACT_EVERY, self._turn)

    def _turn(self) -> None:
        self._timer = None
        if self._redactor is not None:
            self._redact(self._redactor)
            # Time alone decides what is held back, and what the recording may keep.
            self._wait()

    def _redact(self, redactor: Redactor) -> None:
        changed, self._changed = self._changed, {}
        self._take(redactor.update(changed.values(), self.now()))

    def _take(self, redacted: Redacted) -> None:
        for one in redacted.utterances:
            self._told[one.number] = one
            self._tell(one)
        if self._recorder is not None:
            # Mutes first: what is released cannot be taken back.
            for mute in redacted.mutes:
                self._recorder.mute(mute.speaker, mute.start, mute.end)
            self._recorder.release(redacted.safe_until)

    def _tell(self, one: Utterance) -> None:
        self._live.publish(self._call_id, one)
        if self.journal is not None:
            self.journal.utterance(one)
