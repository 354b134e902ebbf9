"""What one call's agent is told to say: the greeting, words, clips, in the order they were asked for.

Owns that order, also while a clip is still being read, what must be heard whatever the caller does, and when words
give way to the caller. How text and codes are forced is `model.forced_speech`'. Knows no wire and no device.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Sequence
from typing import NamedTuple

from model.assets import Assets
from model.barge_in import GIVES_WAY_AFTER, is_loud
from model.clip import Clip, ClipError
from model.forced_speech import ForcedSpeech
from model.wire import Play, Say, SessionRequest

log = logging.getLogger(__name__)


class _Queued(NamedTuple):
    """clip: its name, where `play` asked for it. text: the words, where it is no clip. kept: not let go when the caller
    speaks."""

    clip: str
    text: str
    kept: bool


class CallSpeech:
    """Of the call in `slot`. Nothing is said before `begin` or `go_on` is done."""

    def __init__(self, speech: ForcedSpeech, assets: Assets, slot: int, request: SessionRequest) -> None:
        self.queued: deque[_Queued] = deque()
        """What `speech` has still to say, in order."""
        self._speech, self._assets, self._slot, self._request = speech, assets, slot, request
        self._orders: deque[Say | Play] = deque()
        """Asked for, and not yet queued: behind a clip that is being read, or before the call speaks."""
        self._begun = False
        self._over = 0
        """Frames in a row in which the caller spoke over the agent's words."""

    def begin(self) -> Generator[bool]:
        """The greeting: what a prepared clip says in its sound, the rest in words."""
        request = self._request
        before, clip, after = yield from self._prepared()
        if clip is not None:
            self._say(before, kept=True)
            if self._play(clip, request.clip, ""):
                self._say(after)
            else:
                self._say(clip.text + after)
        elif request.notice and after.startswith(request.notice):
            self._say(request.notice, kept=True)
            self._say(after[len(request.notice) :])
        else:
            self._say(after)
        yield from self._start()

    def go_on(self, texts: Sequence[str]) -> Generator[bool]:
        """What another engine had left to say."""
        for text in texts:
            kept, rest = self._parted(text)
            self._say(kept, kept=True)
            self._say(rest)
        yield from self._start()

    def _parted(self, text: str) -> tuple[str, str]:
        """How much of a text that was left must be heard, and what may give way: of the greeting, what is still inside
        the notice."""
        words, greeting, notice = text.split(), self._request.greeting.split(), self._request.notice.split()
        if greeting[: len(notice)] == notice and greeting[-len(words) :] == words:
            inside = max(0, len(words) - (len(greeting) - len(notice)))
            return " ".join(words[:inside]), " ".join(words[inside:])
        return (text, "") if self._must_be_heard(text) else ("", text)

    def _must_be_heard(self, text: str) -> bool:
        return text in self._request.notice

    def take(self, order: Say | Play) -> bool:
        """Take an order. True if `carry_out` is needed now: it waits for a file, and what comes next for it."""
        if isinstance(order, Say) and self._begun and not self._orders:
            self._obey_say(order)
            return False
        self._orders.append(order)
        return self._begun and len(self._orders) == 1

    def carry_out(self) -> Generator[bool]:
        """Queue what was asked for, in order; yields False while a clip is being read."""
        while self._orders:
            order = self._orders[0]
            if isinstance(order, Say):
                self._obey_say(order)
            else:
                try:
                    clip = yield from self._assets.clip(order.clip)
                    self._play(clip, order.clip, order.clip)
                except ClipError as error:
                    self._not_played(order.clip, error)
            self._orders.popleft()

    def returned(self, tokens: Sequence[int]) -> str:
        """Take note of the frame a step returned. The name of the clip that `play` asked for and that ended with it."""
        if self._speech.returned(self._slot, tokens) is None:
            return ""
        return self.queued.popleft().clip

    def give_way(self, pcm: bytes) -> str:
        """Let words go that the caller speaks over, and the model answer; not those that must be heard.

        Returns the text that was let go; empty if none was.
        """
        cuttable = self.queued and not self.queued[0].kept and self._speech.speaking(self._slot)
        self._over = self._over + 1 if cuttable and is_loud(pcm) else 0
        if self._over < GIVES_WAY_AFTER:
            return ""
        self._speech.let_go(self._slot)
        self._over = 0
        return self.queued.popleft().text

    def _start(self) -> Generator[bool]:
        yield from self.carry_out()
        self._begun = True

    def _obey_say(self, order: Say) -> None:
        self._say(order.text, kept=self._must_be_heard(order.text))

    def _prepared(self) -> Generator[bool, None, tuple[str, Clip | None, str]]:
        """The greeting before the clip, the clip if there is one that says a part of it, and what follows."""
        request = self._request
        if not request.clip:
            return "", None, request.greeting
        try:
            clip = yield from self._assets.clip(request.clip)
        except ClipError as error:
            log.info("call %s: the disclosure is said in the model's own sound: %s", request.call_id, error)
            return "", None, request.greeting
        before, found, after = request.greeting.partition(clip.text)
        if not found or not clip.text:
            log.warning("call %s: the clip %r says something else than the greeting", request.call_id, request.clip)
            return "", None, request.greeting
        return before, clip, after

    def _play(self, clip: Clip, name: str, told: str) -> bool:
        """Queue a clip, whose end is told under the name `told`. False if it does not fit this model."""
        try:
            self._speech.play(self._slot, clip)
        except ValueError as error:
            self._not_played(name, error)
            return False
        self.queued.append(_Queued(told, "", kept=True))
        return True

    def _not_played(self, name: str, error: Exception) -> None:
        log.warning("call %s: the clip %r is not played: %s", self._request.call_id, name, error)

    def _say(self, text: str, kept: bool = False) -> None:
        if not text.strip():
            return
        try:
            self._speech.say(self._slot, text)
            self.queued.append(_Queued("", text, kept))
        except ValueError as error:
            log.warning("call %s: %r is not said: %s", self._request.call_id, text[:80], error)
