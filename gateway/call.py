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
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field

from gateway.audio import SILENCE, Downsampler, JitterBuffer, Upsampler, level
from gateway.engine import Engine, EngineError, EngineFull, EngineLost, Session
from gateway.latency import ResponseMeter
from gateway.leg import CallLeg, LegError, Outcome
from gateway.recording import Recording
from gateway.transcript import Transcript, Utterance
from model.wire import FRAME_SECONDS, AgentFrame, AgentText, CallerText, Done, Flush, SessionRequest

log = logging.getLogger(__name__)

FIRST_FRAME_WAIT = 0.2
"""Seconds the clock waits for the line's first sound; a line that stays silent gets its agent all the same."""
FIRST_TICK = 0.11
"""From the first 20 ms frame to the first tick: three more frames, 40 ms against jitter, and half a
frame so that the carrier's clock and ours do not race for the same instant."""
LATE_TICK = 0.02
"""A tick later than this is counted as a missed deadline."""
LAST_WORDS = 6.0
"""Seconds the agent has to take its leave when the call has reached its limit."""
DRAIN = 3.0
"""Seconds to wait at most for the line to play the agent's last words."""

UNSERVED = frozenset({"busy", "worker_lost", "failed"})
"""End reasons after which the caller is offered the persona's fallback."""


@dataclass(frozen=True, slots=True)
class CallPlan:
    """What is decided before a call: who answers, and within which limits."""

    persona: str
    persona_version: str
    request: SessionRequest
    transfers: Mapping[str, str] = field(default_factory=dict)
    """The only numbers a call may be transferred to, by the names the agent uses."""
    fallback: str = ""
    max_seconds: float = 900.0
    max_silence_seconds: float = 60.0
    """When neither side said a word for this long, the call is over."""
    no_media_seconds: float = 10.0
    engine_silence_seconds: float = 2.0
    """An engine that owes this much sound is lost."""
    farewell: str = "I am sorry, I have to end the call here. Goodbye."
    """Said before a call that reached one of its limits is ended."""


@dataclass(slots=True)
class CallCounters:
    """What a call's frames came to; frames of 80 ms unless said otherwise."""

    frames_in: int = 0
    """Caller frames sent to the engine."""
    frames_out: int = 0
    """Agent frames played."""
    frames_lost: int = 0
    """20 ms carrier frames that never came, came too late, or were dropped to catch up."""
    deadline_misses: int = 0


