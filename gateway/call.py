"""One call: a phone line and an engine's session, bridged until one of them is done.

Read `Call.run` first. The call has a clock of its own: every 80 ms it takes what the line delivered,
or silence, so that the engine gets exactly one frame a tick and answers with exactly one, and no
side's jitter becomes the other's. Three tasks, all in one TaskGroup:

    listen      line -> jitter buffer
    keep_time   jitter buffer -> 24 kHz -> session, each 80 ms
    speak       session -> 8 kHz -> line, transcript, recording

Whichever finds that the call is over says so with a reason, once; the rest is cleaned up by `run`.
Knows no carrier, no worker and no files but the recording it is handed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from gateway.audio import SILENCE, Downsampler, JitterBuffer, Upsampler, level
from gateway.call_clock import KEPT_TICKS, STOOD_STILL, CallClock
from gateway.call_plan import CallPlan
from gateway.engine import Engine, EngineFull, EngineLost, Session, WorkerChanged
from gateway.farewell import Farewell
from gateway.latency import ResponseMeter
from gateway.leg import CallLeg, LegError, Outcome
from gateway.recording.consent import Consent
from gateway.recording.recorder import Recorder
from gateway.transcript import Transcript, Utterance
from model.wire import FRAME_SECONDS, AgentFrame, AgentText, CallerText, Done, Flush, Late

log = logging.getLogger(__name__)

MASKED_KEY = "\u2022"

MISSES_EVERY = 5.0
"""Seconds between two events that tell of missed deadlines."""
DRAIN = 3.0
"""Seconds to wait at most for the line to play the agent's last words."""


@dataclass(slots=True)
class CallCounters:
    """What a call's frames came to; frames of 80 ms unless said otherwise."""

    frames_in: int = 0
    """Caller frames sent to the engine."""
    frames_out: int = 0
    """Agent frames played."""
    frames_lost: int = 0
    """20 ms carrier frames that never came, came too late, or were dropped to catch up."""
    agent_frames_lost: int = 0
    """20 ms of the agent's that came too late for the line, or were left out to catch up; see `CallLeg.lost`."""
    agent_frames_late: int = 0
    """Agent frames that the engine, where it does, says came late, and those that it owed for longer at the end."""
    deadline_misses: int = 0
    caller_unheard_after: float | None = None
    """Seconds of the call from which on its caller may not be written down; see `Session.unheard`."""

    def seconds(self) -> float:
        """How long the call has lasted, from answer."""
        return self.frames_in * FRAME_SECONDS


class LogBook(Protocol):
    """Who is told what becomes known of a call. Nothing here waits or fails."""

    def utterance(self, one: Utterance) -> None:
        """Said, being said, or taken back: replaces what was told under its number."""

    def event(self, at: float, kind: str, data: Mapping[str, Any]) -> None:
        """Happened `at` seconds from answer."""

    def over(self) -> None:
        """Nothing follows; the recording is about to be closed."""


