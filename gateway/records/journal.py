"""What live calls write into the database as they run, without a call ever waiting for it.

A call hands over what is new (`CallJournal`); one writer takes what all calls have, about every second,
and stores it in one transaction. A call's beginning and end are stored at once, the end together with
the deliveries that tell of it. When the database cannot be written the calls go on: what they say is
kept, bounded, and stored later. Of a call that begins meanwhile there is a note on the disk before it is
answered, and one that ends becomes a file (`unfiled.py`): no crash makes either unheard of.

Knows no queries, and of a call only what it is handed. Not to be shared between threads.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.calls import row_of
from gateway.records.database import Database, DatabaseUnavailable
from gateway.records.portion import (
    CallEnd,
    CallEvent,
    CallStart,
    Portion,
    clean_end,
    clean_start,
    clean_utterance,
    plain,
)
from gateway.records.storing import store
from gateway.records.unfiled import Unfiled
from gateway.transcript import Utterance
from gateway.webhooks.events import Event

log = logging.getLogger(__name__)

WRITE_EVERY = 0.7
"""Seconds; a crash loses at most what was said since."""
SLOWEST = 10.0
"""Seconds between two attempts at a database that does not answer."""
BEGIN_WAIT = 1.0
"""Seconds a call waits at most until the database knows of it, before it is noted on the disk and answered."""
END_WAIT = 15.0
EVENTS_KEPT = 2_000
"""Events of one call that wait for the database at most; then the oldest go."""
ENDED_KEPT = 2_000
"""Ended calls that wait in memory at most, when neither the database nor the disk takes them."""
FILED_AT_ONCE = 20

UNSTORABLE = (SQLAlchemyError, TypeError, ValueError)
"""What comes of rows that are wrong in themselves; trying again would not help."""

Put = Callable[[AsyncConnection, Sequence[Event]], Awaitable[None]]
"""Stores deliveries of the events inside the caller's transaction."""


class CallJournal:
    """One live call's way into the database. Its methods never wait and never fail."""

    def __init__(self, start: CallStart, wake: Callable[[], None]) -> None:
        self.start = clean_start(start)
        self.stored = asyncio.Event()
        """Set when the call's beginning is in the database."""
        self.ended = asyncio.Event()
        """Set when its end is, or lies in a file."""
        self._wake = wake
        self._said: dict[int, Utterance] = {}
        self._events: deque[CallEvent] = deque(maxlen=EVENTS_KEPT)
        self._numbers = 0
        self._updates = 0
        self._recording = ""
        self._end: CallEnd | None = None

    def utterance(self, one: Utterance) -> None:
        """Something was said, or is being said: replaces what was kept under its number."""
        self._said[one.number] = clean_utterance(one)

    def event(self, at: float, kind: str, data: Mapping[str, Any] | None = None) -> None:
        """Something happened `at` seconds from answer."""
        self._numbers += 1
        self._events.append(CallEvent(self._numbers, at, kind, plain(data or {})))

    def recorded(self, name: str) -> None:
        """Recording begins only now; `name`: what the store calls it."""
        self._recording = name

    def end(self, end: CallEnd) -> None:
        """The call is over; nothing follows."""
        self._end = clean_end(end)
        self._wake()

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    def take(self) -> Portion | None:
        """All that is new, for the writer; None if nothing is."""
        if self.stored.is_set() and not self._said and not self._events and self._end is None and not self._recording:
            return None
        self._updates += bool(self._said)
        update = self._updates if self._said else 0
        portion = Portion(
            start=self.start,
            begins=not self.stored.is_set(),
            utterances=tuple(self._said.values()),
            events=tuple(self._events),
            end=self._end,
            update=update,
            recording=self._recording,
        )
        self._said, self._events, self._recording = {}, deque(maxlen=EVENTS_KEPT), ""
        return portion

    def give_back(self, portion: Portion) -> None:
        """It could not be stored; what is newer stands."""
        self._said = {one.number: one for one in portion.utterances} | self._said
        self._recording = self._recording or portion.recording
        self._events.extendleft(reversed(portion.events[-(EVENTS_KEPT - len(self._events)) :]))


