"""`python -m model.bench.transcriber FILE.wav ...`: what callers' words cost, and how many callers a core carries.

Owns the measurement: what a process of the transcribers' pool does (`model.transcriber_process`), done here for each
recording as for a call, and its processor time, which other work on the machine changes little. Not in it: what the
worker's own process needs to hand frames over.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soxr

from model.transcriber import FINISH, FRAME, OPEN
from model.transcriber_process import Scribe, make_scribe
from model.wav import WavError, read_wav
from model.wire import FRAME_BYTES, FRAME_SECONDS, SAMPLE_RATE

_LEVEL = 32_000
_SILENCE = bytes(FRAME_BYTES)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one caller took. All in seconds; those of words begin and end with the utterances written down."""

    name: str
    seconds: float
    utterances: int
    words_seconds: float
    cpu_seconds: float

    @property
    def a_minute(self) -> float:
        """Processor seconds for each minute that the caller is heard."""
        return 60 * self.cpu_seconds / self.seconds


def frames_of(path: Path) -> list[bytes]:
    """A recording's first channel in whole frames, as a worker gets them. Raises WavError, OSError."""
    wav = read_wav(path)
    sound = np.asarray(soxr.resample(wav.pcm[0], wav.rate, SAMPLE_RATE) * _LEVEL).clip(-_LEVEL, _LEVEL)
    pcm = sound.astype("<i2").tobytes()
    return [pcm[at : at + FRAME_BYTES] for at in range(0, len(pcm) - FRAME_BYTES + 1, FRAME_BYTES)]


def measure(pool_process: Scribe, name: str, frames: Sequence[bytes]) -> Cost:
    """One call, from its first frame to its last words."""
    begun, told = time.process_time(), pool_process.take(OPEN, 1, 0, b"")
    for index, pcm in enumerate(frames):
        told += pool_process.take(FRAME, 1, index, pcm + _SILENCE)
    told += pool_process.take(FINISH, 1, 0, b"")
    took = time.process_time() - begun
    texts = [line for line in told if "text" in line]
    words = FRAME_SECONDS * sum(line["end"] - line["start"] for line in texts)
    return Cost(name, FRAME_SECONDS * len(frames), len(texts), words, took)


def together(costs: Sequence[Cost]) -> Cost:
    """All of them as one caller."""
    return Cost(
        "together",
        sum(cost.seconds for cost in costs),
        sum(cost.utterances for cost in costs),
        sum(cost.words_seconds for cost in costs),
        sum(cost.cpu_seconds for cost in costs),
    )


def _shown(cost: Cost) -> str:
    return (
        f"{cost.name}: {cost.seconds:.0f} s, of them {cost.words_seconds:.0f} s of words in {cost.utterances} pieces; "
        f"{cost.cpu_seconds:.2f} s of processor time, {cost.a_minute:.1f} s a minute: a core carries "
        f"{60 / cost.a_minute:.0f} such callers"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.transcriber")
    parser.add_argument("recordings", nargs="+", type=Path, metavar="FILE.wav", help="of callers alone")
    parser.add_argument("--weights", type=Path, help="where to look for Whisper before the installed packages")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    try:
        callers = {path.stem: frames_of(path) for path in options.recordings}
    except (WavError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    process = make_scribe(options.weights)
    measure(process, "warm", next(iter(callers.values())))
    silent = measure(process, "silent", [_SILENCE] * 750)
    costs = [silent, *(measure(process, name, frames) for name, frames in callers.items())]
    costs.append(together(costs[1:]))
    if options.json:
        sys.stdout.write(json.dumps([asdict(cost) for cost in costs]) + "\n")
    else:
        sys.stdout.write("".join(f"{_shown(cost)}\n" for cost in costs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
