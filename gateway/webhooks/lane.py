"""The deliveries to one endpoint: claim what is due, attempt it, store what came of it.

Owns the rhythm. Each round is one short transaction that stores the outcomes of the last attempts and
claims the next deliveries; attempts run beside it, no more at once than the endpoint allows. A database
that is away keeps outcomes waiting here; should we die with them, their claims run out and they are
delivered again under their ids.
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
"""Seconds a claim holds; longer than any attempt takes, and short enough that a dead worker is replaced in a minute."""
POLL = 1.0
"""Seconds after which we look whether another process stored something."""
LAST_SECONDS = 2.0
"""Seconds that storing the last outcomes may take when we stop."""
DATABASE_AGAIN = 2.0
"""Seconds until a database that was away is tried again."""


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
    ) -> None:
        self.endpoint = endpoint
        self._database = database
        self._worker = worker
        self._turns = turns
        self._schedule = schedule
        self._sender = Sender(endpoint, context, schedule.clock)
        self._under_way: set[str] = set()
        self._outcomes: list[queue.Outcome] = []
        self._soonest = math.inf
        """When the first of those just refused is due again."""
        self._woken = asyncio.Event()
        self._away = False

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
                        await self._pause(wait)
        finally:
            await self._sender.close()
            await self._store_rest()

    async def _store_rest(self) -> None:
        """What was settled in the last moment, so that it need not be delivered twice."""
        if self._outcomes:
            with suppress(TimeoutError, DatabaseUnavailable):
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
                    return POLL if due is None else min(POLL, due - now), False
                claims, gone = await self._exchange()
        except DatabaseUnavailable as error:
            if not self._away:
                log.error("webhooks of endpoint %s wait: %s", self.endpoint.name, error)
            self._away = True
            return DATABASE_AGAIN, False
        self._away = False
        for claim in claims:
            self._under_way.add(claim.id)
            attempts.create_task(self._attempt(claim))
        return max(0.0, min(POLL, self._soonest - self._schedule.clock())), gone

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
        answer = await self._sender.attempt(claim.id, claim.body)
        self._under_way.discard(claim.id)
        outcome = self._schedule.outcome(claim, answer)
        self._outcomes.append(outcome)
        self._woken.set()
        if outcome.state == queue.DELIVERED:
            return
        tell = (claim.id, self.endpoint.name, claim.attempts + 1, answer.reason)
        if outcome.state == queue.DEAD:
            log.error("webhook %s to %s: attempt %d: %s; given up, it can be sent again", *tell)
        else:
            log.warning("webhook %s to %s: attempt %d: %s; next in %.0f s", *tell, outcome.due - self._schedule.clock())