class Journal:
    """All live calls of this gateway.

    `told` is called when deliveries were stored; `alarm` once when writing fails, and with None when it
    works again; `erased` when a call ended here that had been erased before that could be stored.
    """

    def __init__(
        self,
        database: Database,
        instance: str,
        put: Put,
        unfiled: Unfiled,
        told: Callable[[], None] = lambda: None,
        alarm: Callable[[str | None], None] = lambda trouble: None,
        clock: Callable[[], float] = time.time,
        erased: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._instance = instance
        self._put = put
        self._unfiled = unfiled
        self._told = told
        self._alarm = alarm
        self._clock = clock
        self._erased = erased
        self._calls: dict[str, CallJournal] = {}
        self._due = asyncio.Event()
        self._stopping = False
        self._failures = 0
        self._files_waiting = True

    @property
    def away(self) -> bool:
        """Whether the database could not be written the last time."""
        return self._failures > 0

    def begin(self, start: CallStart) -> CallJournal:
        """A call is about to be answered: once it is `known`. Its end must follow in any case."""
        call = CallJournal(start, self._due.set)
        self._calls[start.call_id] = call
        self._due.set()
        return call

    async def known(self, call: CallJournal) -> None:
        """Returns once the database knows of the call, or, where that takes long, once the disk does."""
        if not self.away:
            with suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_WAIT):
                    await call.stored.wait()
        if call.stored.is_set():
            return
        try:
            await asyncio.to_thread(self._unfiled.note, self._instance, Portion(call.start, begins=True))
        except OSError as error:
            unknown = (
                "call %s is answered, and a crash would leave no trace of it: neither database nor disk take it: %s"
            )
            log.error(unknown, call.start.call_id, error.strerror)
        else:
            self._files_waiting = True

    async def finish(self, call: CallJournal, end: CallEnd) -> None:
        """Returns once the call's end and its deliveries are stored; after END_WAIT in any case."""
        call.end(end)
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT):
                await call.ended.wait()

    async def run(self) -> None:
        """Write until `stop`; then once more what is left."""
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(WRITE_EVERY * 2**self._failures, SLOWEST)):
                    await self._due.wait()
            self._due.clear()
            await self.write()
        await self.write()

    def runs(self, call_id: str) -> bool:
        """Whether the call is one of ours that is not over, or whose end is not stored yet."""
        return call_id in self._calls

    def stop(self) -> None:
        """Let `run` return after a last write. A call that cannot be stored then becomes a file."""
        self._stopping = True
        self._due.set()

    async def write(self) -> None:
        """Store what is new, all of it or nothing. Never raises for what a database can do to us."""
        portions = [portion for call in self._calls.values() if (portion := call.take()) is not None]
        if portions and await self._try(portions):
            self._done(portions)
        if not self.away and self._files_waiting:
            try:
                await self._file_later()
            except OSError as error:
                # Not tried every second, nor a reason to stop: they wait for the next outage, or start.
                self._files_waiting = False
                log.error("calls that wait as files cannot be read or removed, and go on waiting: %s", error)

    async def _try(self, portions: Sequence[Portion]) -> bool:
        try:
            await self._store(portions)
        except DatabaseUnavailable as error:
            await self._trouble(str(error), portions)
            return False
        except UNSTORABLE:
            await self._one_by_one(portions)
            return False
        self._well()
        return True

    async def _one_by_one(self, portions: Sequence[Portion]) -> None:
        """One of them is at fault: it is dropped with a line in the log, the others are stored."""
        if len(portions) > 1:
            for portion in portions:
                if await self._try([portion]):
                    self._done([portion])
            return
        portion = portions[0]
        log.exception("call %s: a part of its record cannot be stored and is set aside", portion.start.call_id)
        with suppress(OSError):
            await asyncio.to_thread(self._unfiled.set_aside, portion)
        self._done(portions)

    async def _store(self, portions: Sequence[Portion], instance: str = "") -> None:
        """`instance`: the gateway that answered them, if it is not this one."""
        async with self._database.begin() as connection:
            kept = await store(connection, instance or self._instance, portions)
            news = [event for portion in kept for event in portion.news(self._clock())]
            if news:
                await self._put(connection, news)
        if news:
            self._told()
        if any(portion.end is not None and portion not in kept for portion in portions):
            self._erased()

    def _done(self, portions: Sequence[Portion]) -> None:
        for portion in portions:
            call = self._calls[portion.start.call_id]
            call.stored.set()
            if portion.end is not None:
                self._forget(call)

    def _forget(self, call: CallJournal) -> None:
        del self._calls[call.start.call_id]
        call.ended.set()

    async def _trouble(self, why: str, portions: Sequence[Portion]) -> None:
        self._failures = min(self._failures + 1, 8)
        if self._failures == 1:
            log.error("calls go on, but their records wait: %s", why)
            self._alarm(why)
        for portion in portions:
            call = self._calls[portion.start.call_id]
            call.give_back(portion)
            if portion.end is not None:
                await self._keep(call)
        ended = [call for call in self._calls.values() if call.has_ended]
        for call in ended[:-ENDED_KEPT]:
            log.error("call %s: its record is lost, for neither database nor disk take it", call.start.call_id)
            self._forget(call)

    async def _keep(self, call: CallJournal) -> None:
        """Put an ended call on the disk, so that it needs no memory and survives us."""
        portion = call.take()
        if portion is None:
            return
        try:
            await asyncio.to_thread(self._unfiled.keep, portion)
        except OSError as error:
            log.error("call %s: cannot be kept as a file either: %s", call.start.call_id, error.strerror)
            call.give_back(portion)
            return
        self._files_waiting = True
        self._forget(call)

    def _well(self) -> None:
        if self._failures:
            log.warning("the database can be written again; what waited is stored")
            self._failures = 0
            self._alarm(None)

    async def _file_later(self) -> None:
        """Store calls that had become files: some now, the rest the next times. The ended ones first."""
        self._files_waiting = False
        waiting = await asyncio.to_thread(self._unfiled.read, FILED_AT_ONCE)
        noted = [] if waiting else await asyncio.to_thread(self._unfiled.noted, FILED_AT_ONCE)
        self._files_waiting = self._files_waiting or bool(waiting or noted)
        for portion in waiting:
            if not await self._file(portion):
                return
            await asyncio.to_thread(self._unfiled.drop, portion.start.call_id)
        for instance, portion in noted:
            if not await self._file(portion, instance):
                return
            await asyncio.to_thread(self._unfiled.drop_note, portion.start.call_id)

    async def _file(self, portion: Portion, instance: str = "") -> bool:
        """Store one that waits, if there is anything to store; False if it must go on waiting."""
        try:
            async with self._database.read() as connection:
                row = await row_of(connection, portion.start.call_id)
            # Of a beginning the row is all there is.
            if row is None or portion.end is not None:
                await self._store([portion], instance)
        except DatabaseUnavailable as error:
            await self._trouble(str(error), ())
            return False
        except UNSTORABLE:
            log.exception("call %s: cannot be stored and is set aside", portion.start.call_id)
            await asyncio.to_thread(self._unfiled.set_aside, portion)
        return True
