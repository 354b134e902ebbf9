"""uvicorn's HTTP connection with an end to waiting: who opens a socket must soon say what for.

Owns how long, and how many at once, connections may be without a whole request head (RFC 9112 section 2.1).
A flood of sockets that say nothing then takes neither the process's descriptors nor anybody's turn. Knows
no application. Give it to uvicorn as `http`.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""Seconds a connection has for its next request's head, from the first of its bytes or from connecting."""


class PromptHttp(H11Protocol):
    """One connection; see `prompt_http`."""

    waiting: ClassVar[dict[PromptHttp, asyncio.TimerHandle]]
    """Connections without a whole request head, oldest first, and what ends each."""
    most_waiting: ClassVar[int]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._upgraded = False
        while len(self.waiting) >= self.most_waiting:
            next(iter(self.waiting))._give_up()
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self._upgraded or self.transport.is_closing():
            self._stop_waiting()
        else:
            self._await_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._upgraded = True
        self._stop_waiting()  # whoever owns the socket now has limits of its own
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self not in self.waiting:
            self.waiting[self] = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        timer = self.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self) -> None:
        self._stop_waiting()
        self.transport.abort()


def prompt_http(most_waiting: int) -> type[PromptHttp]:
    """The connections of one listener: HEAD_SECONDS for a request's head, and `most_waiting` may wait.

    One more ends the oldest: those who mean it need milliseconds, so the oldest is the least likely to.
    """

    class OneListeners(PromptHttp):
        waiting: ClassVar[dict[PromptHttp, asyncio.TimerHandle]] = {}
        most_waiting = 0

    OneListeners.most_waiting = most_waiting
    return OneListeners
