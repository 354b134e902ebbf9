"""Voices by name, loaded beside the calls and kept.

Owns the thread that reads them and how many are kept. Which recording may be used is `model.voices`' to say, each time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.conversation import Models, Voice, load_voice
from model.voices import voice_file

KEPT = 64
"""Voices in memory: all published ones and some recordings, 0.5 MB each."""


class VoiceStore:
    """Loads voices in one thread, so that no call waits for a disk."""

    def __init__(self, models: Models, published: Path, recordings: Path) -> None:
        """Folders of the published voices, and of `voices.yaml`."""
        self._models, self._published, self._recordings = models, published, recordings
        self._thread = ThreadPoolExecutor(1, "voices")
        self._kept: OrderedDict[tuple[Path, int], Voice] = OrderedDict()

    def load(self, name: str) -> Generator[bool, None, Voice]:
        """A generator: yields False while the voice is being read, and returns it. Raises VoiceError, VoiceRefused."""
        future = self._thread.submit(self.read, name)
        while not future.done():
            yield False
        return future.result()

    def close(self) -> None:
        """Lets the thread end when it has read what it is reading."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def read(self, name: str) -> Voice:
        """The voice, at once. Raises VoiceError, VoiceRefused."""
        path = voice_file(name, self._published, self._recordings)
        key = (path, path.stat().st_mtime_ns)
        voice = self._kept.get(key)
        if voice is None:
            voice = self._kept[key] = load_voice(self._models, path)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return voice
