"""The deliveries to one endpoint: claim what is due, attempt it, store what came of it.

Owns the rhythm. Each round is one short transaction that stores the outcomes of the last attempts and
claims the next deliveries; attempts run beside it, no more at once than the endpoint allows. A database
that is away keeps outcomes waiting here; should we die with them, their claims run out and they are
delivered again under their ids. A row that the database cannot read or store becomes a dead letter by
itself; whatever else goes wrong there is tried again, less and less often.
"""

from __future__ import annotations

import asyncio
import logging
import math
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gateway.records.database import Database, DatabaseUnavailable
from gateway.webhooks import queue
from gateway.webhooks.delivery import GONE, Answer, Sender
from gateway.webhooks.endpoints import Endpoint

log = logging.getLogger(__name__)

LEASE = 45.0
"""Seconds a claim holds; longer than any attempt takes. Those of a dead gateway are given up before that."""
POLL = 1.0
"""Seconds after which we look whether another process stored something."""
LAST_SECONDS = 2.0
"""Seconds that storing the last outcomes may take when we stop."""
DATABASE_AGAIN = 2.0
"""Seconds until a database that was away is tried again."""
SLOWEST_AGAIN = 60.0
"""Seconds up to which that doubles while the database answers with errors that we do not know."""

_UNREADABLE = (LookupError, TypeError, AttributeError)
"""What comes of a stored event that is not what we store."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where time and chance come from."""

    clock: Callable[[], float]
    chance: Callable[[], float]
    delay: Callable[[int, float, float], float]
    """As `retry.next_delay`."""

    def outcome(self, claim: queue.Claim, answer: Answer) -> queue.Outcome:
        """What an answer makes of a delivery: delivered, due again, or given up."""
        now = self.clock()
        if answer.taken:
            return queue.Outcome(claim, queue.DELIVERED, answer.status, answer.reason, now)
        if now >= claim.give_up_at or answer.status == GONE:
            return queue.Outcome(claim, queue.DEAD, answer.status, answer.reason, now)
        due = now + self.delay(claim.attempts + 1, self.chance(), answer.retry_after)
        return queue.Outcome(claim, queue.WAITING, answer.status, answer.reason, min(due, claim.give_up_at))


