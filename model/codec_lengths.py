"""How many frames of one call go through the codec at once.

Owns these lengths. They are few, so that whatever is left of a sound makes no new size on a GPU: one never seen before
needs kernels compiled and tables made, while the calls wait. `model.codec_passes` goes through all of them before the
first call. Knows no calls and no codec.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CODEC_PART = 25
"""Frames of sound that go through the codec at once: what lies between its layers takes 2 MB for each."""
HEARD = (CODEC_PART, 5, 1)
"""Frames of sound, the most first."""
SPOKEN = (5 * CODEC_PART, *HEARD)
"""Frames of codes: most of them go through a transformer only, and take 0.3 MB each."""


def cut(frames: int, lengths: Sequence[int] = HEARD) -> Iterator[int]:
    """The lengths that `frames` are cut into, the longest first; the last of `lengths` is 1."""
    while frames:
        length = next(length for length in lengths if length <= frames)
        yield length
        frames -= length
