"""What the carrier has played, by the marks that it returns."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.audio import encode_ulaw
from gateway.twilio.leg import TwilioLeg
from gateway.twilio.peer import Cleared, Marked, Played
from tests.gateway.twilio.serving import TIMEOUT, listen
from tests.gateway.twilio.test_leg import CUSHION, TONE, call

pytestmark = pytest.mark.anyio


async def test_drain_sends_the_rest_and_waits_for_the_mark() -> None:
    drained: list[float] = []

    async def run(leg: TwilioLeg) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(leg))
            for _ in range(3):
                await leg.play(TONE)
            await leg.drain(TIMEOUT)
            drained.append(time.monotonic())
            await leg.hangup("agent_goodbye")

    async with call(run) as phone:
        for pcm in (CUSHION + TONE, TONE, TONE):
            assert await phone.receive() == Played(encode_ulaw(pcm))
        mark = await phone.receive()
        assert isinstance(mark, Marked)
        await phone.send(phone.line.mark("another"))
        await phone.speak(3)
        assert drained == []
        returned = time.monotonic()
        await phone.send(phone.line.mark(mark.name))
        assert await phone.closed() == (1000, "agent_goodbye")
        assert drained[0] >= returned


@pytest.mark.parametrize("interrupted", [False, True])
async def test_what_was_played_was_heard_unless_a_flush_dropped_it(interrupted: bool) -> None:
    heard: list[bool] = []
    marked = asyncio.Event()

    async def run(leg: TwilioLeg) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(leg))
            await leg.play(TONE)
            draining = tasks.create_task(leg.drain(TIMEOUT))
            await marked.wait()
            if interrupted:
                await leg.flush()
            else:
                await leg.play(TONE)
            heard.append(await draining)
            await leg.hangup("agent_goodbye")

    async with call(run) as phone:
        assert isinstance(await phone.receive(), Played)
        mark = await phone.receive()
        assert isinstance(mark, Marked)
        marked.set()
        assert await phone.receive() == (Cleared() if interrupted else Played(encode_ulaw(TONE)))
        # Of what it was told to drop Twilio returns the marks, too.
        await phone.send(phone.line.mark(mark.name))
        assert await phone.closed() == (1000, "agent_goodbye")
    assert heard == [not interrupted]


async def test_what_was_played_is_heard_though_the_agent_goes_on_and_never_lets_the_line_catch_up() -> None:
    heard: list[bool] = []
    took: asyncio.Queue[None] = asyncio.Queue()

    async def go_on(leg: TwilioLeg) -> None:
        while True:
            await took.get()
            await leg.play(TONE)

    async def run(leg: TwilioLeg) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(leg))
            for _ in range(5):
                await leg.play(TONE)
            speaking = tasks.create_task(go_on(leg))
            heard.append(await leg.drain(TIMEOUT))
            speaking.cancel()
            await leg.hangup("agent_goodbye")

    async with call(run) as phone:
        for _ in range(5):
            assert isinstance(await phone.receive(), Played)
            took.put_nowait(None)
        mark = await phone.receive()
        assert isinstance(mark, Marked)
        await phone.send(phone.line.mark(mark.name))
        assert await phone.closed() == (1000, "agent_goodbye")
    assert heard == [True]


@pytest.mark.parametrize("ending", ["timeout", "stop", "close"])
async def test_drain_never_hangs(ending: str) -> None:
    async def run(leg: TwilioLeg) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(leg))
            await leg.play(TONE)
            await leg.drain(0.05 if ending == "timeout" else 60)
            await leg.hangup("agent_goodbye")

    async with call(run) as phone:
        await phone.receive()
        assert isinstance(await phone.receive(), Marked)
        if ending == "stop":
            await phone.send(phone.line.stop())
        elif ending == "close":
            phone.socket.transport.abort()
        await phone.closed()
