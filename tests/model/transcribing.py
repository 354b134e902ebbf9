"""A recorded caller, and waiting for what a process of the transcribers does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soxr

from model.wav import read_wav
from model.wire import FRAME_BYTES

WAV = Path(__file__).parents[2] / "gateway" / "phone" / "callers" / "bank-hours.wav"
SILENCE = bytes(FRAME_BYTES)


def caller_frames() -> list[bytes]:
    """A caller who asks a bank for its hours, and two seconds of silence."""
    wav = read_wav(WAV)
    pcm = np.asarray(soxr.resample(wav.pcm[0], wav.rate, 24_000) * 32_000).clip(-32_000, 32_000).astype("<i2").tobytes()
    pcm += bytes(-len(pcm) % FRAME_BYTES)
    return [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm), FRAME_BYTES)] + [SILENCE] * 25


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  what another process does has no event to wait for
            await asyncio.sleep(0.02)
