"""One call of the rehearsal engine: frames in, frames out, and the work in between.

Owns the order of things. A frame is answered the moment it comes, from speech rendered earlier; listening,
recognising, thinking and speaking happen on worker threads, and their results meet here, on the event loop,
in `Turns` and `Playout`, which decide. Knows no models' insides and no sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from model.rehearsal.asr import Heard, Recogniser, as_probability
from model.rehearsal.listener import Listener
from model.rehearsal.pieces import End, Sentence, Wanted
from model.rehearsal.playout import Playout
from model.rehearsal.tts import Speech, Synthesizer
from model.rehearsal.turns import Action, Pause, Recognise, Reply, Resume, Said, StillThere, Turns
from model.rehearsal.vad import WINDOW_SECONDS
from model.wire import FRAME_SECONDS, SAMPLE_RATE, AgentFrame, AgentText, CallerFrame, CallerText, Done, Flush, Output

log = logging.getLogger(__name__)

LAST_WORDS_SECONDS = 2.0
"""What the caller was still saying when the call ended is waited for so long."""
_LATE_IN_QUESTION = SAMPLE_RATE
"""Samples of a question left to say, in which a "yeah" is its answer."""


class Talker(Protocol):
    """What the session needs of `model.rehearsal.dialogue.Dialogue`; called on a worker thread, one at a time."""

    def greeting(self) -> Iterator[Sentence | End]: ...

    def reply(self, heard: str, wanted: Wanted) -> Iterator[Sentence | End]: ...

    def still_there(self) -> Iterator[Sentence | End]: ...

    def spoken(self, text: str, complete: bool) -> None: ...


@dataclass(frozen=True, slots=True)
class Models:
    """What all sessions of an engine share. The executors are apart, so that none waits for another's work."""

    listener: Callable[[], Listener]
    recogniser: Recogniser
    synthesizer: Synthesizer
    listening: Executor
    recognising: Executor
    talking: Executor

    def shut_down(self) -> None:
        """Let the threads end; work that has not begun is dropped."""
        for executor in (self.listening, self.recognising, self.talking):
            executor.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Turn:
    """Something for the agent to say next."""

    number: int
    sentences: Callable[[Wanted], Iterator[Sentence | End]]
    """Called with what says whether they are still wanted."""
    heard: tuple[str, bool]
    """What was heard of the turn before, and whether that was all of it."""


