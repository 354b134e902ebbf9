"""The desk: who is on the phone now, who answers a number, and what is kept of a call once it is over.

Owns the life of the gateway's parts (personas, routing, engine, records, outbox) and ties them to each
call. Knows no carrier and no web framework: the routes ask it, `call.Call` does the talking.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

from gateway.call import Call
from gateway.call_document import CallMetrics, CallRecord, to_document
from gateway.call_log import CallLog
from gateway.call_plan import CallPlan
from gateway.engine import EchoEngine, Engine
from gateway.leg import CallInfo, CallLeg, Outcome
from gateway.live import LiveFeed
from gateway.personas import Persona, PersonaStore, consent_line, redaction_rules, session_request
from gateway.pool import WorkerPool
from gateway.recording.recorder import Recorder, RecordingPlan
from gateway.recording.store import configured_store
from gateway.records.archive import Archive
from gateway.records.database import Database, configured_url
from gateway.records.files import CallFolder, Records, RecordsError
from gateway.records.instances import new_name
from gateway.records.policies import Keep
from gateway.records.portion import CallEnd
from gateway.records.sound import Sound
from gateway.resuming_pool import ResumingPool
from gateway.routing import Route
from gateway.settings import Settings
from gateway.telemetry import Telemetry
from gateway.transcript import Utterance
from gateway.twilio.tokens import Tokens
from gateway.webhooks.endpoints import EndpointStore
from gateway.webhooks.file_outbox import take_over
from gateway.webhooks.lookup import CallerLookup
from gateway.webhooks.outbox import Outbox, delivering

log = logging.getLogger(__name__)

OUTCOMES_KEPT = 10_000
OUTCOME_WAIT = 3.0
"""Seconds a carrier that asks how a call ended waits for a call that is just ending."""


class Desk:
    """Answers calls. Raises PersonaInvalid, WebhookInvalid or BucketError at construction when those cannot be used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.personas = PersonaStore(settings.personas)
        self.records = Records(settings.data_dir)
        self.recordings = configured_store(settings)
        self.telemetry = Telemetry()
        sound = Sound(self.recordings, settings.data_keys, self.records.place)
        self.archive = Archive(settings, self.records, self.telemetry, sound)
        self.archive.policies = lambda: {one.id: _keep(one) for one in self.personas.personas.values()}
        self.live = LiveFeed()
        self._pool = None if settings.embedded_echo else WorkerPool(settings)
        echo = EchoEngine(settings.embedded_echo_words)
        self._engine: Engine = ResumingPool(self._pool, settings.resume_within) if self._pool is not None else echo
        self._endpoints = EndpointStore(settings)
        self._lookup = CallerLookup(self._endpoints)
        self._calls: set[Call] = set()
        self._finished = asyncio.Event()
        self._outcomes: OrderedDict[str, asyncio.Future[Outcome]] = OrderedDict()
        self._draining = False

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Worker and webhook delivery run inside; on leaving, calls are ended and filed first."""
        async with Database.open(configured_url(self.settings)) as database, asyncio.TaskGroup() as tasks:
            await take_over(database, self.settings.data_dir / "outbox", time.time())
            name = new_name()
            outbox = Outbox(database, self._endpoints, name, fault=self.telemetry.delivery_fault)
            moving = tasks.create_task(self._move_recordings())
            try:
                async with delivering(outbox), self.archive.open(database, name, outbox.put, outbox.wake):
                    try:
                        if self._pool is not None:
                            await self._pool.start()
                        yield
                        await self._end_calls()
                    finally:
                        if self._pool is not None:
                            await self._pool.stop()
            finally:
                # A watcher that stays would hold up the listeners' end.
                self.live.close()
                await self._lookup.close()
                moving.cancel()

    async def _move_recordings(self) -> None:
        """Only once what was deleted while we were away is gone, or the bucket would get it."""
        await self.archive.cleared.wait()
        await self.recordings.run()

    def ready(self) -> bool:
        """Whether a call that comes now would be answered by an agent."""
        return not self.refusal()

    def refusal(self) -> Literal["", "busy", "unavailable"]:
        """Why a call that comes now would not be answered: all lines are taken, or no agent can be reached."""
        if why := self._full():
            return "busy" if why == "busy" else "unavailable"
        if self._pool is None or self._pool.ready:
            return ""
        return "busy" if self._pool.reachable else "unavailable"

    def turned_away(self, why: Literal["busy", "closed"]) -> None:
        """Count a call that was not taken for want of an agent, a line or a port, or as its number is closed now."""
        label = why if why == "closed" else self._full() or why
        self.telemetry.refused.labels(label).inc()

    @property
    def tokens(self) -> Tokens:
        """Where media streams get, and show, their one-time tokens."""
        return self.archive.tokens

    @property
    def active_calls(self) -> int:
        return len(self._calls)

    def route(self, number: str) -> Route:
        """Who answers the number now."""
        return self.personas.routing.route(number, datetime.now(UTC))

    async def answer(self, leg: CallLeg, persona: str) -> None:
        """Run the whole call; returns when it is over, filed, and its webhook is on its way.

        One that cannot be taken any more is let go at once: `ready` was asked before its line was open.
        """
        who = self.personas.personas.get(persona)
        if who is None:
            # The line was offered to it, and then its file was deleted or renamed.
            await self._refuse(leg, self.route(leg.info.to_number).fallback, "persona_gone", persona)
            return
        known: Mapping[str, str] = {}
        if not self._full():
            known = await self._lookup.variables(leg.info.call_id, who, leg.info.from_number, leg.info.to_number)
        # Asked after the wait: from here to where the call is counted nothing else runs.
        if why := self._full():
            await self._refuse(leg, who.fallback or "", why)
            return
        plan = self._plan(who, leg.info, known)
        folder = self._folder(leg.info)
        recording = Recorder(self._recording_plan(who, folder)) if folder is not None and who.record else None
        name = self.recordings.name(recording.plan.path) if recording is not None else ""
        log_book = CallLog(leg.info.call_id, self.live, redaction_rules(who), recording, name)
        call = Call(leg, self._engine, plan, recording, log_book)
        # Not the call itself, which holds its log book.
        log_book.now = call.counters.seconds
        started_at = datetime.now(UTC)
        self._remember(leg.info, call.outcome)
        self._calls.add(call)
        self.telemetry.active.set(len(self._calls))
        log.info("call %s: %s called %s, %s answers", call.info.call_id, *_numbers(leg.info), persona)
        try:
            begun = name if recording is not None and recording.begun else ""
            log_book.journal = self.archive.begin(leg.info, persona, plan.persona_version, plan.fallback, begun)
            await self.archive.known(log_book.journal)
            if leg.info.unreached:
                log_book.event(0.0, "transfer_failed", {"tried": leg.info.unreached})
            await call.run()
        finally:
            if not call.outcome.done():
                await call.abandon()
            kept = name if recording is not None and recording.kept else ""
            if kept:
                self.recordings.ended(kept)
            try:
                await self._file(call, log_book, started_at, kept)
            finally:
                self._calls.discard(call)
                self._finished.set()
                self.telemetry.active.set(len(self._calls))

    def _full(self) -> str:
        """Why we take no more calls: `draining` or `busy`; empty while we do."""
        if self._draining:
            return "draining"
        # One that has ended and is still heard out holds no line.
        on_line = sum(not call.outcome.done() for call in self._calls)
        return "busy" if on_line >= self.settings.max_calls else ""

    async def _refuse(self, leg: CallLeg, fallback: str, why: str, persona: str = "") -> None:
        """Let the line go so that the carrier asks what comes next, and is told the fallback."""
        outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        outcome.set_result(Outcome("shutdown" if why == "draining" else "busy", fallback=fallback))
        self._remember(leg.info, outcome)
        self.telemetry.refused.labels(why).inc()
        said = f"there is no persona {persona} any more; {fallback or 'nobody'} is dialled instead" if persona else why
        log.warning("call %s is not taken: %s", leg.info.call_id, said)
        # Not "shutdown", after which a line may be ended for good: nobody would be dialled.
        await leg.hangup("busy")

    async def outcome(self, carrier_call_id: str) -> Outcome | None:
        """How a call ended; waits briefly for one that is just ending. None: never heard of it."""
        ending = self._outcomes.get(carrier_call_id)
        if ending is None:
            return await self.archive.outcome(carrier_call_id)
        await asyncio.wait([ending], timeout=OUTCOME_WAIT)
        return ending.result() if ending.done() else None

    def _plan(self, persona: Persona, info: CallInfo, known: Mapping[str, str]) -> CallPlan:
        variables = {**info.parameters, **known, "caller_number": info.from_number}
        seed = secrets.randbits(32)
        return CallPlan(
            persona=persona.id,
            persona_version=persona.version,
            request=session_request(persona, info.call_id, variables, seed, came_back=bool(info.unreached)),
            transfers=dict(persona.transfers),
            fallback=persona.fallback or "",
            consent=consent_line(persona, variables),
            masks_keypad=persona.keypad == "masked",
            max_seconds=persona.limits.max_seconds,
            max_silence_seconds=persona.limits.max_silence,
        )

    def _recording_plan(self, persona: Persona, folder: CallFolder) -> RecordingPlan:
        keys = self.settings.data_keys
        return RecordingPlan(
            folder.path,
            persona.recording.format,
            key=keys[0] if keys else None,
            held=bool(redaction_rules(persona)),
            after_consent=bool(persona.recording.consent),
        )

    def _folder(self, info: CallInfo) -> CallFolder | None:
        """Where the call's files will lie; nothing is made yet, for that waits for the disk."""
        try:
            return self.records.folder(info.call_id)
        except RecordsError as error:
            log.error("call %s: %s", info.call_id, error)
            return None

    def _remember(self, info: CallInfo, outcome: asyncio.Future[Outcome]) -> None:
        carrier_call_id = info.carrier_call_id or info.call_id
        self._outcomes[carrier_call_id] = outcome
        self._outcomes.move_to_end(carrier_call_id)
        while len(self._outcomes) > OUTCOMES_KEPT:
            self._outcomes.popitem(last=False)

    async def _file(self, call: Call, log_book: CallLog, started_at: datetime, recording: str) -> None:
        record = _record(call, log_book.utterances(), started_at)
        self.telemetry.call_ended(record.end_reason, record.engine, record.metrics, call.worker_changes)
        document = to_document(record)
        log.info("call %s: ended, %s", record.call_id, record.end_reason)
        try:
            await self.records.finish(document)
        except RecordsError as error:
            log.error("call %s: %s", record.call_id, error)
        target = call.outcome.result().target if call.outcome.done() else ""
        ended_at = record.ended_at.timestamp()
        end = CallEnd(ended_at, record.end_reason, document, record.utterances, target, record.engine, recording)
        await self.archive.finish(log_book.journal, end)

    async def _end_calls(self) -> None:
        """Calls that are on the line when the gateway stops are ended and filed, not dropped."""
        self._draining = True
        while self._calls:
            for call in self._calls:
                call.end("shutdown")
            self._finished.clear()
            await self._finished.wait()


