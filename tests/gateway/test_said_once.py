"""A word of the agent's that the loss of its worker cut off is said again, and written down once."""

from __future__ import annotations

import asyncio

import pytest

from gateway.call import Call
from gateway.call_plan import CallPlan
from model.wire import SessionRequest
from tests import virtual_time
from tests.gateway.freezing_workers import freezing
from tests.gateway.memory_line import MemoryLeg

GREETING = "Welcome yesterday telephone international customer"


@pytest.mark.parametrize("at", [1.0, 1.3, 1.5])
def test_a_word_that_the_next_worker_says_again_is_written_down_once(at: float) -> None:
    async def scenario() -> Call:
        async with freezing(8, 4) as ((first, _), _, calls):
            leg = MemoryLeg(4)
            call = Call(leg, calls, CallPlan("p", "v", SessionRequest("c1", greeting=GREETING)))
            asyncio.get_running_loop().call_later(at, first.freeze)
            await call.run()
            leg.on_digit = None
            return call

    call = virtual_time.run(scenario())
    (change,) = call.worker_changes
    assert change.missed
    (said,) = (one.text for one in call.transcript.utterances() if one.speaker == "agent")
    assert said.startswith(f"{GREETING} a")