class RehearsalSession:
    """Implements `model.worker_engine.WorkerSession`. Make it on the event loop; `close` it."""

    def __init__(self, models: Models, dialogue: Talker) -> None:
        self._models = models
        self._dialogue = dialogue
        self._turns = Turns()
        self._playout = Playout()
        self._listener = models.listener()
        self._outputs: asyncio.Queue[Output | None] = asyncio.Queue()
        self._unheard: deque[tuple[bytes, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._to_say: asyncio.Queue[_Turn] = asyncio.Queue()
        self._asides: asyncio.Queue[str] = asyncio.Queue()
        self._number = 0
        """Of the turn that may be heard; what older ones still render is thrown away."""
        self._rendered = True
        """Whether all of the present turn is in the playout."""
        self._complete = True
        """Whether all of the present turn, and what was said besides, has been heard."""
        self._replied = True
        """Whether all of the present turn itself has been."""
        self._end: End | None = None
        self._next_frame = 0
        self._last_sound = 0
        self._busy = 0
        self._idle = asyncio.Event()
        self._closed = False
        self._hearing = 0
        """Frames and utterances of the caller whose words may still come."""
        self._heard_out = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None
        self._ended = False
        """All that the caller said has been heard, and is being recognised."""
        self._runner = asyncio.create_task(self._run())
        self._turns.agent_thinks()
        self._begin(lambda _: dialogue.greeting())
        self._runner.add_done_callback(self._stopped)

    # What the server calls.

    def push(self, frame: CallerFrame) -> None:
        """The caller's next 80 ms; the agent's frame of the same index is in `outputs` on return."""
        if self._closed or self._runner.done():
            return
        released = self._playout.take()
        self._next_frame = frame.index + 1
        if released.sound:
            self._last_sound = frame.index
        for word in released.words:
            self._outputs.put_nowait(AgentText(frame.index, f" {word}"))
        self._outputs.put_nowait(AgentFrame(frame.index, released.pcm))
        self._unheard.append((frame.pcm, released.pcm))
        self._hear_more(1)
        self._arrived.set()
        self._finish_turn()

    async def outputs(self) -> AsyncIterator[Output]:
        """In order; ends after `Done`, or when the session is closed. Raises what broke the session."""
        while (output := await self._outputs.get()) is not None:
            yield output
            if isinstance(output, Done):
                return
        if not self._runner.cancelled() and (error := self._runner.exception()) is not None:
            raise error

    def say(self, text: str) -> None:
        """The agent says this next; a sentence that it is in the middle of is finished first."""
        if not self._closed:
            self._work(1)
            self._asides.put_nowait(text)

    def play(self, clip: str) -> None:
        """There are no clips here: said in the log, and nothing is played."""
        log.warning("the rehearsal engine has no clip %r to play", clip)

    def finish(self) -> AsyncIterator[CallerText] | None:
        """See `WorkerSession.finish`. Nothing is thought or rendered any more."""
        self._closed = True
        self._number += 1
        if self._runner.done():
            return None
        self._hear_more(1)
        self._arrived.set()
        self._finishing = asyncio.create_task(self._hear_out())
        return self._last_words()

    async def close(self) -> None:
        """Stops all work for this call, but for its last words. What a thread is in the middle of ends on its own."""
        self._closed = True
        self._number += 1
        if self._finishing is None:
            await self._stop()

    async def _stop(self) -> None:
        self._runner.cancel()
        await asyncio.wait([self._runner])
        if not self._runner.cancelled():
            self._runner.exception()

    async def settled(self) -> None:
        """Wait until nothing is being computed for what was pushed so far. For tests and offline use."""
        await self._idle.wait()

    async def _hear_out(self) -> None:
        """Let the caller's words be recognised to the end, and then stop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_SECONDS):
                await self._heard_out.wait()
        if not self._heard_out.is_set():
            log.warning("what a caller was saying when the call ended was not recognised in time")
        await self._stop()

    async def _last_words(self) -> AsyncIterator[CallerText]:
        while (output := await self._outputs.get()) is not None:
            if isinstance(output, CallerText):
                yield output

    # Work on threads.

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._talk())
            tasks.create_task(self._talk_aside())
            await self._listen(tasks)

    async def _listen(self, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            frames = list(self._unheard)
            self._unheard.clear()
            windows = await loop.run_in_executor(self._models.listening, self._hear, frames)
            for speech in windows:
                late = self._playout.asking and self._playout.remaining < _LATE_IN_QUESTION
                self._act(self._turns.hear(speech, late), tasks)
            if self._finishing is not None and not (self._unheard or self._ended):
                self._ended = True
                self._act(self._turns.end(), tasks)
                self._hear_more(-1)
            self._hear_more(-len(frames))

    def _hear(self, frames: list[tuple[bytes, bytes]]) -> list[bool]:
        return [speech for caller, agent in frames for speech in self._listener.hear(caller, agent)]

    async def _recognise(self, attempt: int, sound: NDArray[np.float32], tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        heard = await loop.run_in_executor(self._models.recognising, self._recognise_wanted, attempt, sound)
        if heard is not None:
            onsets = [int(onset / WINDOW_SECONDS) for onset in heard.onsets]
            self._act(self._turns.recognised(attempt, heard.text, heard.confidence, onsets), tasks)
        self._hear_more(-1)

    def _recognise_wanted(self, attempt: int, sound: NDArray[np.float32]) -> Heard | None:
        """On a thread, perhaps after waiting for one: by then the caller may have gone on."""
        return self._models.recogniser.recognise(sound) if self._turns.wants(attempt) else None

    async def _talk(self) -> None:
        loop = asyncio.get_running_loop()
        untold: tuple[str, bool] | None = None
        while True:
            turn = await self._to_say.get()
            # One that was outdated while it waited is passed over; what was heard before it is told all the same.
            untold = untold or turn.heard
            if turn.number == self._number:
                await loop.run_in_executor(self._models.talking, self._render, turn, untold, loop)
                untold = None
            self._work(-1)

    async def _talk_aside(self) -> None:
        loop = asyncio.get_running_loop()
        synthesize = self._models.synthesizer.synthesize
        while True:
            speech = await loop.run_in_executor(self._models.talking, synthesize, await self._asides.get())
            if self._complete:
                self._complete = False
                self._playout.begin()
                self._turns.agent_thinks()
            self._release(speech)
            self._work(-1)

    def _render(self, turn: _Turn, heard: tuple[str, bool], loop: asyncio.AbstractEventLoop) -> None:
        """On a thread: think, and hand over each sentence as soon as it can be heard."""
        if turn.number > 1:
            self._dialogue.spoken(*heard)
        for item in turn.sentences(lambda: turn.number == self._number):
            if turn.number != self._number:
                return
            part = self._models.synthesizer.synthesize(item.text) if isinstance(item, Sentence) else item
            loop.call_soon_threadsafe(self._add, turn.number, part)
        loop.call_soon_threadsafe(self._add, turn.number, None)

    # What the results do, on the event loop.

    def _act(self, actions: list[Action], tasks: asyncio.TaskGroup) -> None:
        for action in actions:
            if self._finishing is not None and not isinstance(action, Recognise | Said):
                continue
            match action:
                case Recognise(attempt, start, end):
                    self._hear_more(1)
                    # The sound is taken now, while the listener rests between two frames.
                    tasks.create_task(self._recognise(attempt, self._listener.sound(start, end), tasks))
                case Pause():
                    self._pause()
                case Resume():
                    self._playout.resume()
                case Said():
                    self._outputs.put_nowait(_caller_text(action))
                case Reply(text, instead):
                    self._pause()
                    self._begin(partial(self._dialogue.reply, text), instead)
                case StillThere():
                    self._begin(lambda _: self._dialogue.still_there())

    def _pause(self) -> None:
        """Silence the agent at once, if it is speaking."""
        if not self._playout.empty and not self._playout.paused:
            self._playout.pause()
            if self._playout.said:
                self._outputs.put_nowait(Flush(self._next_frame - 1))

    def _begin(self, sentences: Callable[[Wanted], Iterator[Sentence | End]], instead: bool = False) -> None:
        """Drop what the agent had to say, and have a new turn rendered; `instead` of one that counts as never said."""
        said = self._playout.drop()
        heard = ("", False) if instead else (said, self._complete or self._replied)
        self._complete = self._replied = False
        self._playout.begin()
        self._end = None
        self._rendered = False
        self._number += 1
        self._work(1)
        self._to_say.put_nowait(_Turn(self._number, sentences, heard))

    def _add(self, number: int, part: Speech | End | None) -> None:
        """A part of a turn is ready: a sentence, its end of the call, or None, the end of the turn."""
        if number != self._number:
            return
        if isinstance(part, Speech):
            self._release(part)
        elif part is None:
            self._rendered = True
            self._finish_turn()
        else:
            self._end = part
            self._turns.closing = True

    def _release(self, speech: Speech) -> None:
        """Speech may be heard from now on, unless the caller is talking."""
        self._playout.add(speech.pcm, speech.words, speech.onsets)
        if not self._playout.empty and not self._turns.agent_speaks():
            self._playout.pause()

    def _finish_turn(self) -> None:
        """If all of the turn has been said, it is the caller's."""
        if not self._rendered or not self._playout.empty or self._complete:
            return
        self._complete = self._replied = True
        self._turns.agent_finished()
        if self._end is not None:
            self._outputs.put_nowait(Done(self._last_sound, self._end.reason, self._end.target))

    def _stopped(self, _: asyncio.Task[None]) -> None:
        self._outputs.put_nowait(None)
        self._idle.set()

    def _hear_more(self, count: int) -> None:
        """Count what of the caller is being heard and recognised."""
        self._hearing += count
        self._work(count)
        if not self._hearing and self._finishing is not None:
            self._heard_out.set()

    def _work(self, count: int) -> None:
        """Count what is being computed."""
        self._busy += count
        if self._busy and not self._runner.done():
            self._idle.clear()
        else:
            self._idle.set()


def _caller_text(said: Said) -> CallerText:
    """In frames, and with the log probability as a probability."""
    sure = None if said.confidence is None else as_probability(said.confidence)
    frames = tuple(_frame_of(onset) for onset in said.onsets)
    return CallerText(_frame_of(said.start), _frame_of(said.end - 1) + 1, said.text, onsets=frames, confidence=sure)


def _frame_of(window: int) -> int:
    """The frame in which a window of the caller begins."""
    return int(window * WINDOW_SECONDS / FRAME_SECONDS)
