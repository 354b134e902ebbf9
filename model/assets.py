"""What a call needs from files: its prompt, with the voice in it, and clips. Read and worked out beside the calls.

Owns the thread that does it, so that no step waits for a disk, a digest or a folder's listing, and which prompts are
kept. A generator of its own waits for each: it yields False until the thread is done. Knows no calls and no device.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from model.clip import Clip, ClipError, load_clip
from model.conversation import Models, check_prompt, role_ids
from model.prompt_cache import Prompt, make_prompt
from model.voice_store import VoiceKey, VoiceStore
from model.voices import VoiceRefused

KEPT = 64
"""Prompts in memory, of which a persona's calls share one where its facts are the same: 0.1 MB each."""
_CLIP_NAME = re.compile(r"\w[\w.-]*")
_T = TypeVar("_T")


class Assets(Protocol):
    """Prompts and clips as calls get them: by generators that yield False while they are not there yet."""

    def prompt(self, voice: str, text: str) -> Generator[bool, None, Prompt]:
        """The prompt of a voice and a role's text. Raises VoiceError, VoiceRefused, PromptTooLong."""

    def clip(self, name: str) -> Generator[bool, None, Clip]:
        """A clip by name. Raises ClipError."""


class FileAssets:
    """Implements `Assets` with one thread beside that of the calls."""

    def __init__(
        self, models: Models, voices: VoiceStore, find: Callable[[str], Clip], *, reprimed: bool = False
    ) -> None:
        """`find` gives a clip by name, and raises ClipError; from now on both are the thread's alone. `reprimed`: a
        prompt too long to be given back to calls is refused."""
        self._models, self._voices, self._find, self._reprimed = models, voices, find, reprimed
        self._thread = ThreadPoolExecutor(1, "assets")
        self._prompts: OrderedDict[tuple[VoiceKey, str], Prompt] = OrderedDict()

    def prompt(self, voice: str, text: str) -> Generator[bool, None, Prompt]:
        asked = time.monotonic()
        return (yield from self._beside(lambda: self._made(voice, text, asked)))

    def read(self, voice: str, text: str) -> Prompt:
        """A prompt, waited for: before there are calls."""
        return self._thread.submit(self._made, voice, text, time.monotonic()).result()

    def clip(self, name: str) -> Generator[bool, None, Clip]:
        return (yield from self._beside(lambda: self._find(name)))

    def close(self) -> None:
        """Lets the thread end when it has done what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _beside(self, work: Callable[[], _T]) -> Generator[bool, None, _T]:
        future = self._thread.submit(work)
        try:
            while not future.done():
                yield False
            return future.result()
        finally:
            future.cancel()  # of a call that hung up, what was not begun need not be

    def _made(self, voice: str, text: str, asked: float) -> Prompt:
        try:
            key = (self._voices.permit(voice, asked), text)
        except OSError as error:
            raise VoiceRefused(f"the voice {voice} cannot be looked for: {error.strerror}") from error
        prompt = self._prompts.get(key)
        if prompt is None:
            loaded, ids = self._voices.load(key[0]), role_ids(self._models, text)
            check_prompt(self._models, loaded, ids, reprimed=self._reprimed)
            prompt = self._prompts[key] = make_prompt(self._models.config, loaded, ids)
        self._prompts.move_to_end(key)
        while len(self._prompts) > KEPT:
            self._prompts.popitem(last=False)
        return prompt


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
