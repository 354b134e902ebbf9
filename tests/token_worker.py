"""A worker process whose sessions can be resumed: `python -m tests.token_worker [--capacity N]`.

With `--open-seconds S` it takes its time to go on with one; with `--breaks-after N` each breaks after N frames.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator

from model.serving import serve
from model.wire import CallerFrame, CallerText, History, Output, Played, SessionRequest
from tests.token_model import TokenModel


class TokenSession:
    """Implements `model.worker_engine.WorkerSession`."""

    def __init__(self, model: TokenModel, breaks_after: int | None = None) -> None:
        self._model = model
        self._breaks_after = breaks_after
        self._steps = 0
        self._pending: deque[Output] = deque()
        self._wake = asyncio.Event()
        self._closed = False

    def push(self, frame: CallerFrame) -> None:
        assert frame.index == self._model.index
        self._steps += 1
        self._pending.extend(self._model.step(frame.pcm))
        self._wake.set()

    async def outputs(self) -> AsyncIterator[Output]:
        while not self._closed:
            while self._pending:
                yield self._pending.popleft()
            if self._breaks_after is not None and self._steps >= self._breaks_after:
                raise ZeroDivisionError("a fault of the engine")
            self._wake.clear()
            await self._wake.wait()

    def say(self, text: str) -> None:
        self._model.say(text)

    def play(self, clip: str) -> None:
        """Its clips have no length."""
        self._model.say(f"[{clip}]")
        self._pending.append(Played(self._model.index, clip))

    async def finish(self) -> AsyncIterator[CallerText]:
        for text in self._model.last_words():
            yield text

    async def close(self) -> None:
        self._closed = True
        self._wake.set()


class TokenEngine:
    """Implements `model.worker_engine.ResumingEngine`."""

    name = "tokens"

    def __init__(self, open_seconds: float = 0.0, breaks_after: int | None = None) -> None:
        self._open_seconds = open_seconds
        self._breaks_after = breaks_after

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to release."""

    async def open(self, request: SessionRequest) -> TokenSession:
        model = TokenModel()
        model.say(request.greeting)
        return TokenSession(model, self._breaks_after)

    async def resume(self, request: SessionRequest, history: History) -> TokenSession:
        await asyncio.sleep(self._open_seconds)
        return TokenSession(TokenModel(request.resume, history), self._breaks_after)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--capacity", type=int, default=4)
    parser.add_argument("--open-seconds", type=float, default=0.0)
    parser.add_argument("--breaks-after", type=int)
    parser.add_argument("--exit-with-parent", action="store_true")
    options = parser.parse_args()
    asyncio.run(
        serve(
            TokenEngine(options.open_seconds, options.breaks_after),
            options.listen,
            token=os.environ.get("CALLPLEX_WORKER_TOKEN", ""),
            capacity=options.capacity,
            exit_with_parent=options.exit_with_parent,
        )
    )


if __name__ == "__main__":
    main()
