"""What the worker's process and the engine's tell each other: it comes out as it went in."""

from __future__ import annotations

import pytest

from model import engine_wire, wire
from model.engine_wire import Heard, Told
from model.wire import CallerFrame, Close, Play, Say
from tests.model.rig import caller_pcm


@pytest.mark.parametrize(
    "message", [Heard(CallerFrame(7, caller_pcm(0, 7)), 123_456.789_012_345), Say("hello"), Play("disclosure"), Close()]
)
def test_what_the_engine_is_told_arrives_whole(message: Told) -> None:
    assert engine_wire.decode_to_engine(engine_wire.encode(message)) == message


def test_a_caller_frame_without_its_time_is_refused() -> None:
    with pytest.raises(wire.WireError, match="without its time"):
        engine_wire.decode_to_engine(b"B" + wire.encode_frame(CallerFrame(0, caller_pcm(0, 0))))
