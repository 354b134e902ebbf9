"""The engine as the worker's process has it, with a process that the test plays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from model import engine_wire
from model.engine_options import EngineOptions, EngineState
from model.engine_wire import CONTROL
from model.personaplex import PersonaplexEngine
from model.personaplex_session import PersonaplexSession
from model.ring import Channel, Ends
from model.wire import FromWorker, SessionRequest

READY = EngineState(capacity=2, step_seconds={"1": 0.01, "2": 0.01})


class PlayedEngine(PersonaplexEngine):
    """Its process has said that it is ready; what it says next, the test says."""

    theirs: Channel
    """The process's end of the channel."""

    def __init__(self) -> None:
        super().__init__(EngineOptions("absent", slots=2))

    def _spawn(self, ends: Ends) -> None:
        self.theirs = ends.channel()
        assert self.theirs.get(), "its options"
        self.theirs.put(CONTROL, READY.to_json().encode())

    def _keep_watch(self) -> None:
        """It is the test that looks, by a clock of its own."""
        self.look(time.monotonic())

    def says(self, number: int, *messages: FromWorker) -> None:
        for message in messages:
            self.theirs.put(number, engine_wire.encode(message))

    async def opens(self, asked: SessionRequest) -> tuple[asyncio.Task[PersonaplexSession], int]:
        """A session that is being opened, and the number that the process knows it by."""
        while self.theirs.get() is not None:  # what was said of others
            pass
        opening = asyncio.create_task(self.open(asked))
        await asyncio.sleep(0)  # now it has asked
        message = self.theirs.get()
        assert message is not None
        return opening, message[0]


@asynccontextmanager
async def played() -> AsyncIterator[PlayedEngine]:
    engine = PlayedEngine()
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
        engine.theirs.close()
