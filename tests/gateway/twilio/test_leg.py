"""The leg on a real socket: the caller in, the agent out, and every way a line ends."""

from __future__ import annotations

import asyncio
import math
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from unittest.mock import ANY

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from gateway.audio import CARRIER_FRAME_BYTES, decode_ulaw, encode_ulaw
from gateway.twilio import leg as leg_module
from gateway.twilio.leg import ENDED_BY_REST, TwilioLeg
from gateway.twilio.peer import CarrierStream, Cleared, Marked, Played, ServerEvent
from gateway.twilio.protocol import PeerError
from gateway.twilio.signature import HEADER, sign
from tests.gateway.twilio.serving import TIMEOUT, Desk, app_for, carrier, listen, serving, settings
from tests.gateway.twilio.test_rest import AUTH, FakeTwilio

pytestmark = pytest.mark.anyio

ULAW = bytes(range(160))
TONE = decode_ulaw(b"\x10\x90" * 320)
"""80 ms, loud, so that the pacer does not drop it as silence when it has to wait."""
CUSHION = bytes(CARRIER_FRAME_BYTES)
"""What the line is given in hand as it begins."""

Run = Callable[[TwilioLeg], Awaitable[None]]


class Phone:
    """The carrier's end of one open stream."""

    def __init__(self, socket: ClientConnection, line: CarrierStream) -> None:
        self.socket = socket
        self.line = line

    async def send(self, *messages: str) -> None:
        for message in messages:
            await self.socket.send(message)

    async def speak(self, frames: int = 1) -> None:
        await self.send(*(self.line.media(ULAW) for _ in range(frames)))

    async def receive(self) -> ServerEvent:
        text = await asyncio.wait_for(self.socket.recv(), TIMEOUT)
        assert isinstance(text, str)
        return self.line.receive_text(text)

    async def closed(self) -> tuple[int | None, str | None]:
        async with asyncio.timeout(TIMEOUT):
            await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def gateway(run: Run, **values: object) -> AsyncIterator[tuple[int, Desk]]:
    desk = Desk(settings(**values), run=run)
    async with serving(app_for(desk)) as port:
        yield port, desk


@asynccontextmanager
async def stream(port: int, call_sid: str = "CA1", auth: str = "", sid: str = "MZ1") -> AsyncIterator[Phone]:
    """A stream that has started, signed where there is something to sign with."""
    form = {"CallSid": call_sid, "From": "+1", "To": "+2"}
    voice = f"http://127.0.0.1:{port}/twilio/voice"
    async with httpx.AsyncClient() as client:
        answer = await client.post(voice, data=form, headers={HEADER: sign(auth, voice, form.items())})
    parameters = {p.attrib["name"]: p.attrib["value"] for p in ET.fromstring(answer.content).iter("Parameter")}
    url = f"ws://127.0.0.1:{port}/twilio/stream"
    async with connect(url, additional_headers={HEADER: sign(auth, url)}) as socket:
        phone = Phone(socket, carrier(call_sid, sid))
        await phone.send(phone.line.connected(), phone.line.start(parameters))
        yield phone


@asynccontextmanager
async def call(run: Run) -> AsyncIterator[Phone]:
    """One call; leaving waits until it has ended."""
    async with gateway(run) as (port, desk):
        async with stream(port) as phone:
            yield phone
        await asyncio.wait_for(desk.finished.wait(), TIMEOUT)


async def test_the_caller_is_heard_to_the_sample_until_stop() -> None:
    heard: list[bytes] = []
    legs: list[TwilioLeg] = []

    async def run(leg: TwilioLeg) -> None:
        legs.append(leg)
        await leg.listen(heard.append)
        await leg.hangup("caller_hangup")

    async with call(run) as phone:
        await phone.speak(2)
        await phone.send('{"event":"news"}', phone.line.dtmf("4"), phone.line.dtmf("2"))
        phone.line.skip(3)
        await phone.speak()
        await phone.send(phone.line.stop())
        assert await phone.closed() == (1000, "caller_hangup")
    assert heard == [decode_ulaw(ULAW)] * 3
    counters = legs[0].counters
    assert (counters.media, counters.missing, counters.unknown) == (3, 3, 1)
    assert list(legs[0].digits) == ["4", "2"]


