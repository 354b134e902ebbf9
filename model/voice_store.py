"""Voices by name, loaded once and kept.

Owns how many are kept, and that each use is looked at after it was asked for: which recording may be used is
`model.voices`' to say. Knows no threads: whoever uses it does so from one at a time.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path

from model.conversation import Models, Voice, load_voice
from model.voices import VoiceRefused, voice_file

KEPT = 64
"""Voices in memory: all published ones and some recordings, 0.5 MB each."""

VoiceKey = tuple[Path, int]
"""A voice's file and when it was written, in nanoseconds: the same key, the same voice."""


class VoiceStore:
    """Reads files, hashes recordings and runs the codec: not for the thread that steps calls."""

    def __init__(self, models: Models, published: Path, recordings: Path) -> None:
        """Folders of the published voices, and of `voices.yaml`."""
        self._models, self._published, self._recordings = models, published, recordings
        self._kept: OrderedDict[VoiceKey, Voice] = OrderedDict()
        self._looked: dict[str, tuple[float, VoiceKey]] = {}

    def permit(self, name: str, asked: float) -> VoiceKey:
        """The voice of that name, which may be used. Raises VoiceRefused.

        `asked`: when it was asked for, by `time.monotonic`. One look answers all who asked before it: many calls that
        are resumed at once have their recording hashed once.
        """
        looked = self._looked.get(name)
        if looked is not None and looked[0] > asked:
            return looked[1]
        self._looked.pop(name, None)
        now = time.monotonic()
        path = voice_file(name, self._published, self._recordings)
        try:
            key = (path, path.stat().st_mtime_ns)
        except OSError as error:
            raise VoiceRefused(f"{path} cannot be read: {error.strerror}") from error
        self._looked[name] = (now, key)
        return key

    def load(self, key: VoiceKey) -> Voice:
        """The voice of a key. Raises VoiceError."""
        voice = self._kept.get(key)
        if voice is None:
            voice = self._kept[key] = load_voice(self._models, key[0])
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return voice
