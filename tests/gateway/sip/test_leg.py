"""What of an agent's sound has left on a call: what was heard, what was not, and what counts as a hole."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.rtp.talk import CUSHION
from gateway.sip.leg import SipLeg
from tests.gateway.sip.switchboards import TONE, gateway, phone

pytestmark = pytest.mark.anyio


async def test_a_hole_in_what_an_agent_says_is_its_own_calls_and_not_the_next_ones() -> None:
    async with asyncio.timeout(20), gateway() as (desk, port), phone() as caller:
        await caller.dial(port)
        before = await desk.legs.get()
        rtp = before.line.rtp
        rtp._ticker.remove(rtp)

        def pass_time(ticks: int) -> None:
            for _ in range(ticks):
                rtp.send_due(0.0)

        await before.play(TONE[:1_280])
        pass_time(CUSHION + 4)
        assert before.lost == 0
        pass_time(30)
        await before.play(TONE[:1_280])
        pass_time(CUSHION + 1)
        assert before.lost == 30 + CUSHION
        after = SipLeg(before.info, before.call, before.line, b"", lambda leg, target: False)
        assert (after.lost, rtp.unheard) == (0, 0)
        pass_time(50)
        await after.play(TONE[:1_280])
        pass_time(CUSHION + 1)
        assert after.lost == 0, "the next agent had not begun to speak"


async def test_what_left_was_heard_whatever_was_said_since_and_what_was_flushed_was_not() -> None:
    async with asyncio.timeout(20), gateway() as (desk, port), phone() as caller:
        await caller.dial(port)
        leg = await desk.legs.get()
        rtp = leg.line.rtp
        rtp._ticker.remove(rtp)
        await leg.play(TONE[:1_280])
        draining = asyncio.create_task(leg.drain(20))
        await asyncio.sleep(0)
        await leg.play(TONE[:1_280])
        for _ in range(CUSHION + 3):
            rtp.send_due(0.0)
        assert not await leg.drain(0.01)
        rtp.send_due(0.0)
        assert await draining
        draining = asyncio.create_task(leg.drain(20))
        await asyncio.sleep(0)
        await leg.flush()
        assert not await draining


async def test_what_had_its_turn_while_the_caller_held_the_call_was_not_heard() -> None:
    async with asyncio.timeout(20), gateway() as (desk, port), phone() as caller:
        await caller.dial(port)
        leg = await desk.legs.get()
        rtp = leg.line.rtp
        rtp._ticker.remove(rtp)
        assert rtp.stream is not None
        plan = rtp.stream.plan
        for sends, told in ((False, []), (True, [1])):
            # It is told of with the next that is played, and once.
            assert await leg.play(TONE[:1_280]) == told
            draining = asyncio.create_task(leg.drain(20))
            await asyncio.sleep(0)
            for tick in range(CUSHION + 4):
                rtp.start(replace(plan, sends=sends or tick != CUSHION + 2))
                rtp.send_due(0.0)
            assert await draining is sends
        assert await leg.play(TONE[:1_280]) == []
        rtp.start(replace(plan, sends=False))
        for _ in range(CUSHION + 4):
            rtp.send_due(0.0)
        assert [await leg.play(TONE[:1_280]) for _ in range(2)] == [[1], []]
        leg.call.on_hold = True
        leg.line.rtp.flush()
        assert not await leg.drain(20)
