"""A worker process for tests that echoes for a while and is then done: `python -m tests.finishing_worker goodbye`.

With `transfer` it asks for the target `person`.
"""

from __future__ import annotations

import argparse
import asyncio

from model.echo import EchoEngine, EchoSession
from model.serving import serve
from model.wire import CallerFrame, Done, DoneReason, SessionRequest


class FinishingSession(EchoSession):
    def __init__(self, reason: DoneReason, frames: int) -> None:
        super().__init__()
        self._reason: DoneReason = reason
        self._frames = frames

    def push(self, frame: CallerFrame) -> None:
        super().push(frame)
        if frame.index == self._frames:
            self._pending.append(Done(frame.index, self._reason, "person" if self._reason == "transfer" else ""))


class FinishingEngine(EchoEngine):
    def __init__(self, reason: DoneReason, frames: int) -> None:
        self._reason: DoneReason = reason
        self._frames = frames

    async def open(self, request: SessionRequest) -> FinishingSession:
        return FinishingSession(self._reason, self._frames)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("reason", choices=["goodbye", "transfer"])
    parser.add_argument("--frames", type=int, default=12)
    options = parser.parse_args()
    engine = FinishingEngine(options.reason, options.frames)
    asyncio.run(serve(engine, "127.0.0.1:0", capacity=4, exit_with_parent=True))


if __name__ == "__main__":
    main()
