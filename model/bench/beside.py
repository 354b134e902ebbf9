"""Work beside calls in full swing: an opened call, a new prompt, a session taken over, prompts given back.

Owns what each is made of and when it begins. The engine's own parts do it: prompts, histories and their cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from model.bench.drive import SOUND, Callers, Latency, Timed, wait_until
from model.calls import Calls
from model.clip import Clip, ClipError
from model.engine import Stepper
from model.history import CODEC_FRAMES, FAST_FRAMES, Columns, kept_frames, refill
from model.prompt_cache import Prompt, PromptCache, make_prompt
from model.scheduler import Scheduler
from model.wire import TOKENS_BYTES, AgentFrame, FromWorker, History, Resume, SessionRequest

PROMPT_FRAMES = 300
RESUMED = 64
"""Calls resumed at once, or as many as there are."""
_PAUSES = 12
"""Frames of silence in a prompt, around the text."""
_FIRST = 1.0
"""Seconds until the first work: the calls have found their pace."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Milliseconds that each piece of work took until its slot could speak (or had spoken), and the others' latency."""

    took: tuple[float, ...]
    others: Latency | None
    """None where there are none."""


class BesideCalls:
    """Measures work beside the callers of slots 0 to `slots` - 1; it is done in the slot after them."""

    def __init__(self, stepper: Stepper, slots: int, costs: dict[int, float], seconds: float) -> None:
        self._stepper, self._slots, self._costs, self._seconds = stepper, slots, costs, seconds
        self._prompts = PromptCache(stepper, 1 << 30)
        self._context = stepper.models.config.transformer.context
        self._made = 0

    def measure(self) -> dict[str, Beside]:
        """Each kind by itself. Prompt and history are cut to what a small model's window holds."""
        known = self._prompt()
        for _ in self._prompts.fill(known, self._spare):
            pass
        deep = kept_frames(self._context, known.frames)
        kinds: dict[str, Callable[[], Timed]] = {
            "open_from_cache": lambda: self._opening(known),
            "uncached_prompt": lambda: self._opening(self._prompt()),
            "resume_fast": lambda: self._opening(known, min(FAST_FRAMES, deep)),
            "resume_deep": lambda: self._opening(known, deep),
        }
        found = {}
        for name, kind in kinds.items():
            jobs = [kind() for _ in range(max(1, int(self._seconds - _FIRST)))]
            found[name] = self._run(jobs)
        jobs = [self._repriming(known, deep, slot % self._slots) for slot in range(max(1, int(self._seconds - _FIRST)))]
        found["reprime_each_second"] = self._run(jobs)
        found["resume_all"] = Beside(self._resume_all(known, min(FAST_FRAMES, deep)), None)
        return found

    @property
    def _spare(self) -> int:
        return self._stepper.spare_lm_slots[0]

    def _run(self, jobs: list[Timed]) -> Beside:
        for index, job in enumerate(jobs):
            job.at = _FIRST + index
        others = Callers(self._stepper, self._slots, self._costs).run(self._seconds, jobs)
        return Beside(tuple(job.took for job in jobs if job.took is not None), others)

    def _resume_all(self, prompt: Prompt, frames: int) -> tuple[float, ...]:
        """As after another worker's end: calls resumed at once by the engine itself, until each has spoken.

        What the callers' slots held is lost.
        """
        count, spoke = min(RESUMED, self._slots), dict[int, float]()

        def tell(session: int, message: FromWorker) -> None:
            if isinstance(message, AgentFrame):
                spoke.setdefault(session, 1000 * (time.perf_counter() - begun))

        scheduler = Scheduler(count, largest=max(self._costs), costs=self._costs)
        calls = Calls(self._stepper, scheduler, self._prompts, _Known(prompt), tell, time.perf_counter)
        heard = min(frames, CODEC_FRAMES)
        asked = SessionRequest("resumed", resume=Resume(0, frames, heard, 0))
        history = History(self._history(frames).data(0), SOUND * heard)
        for session in range(count):
            self._stepper.reset(session)
        begun = time.perf_counter()
        for session in range(count):
            calls.open(session, asked, history)
            calls.frame(session, frames, SOUND, time.perf_counter())
        while len(spoke) < count:
            if not calls.work() and (wake := calls.wake_at()) is not None:
                wait_until(wake)
        for session in range(count):
            calls.close(session)  # and what it has begun to remember: the spare memory is one again
        return tuple(spoke.values())

    def _prompt(self) -> Prompt:
        """Another prompt each time, of 300 frames where the window allows."""
        config, self._made = self._stepper.models.config, self._made + 1
        frames = min(PROMPT_FRAMES, self._context // 3)
        voice = torch.full((config.codebooks, frames // 2), 7 * self._made % config.card)
        text = [4 + (index * self._made) % (config.text_card - 4) for index in range(frames - frames // 2 - _PAUSES)]
        return make_prompt(config, voice, text)

    def _history(self, frames: int) -> Columns:
        config = self._stepper.models.config
        columns = torch.randint(0, min(config.card, config.text_card), (frames, TOKENS_BYTES // 2))
        return Columns(0, columns.numpy().astype("<u2").tobytes())

    def _opening(self, prompt: Prompt, frames: int = 0) -> Timed:
        """From nothing to a first frame: the slot after the callers' is filled, then stepped alone."""
        stepper, slot = self._stepper, self._slots

        def fill() -> Generator[bool]:
            yield from refill(self._prompts, prompt, stepper.lm_slot[slot], self._history(frames), 0)

        return Timed(0.0, fill, lambda: _speak(stepper, slot))

    def _repriming(self, prompt: Prompt, frames: int, slot: int) -> Timed:
        """A spare memory is filled and swapped in, and back: so that all windows stay full."""
        stepper = self._stepper

        def fill() -> Generator[bool]:
            yield from refill(self._prompts, prompt, self._spare, self._history(frames), 0)

        def swap() -> None:
            stepper.point(slot, stepper.point(slot, self._spare))

        return Timed(0.0, fill, swap)


class _Known:
    """Implements `model.assets.Assets`: one prompt, which is there."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt

    def prompt(self, voice: str, text: str) -> Generator[bool, None, Prompt]:
        yield False
        return self._prompt

    def clip(self, name: str) -> Generator[bool, None, Clip]:
        yield False
        raise ClipError("the benchmark has no clips")


def _speak(stepper: Stepper, slot: int) -> None:
    stepper.step([slot], [SOUND])
