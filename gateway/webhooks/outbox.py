"""Events for the operator's endpoints: stored with what they tell of, then posted until they are taken.

`put` writes into the caller's transaction, so that a call's end and its deliveries are stored together
or not at all. `run` delivers, one lane an endpoint, so that a slow or dead one delays no other; any
number of gateways may run it on one database. Delivery is at least once: an event's `webhook-id` at an
endpoint never changes, so that the endpoint can drop a second copy.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.records.database import Database, DatabaseUnavailable
from gateway.webhooks import queue
from gateway.webhooks.endpoints import Endpoint, EndpointStore
from gateway.webhooks.events import Event
from gateway.webhooks.lane import Lane, Schedule, first_line
from gateway.webhooks.retry import next_delay

log = logging.getLogger(__name__)

LOOK_AGAIN = 5.0
"""Seconds between two looks at webhooks.yaml, and at which endpoints are disabled."""
STOP_SECONDS = 3.0
"""Seconds that giving up our claims may take when we stop; without that they run out by themselves."""
DATABASE_TURNS = 2
"""Lanes that use the database at once, so that calls always find a free connection."""


class Outbox:
    """Stores events and delivers them to the endpoints of `store`.

    `worker` names this process in the claims, and no other, nor one before it: the name under which it holds
    its lease (`records.instances`), so that its claims end with that. `put` and `run` share one event loop.
    `clock` (seconds since 1970), `chance` and `delay` are there for tests. `fault` is called with an endpoint's
    name, or none, when something fails that never should.
    """

    def __init__(
        self,
        database: Database,
        store: EndpointStore,
        worker: str,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        delay: Callable[[int, float, float], float] = next_delay,
        fault: Callable[[str], None] = lambda endpoint: None,
    ) -> None:
        self._database = database
        self._store = store
        self._worker = worker
        self._schedule = Schedule(clock, chance, delay)
        self._lanes: dict[str, tuple[Lane, asyncio.Task[None]]] = {}
        self._turns = asyncio.Semaphore(DATABASE_TURNS)
        self._again = asyncio.Event()
        self._fault = fault
        self._away = False

    @property
    def served(self) -> set[str]:
        """The endpoints that are delivered to now."""
        return set(self._lanes)

    async def put(self, connection: AsyncConnection, events: Sequence[Event]) -> None:
        """Store events for all endpoints that want them, in the transaction of `connection`.

        An event that is stored already is not stored again. Call `wake` once the transaction is committed.
        """
        endpoints = self._store.current
        wanted = [(event, name) for event in events for name in endpoints.for_event(event)]
        if not wanted:
            return
        stopped = {name: reason for name, (_, reason) in (await self._disabled(connection)).items()}
        await queue.add(connection, wanted, self._schedule.clock(), stopped)

    def wake(self) -> None:
        """There may be something to deliver now; without it that is found within a second."""
        for lane, _ in self._lanes.values():
            lane.wake()

    def look(self) -> None:
        """Look now whether webhooks.yaml has changed, or endpoints were disabled or enabled."""
        self._again.set()

    async def run(self) -> None:
        """Deliver until cancelled. What is under way then is delivered later, under the same id."""
        context = await asyncio.to_thread(httpx.create_ssl_context, trust_env=False)
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._look(tasks, lambda endpoint: self._lane(endpoint, context))
                    self._again.clear()
                    timer = asyncio.get_running_loop().call_later(LOOK_AGAIN, self._again.set)
                    try:
                        await self._again.wait()
                    finally:
                        timer.cancel()
        finally:
            await self._release()

    def _lane(self, endpoint: Endpoint, context: ssl.SSLContext) -> Lane:
        return Lane(endpoint, self._database, self._worker, self._turns, context, self._schedule, self._fault)

    async def _look(self, tasks: asyncio.TaskGroup, make: Callable[[Endpoint], Lane]) -> None:
        """Give each endpoint that may be delivered to a lane, and stop the lanes of the others."""
        for problem in await asyncio.to_thread(self._store.reload):
            log.error("webhooks keep what they had: %s", problem)
        endpoints = self._store.current.by_name
        try:
            async with self._turns, self._database.begin() as connection:
                stopped = await self._sweep(connection, endpoints)
        except DatabaseUnavailable as error:
            self._complain(str(error))
            return
        except queue.FAULTS as error:
            self._fault("")
            self._complain(f"a statement of ours failed: {first_line(error)}")
            return
        self._away = False
        wanted = {name: one for name, one in endpoints.items() if name not in stopped}
        for name, (lane, task) in list(self._lanes.items()):
            if wanted.get(name) is not lane.endpoint:
                task.cancel()
                await asyncio.wait([task])
            if task.done():
                del self._lanes[name]
        for name, endpoint in wanted.items():
            if name not in self._lanes:
                lane = make(endpoint)
                self._lanes[name] = lane, tasks.create_task(lane.run())

    async def _sweep(self, connection: AsyncConnection, endpoints: Mapping[str, Endpoint]) -> set[str]:
        """Settle what nobody will deliver; returns the endpoints that are disabled."""
        now = self._schedule.clock()
        stopped = await self._disabled(connection, forget=True)
        for name, (_, reason) in stopped.items():
            await queue.bury(connection, name, reason, now)
        await queue.bury_overdue(connection, endpoints, now)
        return set(stopped)

    async def _disabled(self, connection: AsyncConnection, forget: bool = False) -> dict[str, tuple[str, str]]:
        """Those of our endpoints that are disabled. One whose address was changed since is not: it moved."""
        found = {}
        for name, (url, reason) in (await queue.disabled(connection)).items():
            endpoint = self._store.current.by_name.get(name)
            if endpoint is None:
                continue
            if endpoint.url == url:
                found[name] = (url, reason)
            elif forget:
                log.info("endpoint %s has another address and is enabled again", name)
                await queue.enable(connection, name)
        return found

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(STOP_SECONDS), self._database.begin() as connection:
                await queue.release(connection, self._worker)
        except (TimeoutError, DatabaseUnavailable, *queue.FAULTS) as error:
            log.warning("webhooks under way are taken up again only when their claims run out: %s", error)

    def _complain(self, why: str) -> None:
        if not self._away:
            log.error("webhooks wait, and are looked at again every %.0f s: %s", LOOK_AGAIN, why)
        self._away = True


@asynccontextmanager
async def delivering(outbox: Outbox) -> AsyncIterator[Outbox]:
    """Deliver while inside; on leaving, what is under way is left for later."""
    task = asyncio.create_task(outbox.run())
    task.add_done_callback(_tell_of_end)
    try:
        yield outbox
    finally:
        task.cancel()
        await asyncio.wait([task])


def _tell_of_end(task: asyncio.Task[None]) -> None:
    """Deliveries end only by being cancelled; anything else is our bug, and must not pass unseen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("webhooks are not delivered any more until the gateway is restarted", exc_info=error)
