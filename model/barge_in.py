"""When a caller speaks over the agent's given words for so long that they are let go. Pure but for numpy.

Owns the rule's two numbers. Knows no calls.
"""

from __future__ import annotations

import numpy as np

GIVES_WAY_AFTER = 5
"""Frames in a row, 0.4 s: longer than a "yes" or "mhm" that only says "go on"."""
_SPEECH_LEVEL = 580.0
"""Of a frame's root mean square, -35 dB of full scale: louder than what a line's echo leaves of the agent."""


def is_loud(pcm: bytes) -> bool:
    """Whether 80 ms of the caller, int16, are as loud as speech."""
    sound = np.frombuffer(pcm, "<i2").astype(np.float32)
    return sound.size > 0 and float(np.sqrt(np.square(sound).mean())) > _SPEECH_LEVEL
