"""How long the caller waits for the agent, read from the sound of both sides as the call runs.

Pure: levels and times in, milliseconds out. It needs no transcript and no engine's word for it. The agent's sound
counts from when the line is given it: what the line has in hand, some 20 ms, is heard first and not known here.
"""

from __future__ import annotations

SPEECH_LEVEL = 300
"""Root mean square of an 80 ms frame above which somebody is taken to speak."""
MIN_SPEECH = 0.16
"""Seconds of caller speech that make a turn worth answering; less is a click or a cough."""
MIN_QUIET = 0.24
"""Seconds of quiet after which the agent's next sound is a new start, not the rest of a word."""
SETTLED = 0.5
"""Seconds within which a caller who goes on speaking shows that the agent's start was no response."""


class ResponseMeter:
    """Time from the end of the caller's speech to the agent's next sound, once for each turn."""

    def __init__(self) -> None:
        self.first_sound: float | None = None
        """Call time of the agent's first sound, in seconds."""
        self.last_speech = 0.0
        """Call time of the newest end of speech of either side."""
        self._responses: list[float] = []
        self._pending: tuple[float, float] | None = None
        self._spoke = 0.0
        self._spoke_since = 0.0
        self._caller_end = 0.0
        self.agent_end = -MIN_QUIET
        """Call time at which the agent's newest sound ends."""

    @property
    def responses(self) -> list[float]:
        """Milliseconds, in the order of the caller's turns."""
        return self._responses + ([self._pending[1]] if self._pending else [])

    def caller(self, start: float, seconds: float, level: int) -> None:
        """A piece of the caller's sound at call time `start`."""
        self._settle(start)
        if level < SPEECH_LEVEL:
            return
        self._spoke += seconds
        self._caller_end = self.last_speech = start + seconds
        self._spoke_since += seconds
        if self._spoke_since >= MIN_SPEECH:
            # The caller had only drawn breath: what the agent did was no answer to the whole turn.
            self._pending = None

    def agent(self, start: float, seconds: float, level: int) -> None:
        """A piece of the agent's sound, played from call time `start`."""
        self._settle(start)
        if level < SPEECH_LEVEL:
            return
        if self.first_sound is None:
            self.first_sound = start
        begins = start - self.agent_end >= MIN_QUIET
        if begins and self._pending is None and self._spoke >= MIN_SPEECH and start >= self._caller_end:
            self._pending = start, round(1000 * (start - self._caller_end), 1)
            self._spoke_since = 0.0
        self.agent_end = self.last_speech = start + seconds

    def _settle(self, now: float) -> None:
        if self._pending is not None and now >= self._pending[0] + SETTLED:
            self._responses.append(self._pending[1])
            self._pending = None
            self._spoke = self._spoke_since
