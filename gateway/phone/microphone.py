"""The microphone and the loudspeaker as a caller, where the optional `sounddevice` is installed.

The sound card has a clock of its own: between it and the call lie two bounded queues, which drop the
oldest sound rather than let the delay grow.
"""

from __future__ import annotations

import importlib
from collections import deque
from typing import Any

from gateway import audio
from gateway.phone.metrics import Turn
from gateway.phone.playout import SILENCE

_BACKLOG = 10
"""20 ms frames each way."""


class MicrophoneMissing(Exception):
    """There is no microphone to speak into; the message says what to do."""


class Microphone:
    """Speaks what the microphone hears and plays what the caller hears; never hangs up by itself."""

    def __init__(self) -> None:
        self.turns: list[Turn] = []
        # deque.append and popleft are atomic: the sound card's thread needs no lock.
        self._said: deque[bytes] = deque(maxlen=_BACKLOG)
        self._heard: deque[bytes] = deque(maxlen=_BACKLOG)
        self.line: Any = None
        """The open sound card; it plays as long as somebody holds it."""

    @property
    def hung_up(self) -> bool:
        return False

    def step(self, heard: bytes) -> bytes:
        self._heard.append(heard)
        return self._said.popleft() if self._said else SILENCE

    def exchange(self, recorded: Any, played: Any, frames: int, when: Any, status: Any) -> None:
        """The sound card's callback: 160 samples of the microphone, 160 for the loudspeaker."""
        self._said.append(bytes(recorded))
        played[:] = self._heard.popleft() if self._heard else SILENCE


def open_microphone() -> Microphone:
    """Start the sound card at 8 kHz. Raises MicrophoneMissing with one sentence."""
    try:
        sounddevice = importlib.import_module("sounddevice")
    except (ImportError, OSError) as error:
        raise MicrophoneMissing(
            f"The microphone needs the optional package sounddevice and PortAudio ({error}): "
            "pip install -e '.[microphone]', or play a file with --wav."
        ) from None
    microphone = Microphone()
    try:
        line = sounddevice.RawStream(
            samplerate=audio.LINE_RATE,
            blocksize=audio.CARRIER_FRAME_SAMPLES,
            channels=1,
            dtype="int16",
            callback=microphone.exchange,
        )
        line.start()
    except sounddevice.PortAudioError as error:
        raise MicrophoneMissing(f"The microphone cannot be opened ({error}); play a file with --wav.") from None
    microphone.line = line
    return microphone