class Call:
    """Runs one call. `outcome` is set before the line is let go, so that a carrier can ask at once."""

    def __init__(
        self,
        leg: CallLeg,
        engine: Engine,
        plan: CallPlan,
        recording: Recording | None = None,
        on_utterance: Callable[[Utterance], None] | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.info = leg.info
        self.plan = plan
        self.transcript = Transcript(FRAME_SECONDS)
        self.counters = CallCounters()
        self.responses = ResponseMeter()
        self.engine_name = ""
        self.answer_ms: float | None = None
        self.outcome: asyncio.Future[Outcome] = loop.create_future()
        self._leg = leg
        self._engine = engine
        self._recording = recording
        self._on_utterance = on_utterance
        self._now = loop.time
        self._began = self._now()
        self._first_tick = self._began
        self._last_media = self._began
        self._jitter = JitterBuffer()
        self._answered = asyncio.Event()
        self._unanswered: deque[bytes] = deque(maxlen=100)
        self._over = asyncio.Event()
        self._reason = ""
        self._target = ""
        self._leaving = False
        self._silence_began = 0.0

    async def run(self) -> str:
        """Bridge until the call ends, clean up whatever happened, and return the end reason."""
        session: Session | None = None
        try:
            session = await self._engine.open(self.plan.request)
            self.engine_name = session.engine
            async with asyncio.TaskGroup() as tasks:
                for work in (self._listen(), self._keep_time(session), self._speak(session)):
                    tasks.create_task(self._until_over(work))
                await self._over.wait()
                # The group waits for its tasks; what is over must not wait for the other side.
                raise _Over
        except* _Over:
            pass
        except* EngineFull as full:
            self._refused("busy", full)
        except* EngineError as lost:
            self._refused("worker_lost", lost)
        except* Exception:
            log.exception("call %s failed", self.info.call_id)
            self.end("failed")
        finally:
            await self._clean_up(session)
        return self._reason

    def end(self, reason: str, target: str = "") -> None:
        """The call is over; the first reason given stands."""
        if not self._over.is_set():
            self._reason, self._target = reason, target
            self._over.set()

    async def _until_over(self, work: Coroutine[None, None, None]) -> None:
        """One of the call's tasks: the two peers' faults are reasons to end, anything else is our bug."""
        try:
            await work
        except EngineLost as error:
            log.warning("call %s: %s", self.info.call_id, error)
            self.end("worker_lost")
        except LegError as error:
            log.warning("call %s: %s", self.info.call_id, error)
            self.end("protocol_error")

    def _refused(self, reason: str, group: BaseExceptionGroup[EngineError]) -> None:
        log.warning("call %s: %s", self.info.call_id, group.exceptions[0])
        self.end(reason)

    async def _clean_up(self, session: Session | None) -> None:
        """Runs on every way out, a cancelled call's too: free the slot, tell the carrier, close the file."""
        self.end("shutdown")
        reason = self._reason
        self.counters.frames_lost = self._jitter.missing + self._jitter.dropped
        fallback = self.plan.fallback if reason in UNSERVED else ""
        if not self.outcome.done():
            self.outcome.set_result(Outcome(reason, self._target, fallback))
        if session is not None:
            await session.close()
        if self._recording is not None:
            while self._unanswered:
                self._recording.write(self._unanswered.popleft(), SILENCE)
            await asyncio.wrap_future(self._recording.close())
        await self._leg.hangup(reason)

    async def _listen(self) -> None:
        await self._leg.listen(self._hear)
        self.end("caller_hangup")

    def _hear(self, frame: bytes) -> None:
        self._last_media = self._now()
        self._jitter.push(frame)
        if not self._answered.is_set():
            self._answered.set()

    async def _keep_time(self, session: Session) -> None:
        """The call's clock. A late tick is followed by an early one: no tick is ever skipped."""
        try:
            await asyncio.wait_for(self._answered.wait(), FIRST_FRAME_WAIT)
        except TimeoutError:
            log.info("call %s: no sound from the line yet", self.info.call_id)
        upsample = Upsampler()
        self._first_tick = self._now() + FIRST_TICK
        while True:
            tick = self.counters.frames_in
            wait = self._first_tick + tick * FRAME_SECONDS - self._now()
            if wait > 0:
                await asyncio.sleep(wait)
            elif wait < -LATE_TICK:
                self.counters.deadline_misses += 1
            pcm = self._jitter.pop()
            self._unanswered.append(pcm)
            self.responses.caller(tick * FRAME_SECONDS, FRAME_SECONDS, level(pcm))
            await session.send(upsample(pcm))
            self.counters.frames_in += 1
            self._check_peers()
            if not self._leaving:
                await self._check_limits(session, tick * FRAME_SECONDS)

    def _check_peers(self) -> None:
        """Whether the worker still answers and the line still sends."""
        owed = (self.counters.frames_in - self.counters.frames_out) * FRAME_SECONDS
        if owed > self.plan.engine_silence_seconds:
            raise EngineLost(f"the worker has not answered for {owed:.1f} s")
        if self._leg.on_hold:
            self._last_media = self._now()
        if self._now() - self._last_media > self.plan.no_media_seconds:
            log.warning("call %s: no sound from the line for %g s", self.info.call_id, self.plan.no_media_seconds)
            self.end("no_media")

    async def _check_limits(self, session: Session, at: float) -> None:
        """End the call politely when it has lasted too long, or nobody speaks any more."""
        if self._leg.on_hold:
            self._silence_began = at
        silent = at - max(self._silence_began, self.responses.last_speech)
        if at >= self.plan.max_seconds:
            reason = "time_limit"
        elif silent >= self.plan.max_silence_seconds:
            reason = "silence"
        else:
            return
        log.info("call %s: ending it at %.0f s, %s", self.info.call_id, at, reason)
        self._leaving = True
        await session.say(self.plan.farewell)
        asyncio.get_running_loop().call_later(LAST_WORDS, self.end, reason)

    async def _speak(self, session: Session) -> None:
        downsample = Downsampler()
        async for output in session.outputs():
            match output:
                case AgentFrame():
                    await self._play(output.index, downsample(output.pcm))
                case AgentText() | CallerText():
                    self._note(output)
                case Flush():
                    self._note(output)
                    await self._leg.flush()
                case Done():
                    await self._finish(output)
                    return

    async def _play(self, index: int, pcm: bytes) -> None:
        await self._leg.play(pcm)
        self.counters.frames_out += 1
        caller = self._unanswered.popleft() if self._unanswered else SILENCE
        if self._recording is not None:
            self._recording.write(caller, pcm)
        played = self._now()
        self.responses.agent(played - self._first_tick, FRAME_SECONDS, level(pcm))
        if self.answer_ms is None and self.responses.first_sound is not None:
            self.answer_ms = round(1000 * (played - self._began), 1)

    def _note(self, output: AgentText | CallerText | Flush) -> None:
        for utterance in self.transcript.add(output):
            if self._on_utterance is not None:
                self._on_utterance(utterance)

    async def _finish(self, done: Done) -> None:
        """The agent said goodbye, or wants the caller connected: let its last words be heard first."""
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
        await self._leg.transfer(number)
        self.end("transfer", number)


class _Over(Exception):
    """The call has its end reason."""
