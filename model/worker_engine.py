"""What a worker runs: the engine and its sessions, as the server sees them.

Owns the protocols only. Knows no sockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol, runtime_checkable

from model.metrics import Histogram
from model.wire import CallerFrame, CallerText, History, Output, SessionRequest


class WorkerSession(Protocol):
    """One call inside the worker."""

    def push(self, frame: CallerFrame) -> None:
        """The caller's next 80 ms. Called on the event loop: never blocks, never raises for load."""

    def outputs(self) -> AsyncIterator[Output]:
        """Everything for the gateway, in order; ends after the last frame of `Done`, and after close."""

    def say(self, text: str) -> None:
        """The agent says this next."""

    def play(self, clip: str) -> None:
        """A prepared clip, sound for sound."""

    def finish(self) -> AsyncIterator[CallerText] | None:
        """The call is over: what its caller said that `outputs` has not told; None if that is known to be nothing.

        Called once at most, just before `close`, and read afterwards; it ends within a few seconds, also if nobody
        reads it. Not called for a session that goes on elsewhere: there its caller is heard again.
        """

    async def close(self) -> None:
        """Frees the slot, and all else but what `finish` still needs. Called once, always."""


class WorkerEngine(Protocol):
    """What a worker runs. How many sessions it holds at once is decided by the server, not by it."""

    name: str

    async def start(self) -> None:
        """Load what sessions need; the listener opens afterwards."""

    async def stop(self) -> None:
        """Release everything; no session is open any more."""

    async def open(self, request: SessionRequest) -> WorkerSession:
        """A new session. Raises WireError if the request cannot be served as it is."""


@runtime_checkable
class ResumingEngine(WorkerEngine, Protocol):
    """An engine whose sessions can go on where those of another worker ended.

    They send a token column with each agent frame, what the agent says in a step before that step's frame,
    `Cut` when older columns are not needed any more, `Played` at the end of a clip, and, when resumed,
    `Columns` for the frames that were missed.
    """

    async def resume(self, request: SessionRequest, history: History) -> WorkerSession:
        """The session that `request.resume` and `history` describe; the caller frame pushed next, and the
        first that is answered, has the index `request.resume.next_index`.

        Returns when the session can speak again. Raises WireError if this history cannot be taken.
        """


@runtime_checkable
class SupervisedEngine(WorkerEngine, Protocol):
    """An engine in a process of its own: it knows how many calls it holds, and it can end."""

    @property
    def capacity(self) -> int:
        """Sessions it holds at once, known when it has started."""

    @property
    def refusal(self) -> str:
        """Why no session is opened now, though one could be held; empty if they are."""

    def counters(self) -> Mapping[str, int]:
        """Numbers that only grow, for the worker's metrics."""

    def histograms(self) -> Mapping[str, Histogram]:
        """What differs from call to call, for the worker's metrics."""

    async def lost(self) -> str:
        """Returns, with the reason, when the engine has ended by itself; its sessions are told."""
