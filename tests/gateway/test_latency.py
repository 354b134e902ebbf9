"""Response times from made-up levels: who is loud in which 80 ms."""

from __future__ import annotations

import pytest

from gateway.latency import ResponseMeter

FRAME = 0.08


def meter(caller: str, agent: str) -> ResponseMeter:
    """One character an 80 ms frame: `#` is speech."""
    result = ResponseMeter()
    for index, (one, other) in enumerate(zip(caller, agent, strict=True)):
        result.caller(index * FRAME, FRAME, 2_000 if one == "#" else 0)
        result.agent(index * FRAME, FRAME, 2_000 if other == "#" else 0)
    return result


@pytest.mark.parametrize(
    ("caller", "agent", "expected"),
    [
        ("..........", "..######..", []),  # a greeting answers nobody
        ("####......", "......####", [160]),
        ("####..####......", "............####", [160]),  # one turn with a pause
        ("####............####....", "......####............##", [160, 160]),
        ("#...........", "....####....", []),  # a click is no turn
        ("######################......", "..########..................", []),  # nothing after it
        ("####.####.####......", "....#...........####", [160]),  # the agent fell into a breath: no answer
        ("......########......", "####......######....", []),
    ],
)
def test_responses(caller: str, agent: str, expected: list[float]) -> None:
    width = max(len(caller), len(agent))
    assert meter(caller.ljust(width, "."), agent.ljust(width, ".")).responses == pytest.approx(expected)


def test_first_sound_is_the_greetings() -> None:
    assert meter("........", "...#####").first_sound == pytest.approx(0.24)
    assert meter("........", "........").first_sound is None
