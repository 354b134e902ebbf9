"""The tone is as loud as it is asked to be, in every part of a frame and over its edges."""

from __future__ import annotations

import numpy as np
import pytest

from model.tone import as_loud_as
from model.wire import AGENT_SILENT, FRAME_BYTES


@pytest.mark.parametrize("level", [4, 12, 40, 70])
def test_each_part_of_it_is_so_loud(level: int) -> None:
    frame = as_loud_as(level)
    assert len(frame) == FRAME_BYTES
    sound = np.frombuffer(frame * 2, "<i2").astype(np.float64)
    for start in range(0, len(sound) - 480, 100):
        power = (sound[start : start + 480] ** 2).mean() / 32_768**2
        assert 10 * np.log10(power) == pytest.approx(-level, abs=0.2)


def test_silence_is_silent_and_the_loudest_is_no_error() -> None:
    assert not any(as_loud_as(AGENT_SILENT))
    assert np.abs(np.frombuffer(as_loud_as(0), "<i2")).max() == 32_767
