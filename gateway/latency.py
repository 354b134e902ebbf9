"""How long the caller waits for the agent, read from the sound of both sides as the call runs.

Pure: levels and times in, milliseconds out. It needs no transcript and no engine's word for it.
"""

from __future__ import annotations

SPEECH_LEVEL = 300
"""Root mean square of an 80 ms frame above which somebody is taken to speak."""
MIN_SPEECH = 0.16
"""Seconds of caller speech that make a turn worth answering; less is a click or a cough."""
MIN_QUIET = 0.24
"""Seconds of quiet after which the agent's next sound is a new start, not the rest of a word."""


class ResponseMeter:
    """Time from the end of the caller's speech to the agent's next sound, once for each turn."""

    def __init__(self) -> None:
        self.responses: list[float] = []
        """Milliseconds, in the order of the caller's turns."""
        self.first_sound: float | None = None
        """Call time of the agent's first sound, in seconds."""
        self._caller_spoke = 0.0
        self._caller_end = 0.0
        self._agent_end = -MIN_QUIET

    def caller(self, start: float, seconds: float, level: int) -> None:
        """A piece of the caller's sound at call time `start`."""
        if level >= SPEECH_LEVEL:
            self._caller_spoke += seconds
            self._caller_end = start + seconds

    def agent(self, start: float, seconds: float, level: int) -> None:
        """A piece of the agent's sound, played from call time `start`."""
        if level < SPEECH_LEVEL:
            return
        if self.first_sound is None:
            self.first_sound = start
        begins = start - self._agent_end >= MIN_QUIET
        if begins and self._caller_spoke >= MIN_SPEECH and start >= self._caller_end:
            self.responses.append(round(1000 * (start - self._caller_end), 1))
        if begins or start >= self._caller_end:
            self._caller_spoke = 0.0
        self._agent_end = start + seconds
