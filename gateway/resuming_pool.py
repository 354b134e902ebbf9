"""The pool whose sessions outlive their workers, as calls see it.

Owns how long a lost session waits, and how many are opened anew at a time; how one goes on is `gateway.resume`'s. An
engine without token columns (rehearsal, echo) cannot go on; its sessions are handed out as they are.
"""

from __future__ import annotations

from gateway.engine import Session
from gateway.pool import WorkerPool
from gateway.resume import ResumingSession
from gateway.turns import Turns
from model.wire import SessionRequest

RESUME_WITHIN = 8.0
"""Seconds from the loss in which our own worker, started again, may take the call, unless the settings say otherwise:
callers hear silence meanwhile, and few hold on for longer. With an attempt's time it stays below the 10 s of a caller's
sound that a history holds. An engine that loads 17 GB takes longer: see CALLPLEX_RESUME_WITHIN."""
ASKED_AGAIN_WITHIN = 2.0
"""The same where workers are known by their URLs only: nobody is to be waited for, but one that came back, or freed a
slot, is known a second later, and an attempt may fail by chance."""
AT_ONCE = 32
"""Sessions that are opened anew at a time. A worker prepares sixteen together; while it does, the next sixteen come.
All at once would be no sooner, and the last would have most to catch up with: what was said since it was asked for."""


class ResumingPool:
    """The pool as calls see it. Implements `gateway.engine.Engine`."""

    def __init__(self, pool: WorkerPool, within: float | None = None) -> None:
        """`within`: seconds that a lost call waits for a worker that takes it.

        None: RESUME_WITHIN where a lost worker is started again by us, else ASKED_AGAIN_WITHIN; then one that hangs is
        given up only for another.
        """
        self._pool = pool
        self._turns = Turns(AT_ONCE)
        default = RESUME_WITHIN if pool.restarts else ASKED_AGAIN_WITHIN
        self._within = default if within is None else within
        self._leaves_for_nobody = pool.restarts if within is None else within > 0

    async def open(self, request: SessionRequest) -> Session:
        session = await self._pool.open(request)
        if not session.resumable:
            return session
        return ResumingSession(self._pool, self._turns, self._within, self._leaves_for_nobody, request, session)
