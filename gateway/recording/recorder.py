"""The sound of a call on its way to the disk: caller left, agent right, as WAV or Opus, sealed or not.

Owns what the call sees of it. The media path only hands over references, and about once a second their bytes go
to the process that mutes, encodes, seals and writes them (`process`, `writer`); after a kill of either the file plays
up to the last second written. Knows nothing of calls beyond their file's path.

Where a persona redacts, sound is kept only once it was released: until then it waits in a spool that nobody
else can read, and on its way out what was to be muted is made silent. Where it asks for consent first, what
came before is never stored; silence stands for it, so that times in the file are times of the call.

A disk that fails or stalls never touches the call: the recording is marked failed, with one line in the
log, and what was written before stays playable.
"""

from __future__ import annotations

import logging
import math
import os
import zlib
from concurrent.futures import Future
from pathlib import Path
from typing import Literal

from gateway.recording.disk import FLUSH_PIECES, RATE
from gateway.recording.orders import Answer, Append, Begin, Closed, End, Failed, Late, Mute, Opened, RecordingPlan
from gateway.recording.process import Channel, WriterProcess

__all__ = ["Recorder", "RecordingPlan"]

logger = logging.getLogger(__name__)

MAX_PENDING = 15
"""Batches that may wait for a slow disk before the recording gives up: 10 s, 310 kB."""

Speaker = Literal["caller", "agent"]

_WRITER = WriterProcess()
"""One for all calls of this process."""


class Recorder:
    """One call's recording, int16 at 8 kHz. Its methods are for one thread."""

    def __init__(self, plan: RecordingPlan, writer: WriterProcess = _WRITER) -> None:
        self.plan = plan
        self._writer = writer
        self._channel: Channel | None = None
        self._caller: list[bytes] = []
        self._agent: list[bytes] = []
        # Calls that start together do not all write in the same tick.
        self._due = 1 + zlib.crc32(str(plan.path).encode()) % FLUSH_PIECES
        self._released = 0.0 if plan.held else math.inf
        """In samples."""
        self._mutes: list[Mute] = []
        """Not yet handed over."""
        self._skipped = 0
        self._opened = False
        self._failed = ""
        self._closing = False
        self._closed: Future[None] = Future()
        self._closed.set_running_or_notify_cancel()
        if not plan.after_consent:
            self.begin()

    @property
    def failed(self) -> str:
        """Why recording stopped, in one sentence; empty while all is well."""
        return self._failed

    @property
    def begun(self) -> bool:
        """Whether anything is kept: false until a consent that is awaited."""
        return self._channel is not None

    @property
    def backlog(self) -> int:
        """Batches that wait here because the disk is slow."""
        return self._channel.waiting if self._channel is not None else 0

    @property
    def kept(self) -> Path | None:
        """Where the recording lies, once it is closed; None: nothing was kept."""
        return self.plan.path if self._opened else None

    def begin(self) -> None:
        """Consent was heard: from now on sound is kept. Silence stands in the file for what came before."""
        if self._channel is None and not self._closing:
            self._channel = self._writer.channel(self._hear)
            self._channel.send(Begin(self._channel.number, self.plan, self._skipped))

    def write(self, caller_pcm: bytes, agent_pcm: bytes) -> None:
        """Both sides' next 80 ms, of equal length (the shorter is filled up with silence).

        Never blocks and never raises; after a failure or `close` it does nothing.
        """
        if self._failed or self._closing:
            return
        if self._channel is None:
            self._skipped += max(len(caller_pcm), len(agent_pcm)) // 2
            return
        missing = len(caller_pcm) - len(agent_pcm)
        if missing:
            caller_pcm, agent_pcm = caller_pcm + bytes(max(-missing, 0)), agent_pcm + bytes(max(missing, 0))
        self._caller.append(caller_pcm)
        self._agent.append(agent_pcm)
        if len(self._caller) >= self._due:
            self._due = FLUSH_PIECES
            self._hand_over(self._channel)

    def mute(self, speaker: Speaker, start: float, end: float) -> None:
        """Make one side silent from `start` to `end`, in seconds of the call. Must come before their release."""
        self._mutes.append(Mute(int(speaker == "agent"), math.floor(start * RATE), math.ceil(end * RATE)))

    def release(self, until: float) -> None:
        """What was said before `until`, in seconds of the call, may be kept; it is with the next second's write."""
        self._released = max(self._released, until * RATE + 0.5)

    def close(self) -> Future[None]:
        """Write the rest that was released and close the file; what was not is gone.

        Does not wait: the future is done when the file is complete. Safe to call twice. The future never
        holds an error; `failed` says whether the recording is whole.
        """
        if not self._closing:
            if self._channel is None:
                self._closed.set_result(None)
            else:
                if not self._failed and self._caller:
                    self._hand_over(self._channel)
                self._channel.send(End(self._channel.number, self._released, self._take_mutes(), not self._failed))
            self._closing = True
        return self._closed

    def _hand_over(self, channel: Channel) -> None:
        if channel.waiting >= MAX_PENDING:
            self._fail("the disk is too slow to record on")
            return
        channel.send(Append(channel.number, self._caller, self._agent, self._released, self._take_mutes()))
        self._caller, self._agent = [], []

    def _take_mutes(self) -> list[Mute]:
        mutes, self._mutes = self._mutes, []
        return mutes

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = f"recording {self.plan.path} stopped: {why}"
            self._caller, self._agent = [], []
            logger.error("%s; the call goes on", self._failed)

    def _hear(self, answer: Answer | None) -> None:
        """In a thread of the writer's."""
        match answer:
            case Opened():
                self._opened = True
            case Failed():
                self._fail(answer.why)
            case Late(mute=mute):
                span = (mute.start / RATE, mute.end / RATE)
                logger.error("%s: %.2f to %.2f s were to be muted too late and are kept", self.plan.path, *span)
            case Closed():
                self._closed.set_result(None)
            case None:
                # It may have opened the file and not come to say so.
                self._opened = self._opened or os.path.exists(self.plan.path)
                self._fail("the process that writes recordings has ended")
                self._closed.set_result(None)
