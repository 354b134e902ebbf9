"""A call that has ended is gone: no cycle holds it, and the sound it kept, until the collector looks at what is old.

That is rare by design (`serving`), and each of these calls would wait for it. The collector is off here.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.desk import Desk
from gateway.sip.settings import SipSettings
from gateway.sip.switchboard import Switchboard
from gateway.twilio.peer import CarrierStream
from tests import virtual_time
from tests.gateway.freezing_workers import call, freezing
from tests.gateway.sip.switchboards import peer
from tests.gateway.test_desk import carrier_of, desk_in, let_go, stream
from tests.gateway.worker_pools import until, worker
from tests.token_worker import TokenEngine

pytestmark = pytest.mark.anyio

KEPT = (
    "gateway.leg.Outcome",
    "gateway.sip.message.",
    "gateway.sip.timers.",
    "gateway.sip.transaction.",
    "gateway.sip.uri.",
)
"""What a carrier may still ask for, and SIP's answers to what it may send again, for half a minute."""
LOOKS = 200


def ours() -> Counter[str]:
    """How many objects there are of each kind that is ours."""
    names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.get_objects())
    return Counter(name for name in names if name.startswith(("gateway.", "model.")) and not name.startswith(KEPT))


@contextmanager
def collector_off() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def leaves_nothing(call: Callable[[str], Awaitable[None]]) -> None:
    """The first call may leave what all others then use."""
    with collector_off():
        await call("CA0")
        before = ours()
        await call("CA1")
        await call("CA2")
        for _ in range(LOOKS):  # not until a time: a look takes long, and on a clock that jumps no time at all
            if not ours() - before:
                break
            await asyncio.sleep(0.1)
        assert dict(ours() - before) == {}


async def over_twilio(desk: Desk) -> None:
    async with carrier_of(desk) as carrier, desk.open():

        async def call(sid: str) -> None:
            async with stream(sid, await carrier.voice(sid)) as socket:
                await socket.recv()
                await socket.send(CarrierStream("MZ1", sid, "AC1").stop())
                await let_go(socket)
            await until(lambda: not desk.active_calls)

        await leaves_nothing(call)


async def test_twilio(tmp_path: Path) -> None:
    await over_twilio(desk_in(tmp_path))


async def test_a_worker(tmp_path: Path) -> None:
    async with worker() as echo:
        await over_twilio(desk_in(tmp_path, embedded_echo=False, workers=echo.url))


async def test_sip(tmp_path: Path) -> None:
    desk = desk_in(tmp_path)
    board = Switchboard(SipSettings.model_validate({"listen": "udp:127.0.0.1:0"}), desk)
    await board.bind()
    async with desk.open():
        board.take_calls()

        async def call(number: str) -> None:
            async with peer(board.endpoint.addresses["udp"][1]) as caller:
                await caller.call()
                await until(lambda: desk.active_calls)
                caller.say("BYE")
                await until(lambda: not desk.active_calls)

        try:
            await leaves_nothing(call)
        finally:
            await board.close()


def test_a_lost_worker_and_nobody_who_takes_the_call() -> None:
    async def scenario() -> None:
        async with freezing(8) as ((lost,), pool, calls):

            async def one(_: str) -> None:
                await pool.workers[0].probe()
                assert (await call(calls, 30, {2: lost.kill})).reason == "worker_lost"
                await lost.revive()

            await leaves_nothing(one)

    virtual_time.run(scenario())


def test_a_caller_who_hangs_up_while_another_worker_opens_the_session() -> None:
    async def scenario() -> None:
        async with freezing(8, 4, engines=[TokenEngine(), TokenEngine(open_seconds=30)]) as ((lost, _), pool, calls):

            async def one(_: str) -> None:
                await pool.workers[0].probe()
                assert (await call(calls, 2.8, {2: lost.kill})).reason == "caller_hangup"
                await lost.revive()

            await leaves_nothing(one)

    virtual_time.run(scenario())