class Call:
    """Runs one call. `outcome` is set before the line is let go, so that a carrier can ask at once."""

    def __init__(
        self,
        leg: CallLeg,
        engine: Engine,
        plan: CallPlan,
        recording: Recorder | None = None,
        log_book: LogBook | None = None,
    ) -> None:
        self.info = leg.info
        self.plan = plan
        self.transcript = Transcript(FRAME_SECONDS)
        self.counters = CallCounters()
        self.worker_changes: list[WorkerChanged] = []
        self.responses = ResponseMeter()
        self.engine_name = ""
        self.answer_ms: float | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._leg = leg
        self._engine = engine
        self._recording = recording
        self._consent = Consent(plan.consent, FRAME_SECONDS) if plan.consent else None
        self._log_book = log_book
        self._jitter = JitterBuffer()
        self._clock = CallClock(self._jitter)
        self._unanswered: deque[bytes] = deque(maxlen=KEPT_TICKS)
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reason = ""
        self._target = ""
        self._session: Session | None = None
        self._engine_done = False
        self._remembers = False
        """The engine's answers carry what another worker would need: those without are nobody's, and silence."""
        self._leaving = ""
        self._farewell = Farewell(plan.farewell)
        self._silence_began = 0.0
        self._held = False
        self._misses_told = (0.0, 0)
        leg.on_digit = self._press

    @property
    def seconds(self) -> float:
        """How long the call has lasted, from answer."""
        return self.counters.seconds()

    async def run(self) -> str:
        """Bridge until the call ends, clean up whatever happened, and return the end reason."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._start(tasks, self._listen())
                self._start(tasks, self._converse(tasks))
                await self._over.wait()
                # The group waits for its tasks; what is over must not wait for the other side. Not by an exception:
                # the group's would hold itself by its traceback, and so the call, until the collector comes.
                for task in tuple(self._tasks):
                    task.cancel()
        except* Exception:
            log.exception("call %s failed", self.info.call_id)
            self.end("failed")
        finally:
            await self._clean_up()
        return self._reason

    def end(self, reason: str, target: str = "") -> None:
        """The call is over; the first reason given stands."""
        if not self._over.is_set():
            self._reason, self._target = reason, target
            self._over.set()

    def _start(self, tasks: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        if self._over.is_set():  # whoever starts this has not heard that it was cancelled
            work.close()
            return
        task = tasks.create_task(self._until_over(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _until_over(self, work: Coroutine[None, None, None]) -> None:
        """One of the call's tasks: the two peers' faults are reasons to end, anything else is our bug."""
        try:
            await work
        except EngineFull as error:
            self._fault("busy", error)
        except EngineLost as error:
            self._fault("worker_lost", error)
        except LegError as error:
            self._fault("protocol_error", error)

    def _fault(self, reason: str, error: Exception) -> None:
        # Not the error itself, which holds the call by its traceback: there are handlers that keep what they are given.
        log.warning("call %s: %s", self.info.call_id, str(error))
        self.end(reason)

    async def abandon(self) -> None:
        """It will not be run: let the line go, and close what was opened for it."""
        await self._clean_up()

    async def _clean_up(self) -> None:
        """Runs on every way out, a cancelled call's too: tell the carrier, free the slot, close the file.

        Each step is taken whatever became of the one before it.
        """
        self.end("shutdown")
        if not self.outcome.done():
            self.outcome.set_result(Outcome(self._reason, self._target, self.plan.fallback))
        async with AsyncExitStack() as steps:
            # Beside the rest, for neither waits for the other's peer; the last one pushed is the first to be taken.
            hanging_up = asyncio.create_task(self._leg.hangup(self._reason))
            steps.push_async_callback(lambda: hanging_up)
            steps.push_async_callback(self._close_records)
            steps.push_async_callback(self._close_session)
            self.counters.frames_lost = self._jitter.missing + self._jitter.dropped
            self.counters.agent_frames_lost = self._leg.lost
            self.counters.agent_frames_late += 0 if self._engine_done else self._clock.overdue(len(self._unanswered))
            self._tell(self.transcript.stop(self.counters.frames_out - 1))

    async def _close_session(self) -> None:
        """Free the slot, and hear what the caller was still saying."""
        if self._session is not None:
            await self._session.close()
            async for text in self._session.last_words():
                self._note(text)
            if (after := self._session.unheard) is not None:
                self.counters.caller_unheard_after = round(after, 2)
                self._event("unheard", after=round(after, 2))

    async def _close_records(self) -> None:
        try:
            if self._consent is not None and not self._consent.heard:
                log.warning("call %s: the consent line was never heard, so nothing was kept", self.info.call_id)
                self._event("consent", heard=False)
            if self._recording is not None:
                while self._unanswered:
                    self._recording.write(self._unanswered.popleft(), SILENCE)
            if self._log_book is not None:
                self._log_book.over()
        finally:
            if self._recording is not None:
                # Shielded: a cancelled call's file is closed all the same.
                await asyncio.shield(asyncio.wrap_future(self._recording.close()))

    async def _converse(self, tasks: asyncio.TaskGroup) -> None:
        session = self._session = await self._engine.open(self.plan.request)
        self.engine_name = session.engine
        self._leg.answer()
        self._event("answer", engine=session.engine)
        self._start(tasks, self._keep_time(session))
        self._start(tasks, self._speak(session, tasks))

    async def _listen(self) -> None:
        await self._leg.listen(self._hear)
        self.end("caller_hangup")

    def _hear(self, frame: bytes) -> None:
        self._jitter.push(frame)
        self._clock.heard()

    def _press(self, key: str) -> None:
        """A key of the caller's telephone: a sign of life, and something to remember."""
        at = self._silence_began = self.seconds
        if self._consent is not None and not self._consent.heard:
            return
        shown = MASKED_KEY if self.plan.masks_keypad else key
        self._tell(self.transcript.press(shown, at))
        self._event("keypad", key=shown)

    async def _keep_time(self, session: Session) -> None:
        """At each tick of the call's clock, one frame of the caller's for the engine."""
        await self._clock.start()
        if not len(self._jitter):
            log.info("call %s: no sound from the line yet", self.info.call_id)
        upsample = Upsampler()
        while not self._engine_done:
            if late := await self._clock.tick():
                self._missed(late)
            at = self.counters.frames_in * FRAME_SECONDS
            pcm = self._jitter.pop()
            self._unanswered.append(pcm)
            self.responses.caller(at, FRAME_SECONDS, level(pcm))
            await session.send(upsample(pcm), pcm)
            self.counters.frames_in += 1
            owed = (self.counters.frames_in - self.counters.frames_out) * FRAME_SECONDS
            if owed > self.plan.engine_silence_seconds:
                raise EngineLost(f"the worker has not answered for {owed:.1f} s")
            if self._leaving:
                await self._leave()
            elif self._consent_due():
                await session.say(self.plan.consent)
            elif reason := self._limit(at):
                log.info("call %s: ending it at %.0f s, %s", self.info.call_id, at, reason)
                self._event("limit", reason=reason)
                self._leaving = reason
                self._farewell.ask()
                await session.say(self.plan.farewell)

    def _consent_due(self) -> bool:
        """Whether the line must be said again; not to somebody who holds the call."""
        if self._consent is None or self._leg.on_hold:
            return False
        return self._consent.say_again(self.counters.frames_out)

    def _limit(self, at: float) -> str:
        """The reason why the call must end now, if there is one."""
        if self._leg.on_hold != self._held:
            self._held = not self._held
            self._event("hold" if self._held else "resume")
        if self._held:
            self._clock.last_media = self._clock.now()
            self._silence_began = at
        if at >= self.plan.max_seconds:
            return "time_limit"
        if self._clock.now() - self._clock.last_media > self.plan.no_media_seconds:
            return "no_media"
        silent = at - max(self._silence_began, self.responses.last_speech)
        return "silence" if silent >= self.plan.max_silence_seconds else ""

    async def _leave(self) -> None:
        """The farewell was asked for: the call is over when it has been said, or took too long."""
        if self._farewell.over:
            await self._leg.drain(DRAIN)
            self.end(self._leaving)

    async def _speak(self, session: Session, tasks: asyncio.TaskGroup) -> None:
        downsample = Downsampler()
        async for output in session.outputs():
            match output:
                case AgentFrame():
                    await self._play(output, downsample(output.pcm))
                    if self._consent is not None and self._consent.handed_over(self.counters.frames_out):
                        self._start(tasks, self._hear_out(self._consent))
                case AgentText() | CallerText():
                    self._note(output)
                case Flush():
                    self._note(output)
                    self._event("flush", heard=round((output.index + 1) * FRAME_SECONDS, 2))
                    await self._leg.flush()
                    # What the filter still holds of the word that was cut would be heard as a click.
                    downsample = Downsampler()
                case Late():
                    self.counters.agent_frames_late += 1
                case WorkerChanged():
                    self._changed_worker(output)
                case Done():
                    await self._finish(output)
                    return

    def _changed_worker(self, change: WorkerChanged) -> None:
        self.worker_changes.append(change)
        self._event("worker", worker=change.worker, reason=change.reason, missed=change.missed)
        what = f"{change.reason}; worker {change.worker} goes on after a gap of {change.missed * FRAME_SECONDS:.2f} s"
        log.warning("call %s: %s", self.info.call_id, what)

    async def _play(self, frame: AgentFrame, pcm: bytes) -> None:
        left_out = await self._leg.play(pcm)
        self.counters.frames_out += 1
        caller = self._unanswered.popleft() if self._unanswered else SILENCE
        if self._recording is not None:
            self._recording.write(caller, pcm)
        self._remembers |= bool(frame.tokens)
        if self._remembers and not frame.tokens:
            self.transcript.lost(frame.index)
            if self._consent is not None:
                self._consent.lost(frame.index)
        if self._consent is not None:
            for before in left_out:
                self._consent.left_out(frame.index - before)
        played, loudness = self._clock.now(), level(pcm)
        self.responses.agent(played - self._clock.first_tick, FRAME_SECONDS, loudness)
        self._farewell.played(loudness, column=bool(frame.tokens))
        if self.answer_ms is None and self.responses.first_sound is not None:
            self.answer_ms = round(1000 * (played - self._clock.began), 1)

    async def _hear_out(self, consent: Consent) -> None:
        """The consent line was handed to the phone line, which tells when it has been played."""
        if not await self._leg.drain(DRAIN):
            consent.not_played()
        elif consent.played(self.counters.frames_out):
            self._begin_keeping(consent)

    def _begin_keeping(self, consent: Consent) -> None:
        """The caller knows that the call is recorded: from here on it is."""
        log.info("call %s: the consent line was heard at %.1f s", self.info.call_id, consent.heard_at)
        self._event("consent", heard=True, line=consent.line, at=consent.heard_at)
        if self._recording is not None:
            self._recording.begin()
        for output in consent.released():
            self._tell(self.transcript.add(output))

    def _note(self, output: AgentText | CallerText | Flush) -> None:
        if isinstance(output, AgentText):
            self._farewell.spoke(output.text)
        for kept in [output] if self._consent is None else self._consent.admit(output):
            self._tell(self.transcript.add(kept))

    def _tell(self, changed: list[Utterance]) -> None:
        for utterance in changed:
            if self._log_book is not None:
                self._log_book.utterance(utterance)

    def _event(self, kind: str, **data: Any) -> None:
        """Something happened now that the call's record shall tell; seconds from answer."""
        if self._log_book is not None:
            self._log_book.event(self.seconds, kind, data)

    def _missed(self, late: float) -> None:
        """A tick came late. Such come in bursts: one event tells of all since the last."""
        self.counters.deadline_misses += 1
        at, count = self.seconds, self.counters.deadline_misses
        if not self._misses_told[1] or at - self._misses_told[0] >= MISSES_EVERY:
            self._event("deadlines", missed=count - self._misses_told[1])
            self._misses_told = (at, count)
        if late > STOOD_STILL:
            log.warning("call %s: our clock stood still for %.1f s", self.info.call_id, late)
            self._event("stood_still", seconds=round(late, 1))

    async def _finish(self, done: Done) -> None:
        """The agent said goodbye, or wants the caller connected: let its last words be heard first."""
        self._engine_done = True
        await self._leg.drain(DRAIN)
        if done.reason == "goodbye":
            self.end("agent_goodbye")
            return
        number = self.plan.transfers.get(done.target, "")
        if not number:
            persona = self.plan.persona
            log.error("call %s: persona %s has no transfer target %r", self.info.call_id, persona, done.target)
            self.end("failed")
            return
        self._event("transfer", target=done.target, number=number)
        await self._leg.transfer(number)
        self.end("transfer", number)
