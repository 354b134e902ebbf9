"""What a call needs from files: its prompt, with the voice in it, and clips. Read and worked out beside the calls.

Owns the threads that do it, so that no step waits for a disk, a digest or a folder's listing, and which prompts are
kept. A generator of its own waits for each: it yields False until the thread is done. Knows no calls and no device.

A disk that does not answer holds whoever waits for it for ever. So clips have a thread of their own, and a prompt that
is kept needs none, if its voice was published with the model: whether a recording may be used is looked up each time.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

from model.clip import Clip, ClipError, load_clip
from model.conversation import Models, check_prompt, role_ids
from model.prompt_cache import Prompt, make_prompt
from model.voice_store import VoiceKey, VoiceStore
from model.voices import PUBLISHED, VoiceRefused

KEPT = 64
"""Prompts in memory, of which a persona's calls share one where its facts are the same: 0.1 MB each."""
_CLIP_NAME = re.compile(r"\w[\w.-]*")
_T = TypeVar("_T")
_K = TypeVar("_K")


class Assets(Protocol):
    """Prompts and clips as calls get them: by generators that yield False while they are not there yet."""

    def prompt(self, voice: str, text: str) -> Generator[bool, None, Prompt]:
        """The prompt of a voice and a role's text. Raises VoiceError, VoiceRefused, PromptTooLong."""

    def clip(self, name: str) -> Generator[bool, None, Clip]:
        """A clip by name. Raises ClipError."""

    def unfinished(self) -> Mapping[str, object]:
        """What is being read of `voices` and of `clips`, as signs for `model.standstill`."""


class FileAssets:
    """Implements `Assets` with two threads beside that of the calls."""

    def __init__(
        self, models: Models, voices: VoiceStore, find: Callable[[str], Clip], *, reprimed: bool = False
    ) -> None:
        """`find` gives a clip by name, and raises ClipError; from now on both are the threads' alone. `reprimed`: a
        prompt too long to be given back to calls is refused."""
        self._models, self._voices, self._find, self._reprimed = models, voices, find, reprimed
        self._thread, self._clips = _Thread("voices"), _Thread("clips")
        self._prompts: OrderedDict[tuple[VoiceKey, str], Prompt] = OrderedDict()
        self._published: OrderedDict[tuple[str, str], Prompt] = OrderedDict()
        """Those of published voices, for the thread of the calls."""

    def prompt(self, voice: str, text: str) -> Generator[bool, None, Prompt]:
        prompt = self._published.get((voice, text))
        if prompt is None:
            asked = time.monotonic()
            prompt = yield from self._thread.beside(lambda: self._made(voice, text, asked))
        if voice in PUBLISHED:
            _keep(self._published, (voice, text), prompt)
        return prompt

    def read(self, voice: str, text: str) -> Prompt:
        """A prompt, waited for: before there are calls."""
        return self._thread.submit(self._made, voice, text, time.monotonic()).result()

    def clip(self, name: str) -> Generator[bool, None, Clip]:
        return (yield from self._clips.beside(lambda: self._find(name)))

    def unfinished(self) -> Mapping[str, object]:
        return {"voices": self._thread.first(), "clips": self._clips.first()}

    def close(self) -> None:
        """Lets the threads end when they have done what they are doing."""
        for thread in (self._thread, self._clips):
            thread.shutdown(wait=False, cancel_futures=True)

    def _made(self, voice: str, text: str, asked: float) -> Prompt:
        try:
            key = (self._voices.permit(voice, asked), text)
        except OSError as error:
            raise VoiceRefused(f"the voice {voice} cannot be looked for: {error.strerror}") from error
        prompt = self._prompts.get(key)
        if prompt is None:
            loaded, ids = self._voices.load(key[0]), role_ids(self._models, text)
            check_prompt(self._models, loaded, ids, reprimed=self._reprimed)
            prompt = make_prompt(self._models.config, loaded, ids)
        _keep(self._prompts, key, prompt)
        return prompt


class _Thread(ThreadPoolExecutor):
    """One thread, and what it was asked by the one of the calls."""

    def __init__(self, name: str) -> None:
        super().__init__(1, name)
        self._asked: deque[Future[Any]] = deque()

    def beside(self, work: Callable[[], _T]) -> Generator[bool, None, _T]:
        future: Future[_T] = self.submit(work)
        self._asked.append(future)
        try:
            while not future.done():
                yield False
            return future.result()
        finally:
            future.cancel()  # of a call that hung up, what was not begun need not be

    def first(self) -> object:
        """What it is doing, or will do next; None if there is nothing."""
        while self._asked and self._asked[0].done():
            self._asked.popleft()
        return self._asked[0] if self._asked else None


def _keep(kept: OrderedDict[_K, Prompt], key: _K, prompt: Prompt) -> None:
    """As the newest; the oldest go."""
    kept[key] = prompt
    kept.move_to_end(key)
    while len(kept) > KEPT:
        kept.popitem(last=False)


def find_clip(personas: Path, name: str) -> Clip:
    """The clip of that name in a folder `clips` below `personas`. Raises ClipError."""
    if not _CLIP_NAME.fullmatch(name):
        raise ClipError(f"{name!r} is no name of a clip")
    try:
        found = next(personas.glob(f"**/clips/{name}.clip"), None)
    except OSError as error:  # a folder that is being replaced, a network's disk that is gone, a name too long
        raise ClipError(f"the clip {name!r} cannot be looked for below {personas}: {error.strerror}") from error
    if found is None:
        raise ClipError(f"there is no clips/{name}.clip below {personas}")
    return load_clip(found)