def _keep(persona: Persona) -> Keep:
    days = persona.retention
    return Keep(text_days=days.text_days, record_days=days.record_days, audio_days=days.audio_days)


def _numbers(info: CallInfo) -> tuple[str, str]:
    return info.from_number or "somebody", info.to_number or "us"


def _record(call: Call, redacted: list[Utterance] | None, started_at: datetime) -> CallRecord:
    counters = call.counters
    return CallRecord(
        call_id=call.info.call_id,
        persona=call.plan.persona,
        persona_version=call.plan.persona_version,
        engine=call.engine_name,
        from_number=call.info.from_number,
        to_number=call.info.to_number,
        started_at=started_at,
        ended_at=datetime.now(UTC),
        end_reason=call.outcome.result().reason if call.outcome.done() else "failed",
        utterances=call.transcript.utterances() if redacted is None else redacted,
        metrics=CallMetrics(
            answer_ms=call.answer_ms or 0.0,
            response_ms=call.responses.responses,
            frames_in=counters.frames_in,
            frames_out=counters.frames_out,
            frames_lost=counters.frames_lost,
            agent_frames_lost=counters.agent_frames_lost,
            agent_frames_late=counters.agent_frames_late,
            deadline_misses=counters.deadline_misses,
            caller_unheard_after=counters.caller_unheard_after,
        ),
    )