class Lane:
    """Delivers to `endpoint` until cancelled, or until the endpoint says that it is gone (410)."""

    def __init__(
        self,
        endpoint: Endpoint,
        database: Database,
        worker: str,
        turns: asyncio.Semaphore,
        context: ssl.SSLContext,
        schedule: Schedule,
        fault: Callable[[str], None] = lambda endpoint: None,
    ) -> None:
        """`fault` is called with the endpoint's name whenever something fails that never should."""
        self.endpoint = endpoint
        self._database = database
        self._worker = worker
        self._turns = turns
        self._schedule = schedule
        self._fault = fault
        self._sender = Sender(endpoint, context, schedule.clock)
        self._under_way: set[str] = set()
        self._outcomes: list[queue.Outcome] = []
        self._soonest = math.inf
        """When the first of those just refused is due again."""
        self._woken = asyncio.Event()
        self._away = False
        self._faults = 0
        """Rounds that failed one after the other."""

    def wake(self) -> None:
        """Something may be due."""
        self._woken.set()

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as attempts:
                gone = False
                while not gone:
                    self._woken.clear()
                    wait, gone = await self._round(attempts)
                    if not gone:
                        # What comes in meanwhile does not make an error that we do not know go away.
                        await (asyncio.sleep(wait) if self._faults else self._pause(wait))
        finally:
            await self._sender.close()
            await self._store_rest()

    async def _store_rest(self) -> None:
        """What was settled in the last moment, so that it need not be delivered twice."""
        if self._outcomes:
            with suppress(TimeoutError, DatabaseUnavailable, *queue.FAULTS):
                async with asyncio.timeout(LAST_SECONDS):
                    await self._exchange(claiming=False)

    async def _pause(self, seconds: float) -> None:
        """Wait until something happens, or for so long.

        A bare wait that a timer ends: in Python 3.11 asyncio.wait_for loses a cancellation that comes
        together with its result, and then nothing could stop the lane.
        """
        timer = asyncio.get_running_loop().call_later(seconds, self._woken.set)
        try:
            await self._woken.wait()
        finally:
            timer.cancel()

    async def _round(self, attempts: asyncio.TaskGroup) -> tuple[float, bool]:
        """Store outcomes and claim; returns the seconds until the next round, and whether the endpoint is gone."""
        try:
            async with self._turns:
                now = self._schedule.clock()
                due = now if self._outcomes else await self._next_due()
                if due is None or due > now:
                    self._away, self._faults = False, 0
                    return POLL if due is None else min(POLL, due - now), False
                claims, gone = await self._claims()
        except DatabaseUnavailable as error:
            if not self._away:
                log.error("webhooks of endpoint %s wait: %s", self.endpoint.name, error)
            self._away = True
            return DATABASE_AGAIN, False
        except queue.FAULTS as error:
            return self._failed(error), False
        self._away, self._faults = False, 0
        for claim in claims:
            self._under_way.add(claim.id)
            attempts.create_task(self._attempt(claim))
        return max(0.0, min(POLL, self._soonest - self._schedule.clock())), gone

    def _failed(self, error: Exception) -> float:
        """Tell of a round that failed; returns the seconds until the next."""
        wait = min(DATABASE_AGAIN * float(1 << min(self._faults, 10)), SLOWEST_AGAIN)
        self._faults += 1
        self._fault(self.endpoint.name)
        tell = (self.endpoint.name, wait, first_line(error))
        log.error("webhooks of endpoint %s are tried again in %.0f s, for a statement of ours failed: %s", *tell)
        return wait

    async def _claims(self) -> tuple[list[queue.Claim], bool]:
        """What to attempt now, and whether the endpoint is gone; past rows that are at fault."""
        try:
            return await self._exchange()
        except queue.FAULTS:
            return await self._one_by_one(), False

    async def _one_by_one(self) -> list[queue.Claim]:
        """Store each outcome and claim each delivery by itself, and give up those that cannot be."""
        name, now, cap = self.endpoint.name, self._schedule.clock(), self.endpoint.concurrency
        for outcome in [one for one in self._outcomes if one.status != GONE]:
            try:
                async with self._database.begin() as connection:
                    await queue.settle(connection, self._worker, [outcome], now)
            except queue.FAULTS as error:
                await self._give_up(outcome.claim.id, f"what came of it cannot be stored: {first_line(error)}")
            self._outcomes.remove(outcome)
        async with self._database.read() as connection:
            ids = await queue.ready(connection, name, now, cap - len(self._under_way))
        claims: list[queue.Claim] = []
        for one in ids:
            try:
                async with self._database.begin() as connection:
                    claims += await queue.claim(connection, name, self._worker, now, now + LEASE, 1, cap, one)
            except queue.FAULTS as error:
                await self._give_up(one, f"it cannot be read from the database: {first_line(error)}")
        return [claim for claim in claims if claim.id not in self._under_way]

    async def _give_up(self, delivery: str, why: str) -> None:
        """Make a dead letter of one that holds up the others."""
        async with self._database.begin() as connection:
            await queue.give_up(connection, delivery, why, self._schedule.clock())
        self._fault(self.endpoint.name)
        log.error("webhook %s to %s is given up, the others go on: %s", delivery, self.endpoint.name, why)

    async def _next_due(self) -> float | None:
        if len(self._under_way) >= self.endpoint.concurrency:
            return None
        async with self._database.read() as connection:
            return await queue.next_due(connection, self.endpoint.name)

    async def _exchange(self, claiming: bool = True) -> tuple[list[queue.Claim], bool]:
        """One transaction. If it fails, the outcomes are kept for the next."""
        name, now, outcomes = self.endpoint.name, self._schedule.clock(), list(self._outcomes)
        gone = next((one for one in outcomes if one.status == GONE), None)
        claims: list[queue.Claim] = []
        async with self._database.begin() as connection:
            await queue.settle(connection, self._worker, outcomes, now)
            most = self.endpoint.concurrency - len(self._under_way)
            if gone is not None:
                reason = f"the endpoint is disabled: {gone.reason}"
                await queue.disable(connection, name, self.endpoint.url, reason, now)
                await queue.bury(connection, name, reason, now)
            elif claiming and most > 0:
                cap = self.endpoint.concurrency
                claims = await queue.claim(connection, name, self._worker, now, now + LEASE, most, cap)
        del self._outcomes[: len(outcomes)]
        # A claim of our own can run out under us, when this process stood still: it is still ours to finish.
        ours = self._under_way | {outcome.claim.id for outcome in self._outcomes}
        self._soonest = min((one.due for one in outcomes if one.state == queue.WAITING), default=math.inf)
        if gone is not None:
            log.error("endpoint %s is disabled: %s; to go on: callplex webhooks enable %s", name, gone.reason, name)
        return [claim for claim in claims if claim.id not in ours], gone is not None

    async def _attempt(self, claim: queue.Claim) -> None:
        try:
            answer = await self._sender.attempt(claim.id, claim.body)
            outcome = self._schedule.outcome(claim, answer)
        except _UNREADABLE as error:
            self._fault(self.endpoint.name)
            answer = Answer(0, f"the stored event cannot be read ({type(error).__name__})")
            outcome = queue.Outcome(claim, queue.DEAD, 0, answer.reason, self._schedule.clock())
        self._under_way.discard(claim.id)
        self._outcomes.append(outcome)
        self._woken.set()
        if outcome.state == queue.DELIVERED:
            return
        tell = (claim.id, self.endpoint.name, claim.attempts + 1, answer.reason)
        if outcome.state == queue.DEAD:
            log.error("webhook %s to %s: attempt %d: %s; given up, it can be sent again", *tell)
        else:
            log.warning("webhook %s to %s: attempt %d: %s; next in %.0f s", *tell, outcome.due - self._schedule.clock())


def first_line(error: Exception) -> str:
    """What the driver said, without the statement that SQLAlchemy adds."""
    return (str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__])[0][:200]