async def test_keys_are_told_as_they_come() -> None:
    pressed: list[str] = []

    async def run(leg: TwilioLeg) -> None:
        leg.on_digit = pressed.append
        await listen(leg)

    async with call(run) as phone:
        await phone.send(*(phone.line.dtmf(digit) for digit in "0123456789*#"), phone.line.stop())
    assert "".join(pressed) == "0123456789*#"


async def test_a_socket_that_dies_in_the_middle_of_a_message_ends_the_frames() -> None:
    heard: list[bytes] = []
    ended = asyncio.Event()

    async def run(leg: TwilioLeg) -> None:
        await leg.listen(heard.append)
        ended.set()
        # The call goes on for a moment; a line that is down takes everything without a word.
        await leg.play(TONE)
        await leg.flush()
        await leg.drain(TIMEOUT)
        await leg.hangup("caller_hangup")
        await leg.hangup("failed")
        await leg.listen(heard.append)

    async with call(run) as phone:
        await phone.speak()
        phone.socket.transport.write(b"\x81\xfe\x01\x5e" + b"\0\0\0\0" + b'{"event":"media","med')
        phone.socket.transport.close()
        await asyncio.wait_for(ended.wait(), TIMEOUT)
    assert len(heard) == 1


async def test_the_agent_is_sent_as_one_message_a_frame_at_once() -> None:
    async def run(leg: TwilioLeg) -> None:
        await leg.play(TONE)
        await listen(leg)

    async with call(run) as phone:
        assert await phone.receive() == Played(encode_ulaw(CUSHION + TONE))
        await phone.send(phone.line.stop())


async def test_a_burst_of_the_agent_leaves_in_time_and_in_order() -> None:
    loud = [decode_ulaw(bytes([0x10 + i, 0x90 + i]) * 320) for i in range(4)]
    began: list[float] = []

    async def run(leg: TwilioLeg) -> None:
        began.append(time.monotonic())
        for pcm in loud:
            await leg.play(pcm)
        await listen(leg)

    async with call(run) as phone:
        # The caller's side sends nothing meanwhile: what waits must not depend on it.
        for pcm in (CUSHION + loud[0], *loud[1:]):
            assert await phone.receive() == Played(encode_ulaw(pcm))
        # It may leave when 220 ms of what went before were heard, the cushion's 20 among them.
        assert time.monotonic() - began[0] >= 0.21
        await phone.send(phone.line.stop())


async def test_a_burst_is_heard_or_counted_as_lost_to_the_frame() -> None:
    legs: list[TwilioLeg] = []
    told: list[int] = []

    async def run(leg: TwilioLeg) -> None:
        legs.append(leg)
        for _ in range(7):
            told.extend(await leg.play(TONE))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(leg))
            await leg.drain(TIMEOUT)
            await leg.hangup("agent_goodbye")

    async with call(run) as phone:
        heard = bytearray()
        while isinstance(event := await phone.receive(), Played):
            heard += event.payload
        assert isinstance(event, Marked)
        await phone.send(phone.line.mark(event.name))
        await phone.closed()
    assert legs[0].lost > 0
    assert len(heard) // 160 - 1 + legs[0].lost == 7 * 4
    assert set(told) == {5}
    assert 4 * len(told) == legs[0].pacer.dropped


@pytest.mark.parametrize("ending", ["stop", "hangup"])
async def test_what_waits_when_the_line_goes_down_is_neither_sent_nor_lost(ending: str) -> None:
    timers: list[object] = []
    waiting: list[float] = []

    async def run(leg: TwilioLeg) -> None:
        for _ in range(4):
            await leg.play(TONE)
        timers.append(leg._timer)
        await (leg.hangup("agent_goodbye") if ending == "hangup" else listen(leg))
        timers.append(leg._timer)
        waiting.append(leg.pacer.unheard(math.inf))
        for _ in range(10):
            await leg.play(TONE)
        waiting.append(leg.pacer.unheard(math.inf))
        timers.append(leg._timer)
        waiting.append(leg.lost)

    async with call(run) as phone:
        if ending == "stop":
            await phone.send(phone.line.stop())
        await phone.closed()
    assert timers == [ANY, None, None]
    assert timers[0] is not None
    assert waiting[0] == waiting[1] > 0
    assert waiting[2] == 0


