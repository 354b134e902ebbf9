"""Real worker processes whose sessions can be resumed, and a caller who knows what they must hear."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from gateway.audio import Upsampler
from gateway.engine import EngineLost, Session, WorkerChanged
from gateway.pool import WorkerPool
from gateway.resuming_pool import ResumingPool
from gateway.settings import load_settings
from gateway.transcript import word_seconds
from model import wire
from model.wire import FRAME_BYTES, AgentFrame, AgentText, CallerText, Output, SessionRequest
from tests.token_model import TokenModel

ROOT = Path(__file__).parents[2]
SILENCE = bytes(FRAME_BYTES)


@dataclass
class WorkerProcess:
    process: asyncio.subprocess.Process
    url: str

    @property
    def name_ends(self) -> str:
        """How the worker's name ends, by which sessions say who holds them."""
        return f"-{self.process.pid}"

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def token_worker(*options: str) -> AbstractAsyncContextManager[WorkerProcess]:
    """One whose sessions can be resumed."""
    return worker_process("tests.token_worker", *options)


@asynccontextmanager
async def worker_process(module: str, *options: str) -> AsyncIterator[WorkerProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *options, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            url = json.loads(await process.stdout.readline())["listening"]
        yield WorkerProcess(process, url)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def time_of(*processes: int) -> float:
    """Seconds that pass only while none of these waits for a core that others have: what they, which run one after
    another, would take by themselves on a machine of their own (proc(5), schedstat)."""
    now = time.monotonic()
    with contextlib.suppress(FileNotFoundError):  # a kernel that does not account for it
        for process in processes:
            now -= int(Path(f"/proc/{process}/schedstat").read_text().split()[1]) / 1e9
    return now


@asynccontextmanager
async def pool_of(*workers: WorkerProcess, within: float | None = None) -> AsyncIterator[ResumingPool]:
    """The pool over these workers; those first in the list get the first sessions."""
    pool = WorkerPool(load_settings(workers=",".join(worker.url for worker in workers)))
    await pool.start()
    try:
        async with asyncio.timeout(60):
            yield ResumingPool(pool, within)
    finally:
        await pool.stop()


@asynccontextmanager
async def two_workers(*options: str) -> AsyncIterator[tuple[WorkerProcess, WorkerProcess, ResumingPool]]:
    """The first has more slots, so that it is asked first."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(token_worker("--capacity", "200", *options))
        second = await stack.enter_async_context(token_worker("--capacity", "100", *options))
        yield first, second, await stack.enter_async_context(pool_of(first, second))


@dataclass
class Caller:
    """Sends frames to a session in time, and keeps what it hears; `pace` is the seconds of a frame."""

    seed: int = 0
    pace: float = 0.08
    greeting: str = ""
    lines: list[bytes] = field(default_factory=list)
    heard: list[Output | WorkerChanged] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each agent frame came."""
    lost: str = ""
    said: dict[int, str] = field(default_factory=dict)
    actions: dict[int, Callable[[], object]] = field(default_factory=dict)
    """What happens before a frame is sent."""
    held: Callable[[], Awaitable[object]] | None = None
    """Awaited before each frame, with this caller's clock standing still."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Something was heard, or nothing will be any more."""
    hears: bool = True
    clock: Callable[[], float] | None = None
    """Of `times`, if not the event loop's."""

    async def call(self, pool: ResumingPool, frames: int) -> Caller:
        """A whole call. Ends early, with the reason in `lost`, if the session is lost."""
        session = await pool.open(SessionRequest(f"c{self.seed}", greeting=self.greeting))
        listening = asyncio.create_task(self.listen(session, frames))
        try:
            await self.speak(session, frames, listening)
            await listening
        finally:
            listening.cancel()
            await session.close()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
            self.heard += [text async for text in session.last_words()]
        return self

    async def speak(self, session: Session, frames: int, listening: asyncio.Task[None]) -> None:
        random, upsample = np.random.default_rng(self.seed), Upsampler()
        now = asyncio.get_running_loop().time
        begin = now()
        for index in range(frames):
            await asyncio.sleep(max(0.0, begin + index * self.pace - now()))
            if self.held is not None:
                since = now()
                await self.held()
                begin += now() - since
            if listening.done():
                return
            if action := self.actions.get(index):
                action()
            if text := self.said.get(index):
                await session.say(text)
            line = random.integers(-9_000, 9_000, 640).astype(np.int16).tobytes()
            self.lines.append(line)
            await session.send(upsample(line), line)

    async def listen(self, session: Session, frames: int) -> None:
        try:
            async for output in session.outputs():
                self.heard.append(output)
                self.news.set()
                if isinstance(output, AgentFrame):
                    self.times.append((self.clock or asyncio.get_running_loop().time)())
                    if output.index == frames - 1:
                        return
        except EngineLost as error:
            self.lost = str(error)
        finally:
            self.hears = False
            self.news.set()

    async def moved(self, least: int) -> None:
        """Wait for another worker, if at `least` frames were sent: for `held`, before a call that is over by then."""
        while self.hears and len(self.lines) >= least and not self.changes:
            self.news.clear()
            await self.news.wait()

    async def answered(self) -> None:
        """Wait until all that was said has its answer: for `held`, before an engine that may be slower than its
        callers, as on a machine that others use as well."""
        while self.hears and len(self.times) < len(self.lines):
            self.news.clear()
            await self.news.wait()

    @property
    def frames(self) -> list[AgentFrame]:
        return [output for output in self.heard if isinstance(output, AgentFrame)]

    @property
    def missed(self) -> list[int]:
        """Frames in which the agent was silent because nobody answered them."""
        return [frame.index for frame in self.frames if frame.pcm == SILENCE]

    @property
    def changes(self) -> list[WorkerChanged]:
        return [output for output in self.heard if isinstance(output, WorkerChanged)]

    def gap(self) -> float:
        """Longest time between two frames with sound."""
        spoken = [at for at, frame in zip(self.times, self.frames, strict=True) if frame.pcm != SILENCE]
        return float(np.diff(spoken).max())

    def expected(self) -> list[Output]:
        """What one worker that lived for the whole call would have said, silent in the frames it missed.

        A word that was asked for and that these cut off is said again after them.
        """
        model, upsample, missed = TokenModel(), Upsampler(), set(self.missed)
        asked = AgentText(0, "")
        model.say(self.greeting)
        outputs: list[Output] = []
        for index, line in enumerate(self.lines):
            if text := self.said.get(index):
                model.say(text)
            pcm = upsample(line)
            if index in missed:
                if word_seconds(asked.text) > (index - asked.index) * wire.FRAME_SECONDS:
                    model.words[:0] = asked.text.split()
                asked = AgentText(0, "")
                model.miss(pcm)
                outputs.append(AgentFrame(index, SILENCE))
            else:
                left = len(model.words)
                said = model.step(pcm)
                outputs += said
                if len(model.words) < left:
                    (asked,) = (output for output in said if isinstance(output, AgentText))
        outputs += model.last_words()
        return [output for output in outputs if isinstance(output, AgentFrame | AgentText | CallerText)]

    def check(self) -> None:
        """One frame for each of ours, and not a sample or word other than if nothing had happened."""
        assert not self.lost
        assert [frame.index for frame in self.frames] == list(range(len(self.lines)))
        said = [output for output in self.heard if not isinstance(output, WorkerChanged)]
        expected = self.expected()
        differ = [pair for pair in zip(said, expected, strict=False) if pair[0] != pair[1]][:1]
        assert said == expected, f"missed {self.missed}; {len(said)} and {len(expected)}; first {differ}"


async def idle(worker: WorkerProcess) -> None:
    """Wait until the worker holds no session."""
    await _until(worker, lambda taken: taken == 0)


async def busy(worker: WorkerProcess) -> None:
    """Wait until the worker holds a session."""
    await _until(worker, lambda taken: taken > 0)


async def _until(worker: WorkerProcess, wanted: Callable[[int], bool]) -> None:
    url = f"http{worker.url.removeprefix('ws').removesuffix(wire.PATH)}/readyz"
    async with httpx.AsyncClient() as http, asyncio.timeout(10):
        while True:
            state = (await http.get(url)).json()
            if wanted(state["capacity"] - state["free"]):
                return
            await asyncio.sleep(0.02)