async def test_flush_drops_what_waits_and_tells_the_carrier_to() -> None:
    flushed = asyncio.Event()

    async def run(leg: TwilioLeg) -> None:
        for _ in range(3):
            await leg.play(TONE)
        await leg.flush()
        flushed.set()
        await leg.play(TONE)
        await listen(leg)

    async with call(run) as phone:
        assert await phone.receive() == Played(encode_ulaw(CUSHION + TONE))
        assert await phone.receive() == Cleared()
        # The carrier has been told to drop what it held, so the next frame need not wait.
        assert await phone.receive() == Played(encode_ulaw(CUSHION + TONE))
        await phone.send(phone.line.stop())


async def test_hangup_ends_the_frames_of_another_task() -> None:
    async def run(leg: TwilioLeg) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(leg))
            await leg.transfer("+15557")
            await leg.hangup("transfer")
        assert leg.transfer_target == "+15557"

    async with call(run) as phone:
        assert await phone.closed() == (1000, "transfer")


async def test_a_flood_ends_its_own_call_and_no_other() -> None:
    legs: list[TwilioLeg] = []
    faults: list[str] = []

    async def run(leg: TwilioLeg) -> None:
        legs.append(leg)
        try:
            await listen(leg)
        except PeerError as error:
            faults.append(str(error))
            await leg.hangup("protocol_error")

    async with gateway(run) as (port, _), stream(port) as good, stream(port, "CA2") as bad:
        await good.speak()
        await bad.speak(1_000)
        assert await bad.closed() == (1008, "media came many times faster than real time")
        await good.speak()
        await good.send(good.line.stop())
        assert await good.closed() == (1000, "caller_hangup")
    assert len(faults) == 1
    by_sid = {leg.info.carrier_call_id: leg for leg in legs}
    assert by_sid["CA1"].counters.media == 2
    assert by_sid["CA1"].flood.dropped == 0
    assert by_sid["CA2"].flood.dropped == 501


async def test_a_line_that_is_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leg_module, "MAX_BACKLOG", 1_000)
    faults: list[str] = []
    stalled = asyncio.Event()

    async def hear(leg: TwilioLeg) -> None:
        try:
            await listen(leg)
        except PeerError as error:
            faults.append(str(error))

    async def run(leg: TwilioLeg) -> None:
        async with asyncio.TaskGroup() as tasks:
            hearing = tasks.create_task(hear(leg))
            while not leg.down:
                await leg.flush()
                await asyncio.sleep(0)
            stalled.set()
            await hearing
        await leg.hangup("protocol_error")

    async with gateway(run) as (port, desk), stream(port, sid="M" * 128) as phone:
        phone.socket.transport.pause_reading()
        await asyncio.wait_for(stalled.wait(), 4 * TIMEOUT)
        await phone.speak(2)
        await asyncio.wait_for(desk.finished.wait(), TIMEOUT)
        phone.socket.transport.abort()
    assert faults == ["the line does not take what it is sent"]


@pytest.mark.parametrize("reason", [*sorted(ENDED_BY_REST), "agent_goodbye", "transfer", "worker_lost"])
async def test_a_call_whose_stream_may_be_dead_is_ended_by_rest(reason: str) -> None:
    async def run(leg: TwilioLeg) -> None:
        await leg.hangup(reason)
        await leg.hangup(reason)

    twilio = FakeTwilio()
    async with (
        serving(twilio) as api,
        gateway(run, twilio_auth_token=AUTH, twilio_account_sid="AC1", twilio_api_url=f"http://127.0.0.1:{api}") as (
            port,
            desk,
        ),
    ):
        async with stream(port, auth=AUTH) as phone:
            assert await phone.closed() == (1000, reason)
        await asyncio.wait_for(desk.finished.wait(), TIMEOUT)
    ended = ["/2010-04-01/Accounts/AC1/Calls/CA1.json"] if reason in ENDED_BY_REST else []
    assert [request.path for request in twilio.requests] == ended
