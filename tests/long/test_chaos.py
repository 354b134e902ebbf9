"""A worker that is killed in the middle of calls: they end as lost, and the next call is answered."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import httpx
import pytest

from gateway.bench.child import Gateway, running_gateway
from gateway.bench.line import Line
from gateway.bench.load import place_call
from gateway.twilio.signature import HEADER, sign

from .calls import TOKEN, idle, order, short_call, speak

pytestmark = [pytest.mark.long, pytest.mark.anyio]

CALLS = 4


async def heard_something(line: Line) -> None:
    async with asyncio.timeout(10):
        while not line.received:
            await speak(line, 0.1)


async def what_comes_next(client: httpx.AsyncClient, gateway: Gateway, call_sid: str) -> str:
    url = f"{gateway.url}/twilio/after"
    form = {"CallSid": call_sid, "To": "+15550100000"}
    answer = await client.post(url, data=form, headers={HEADER: sign(TOKEN, url, form.items())})
    assert answer.status_code == 200
    return answer.text


def end_reasons(data: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["end_reason"] for path in data.glob("calls/*/transcript.json"))


@pytest.mark.parametrize("engine", ["echo", "rehearsal"])
async def test_killed_workers_cost_only_their_calls(engine: str) -> None:
    settings = {"CALLPLEX_TWILIO_AUTH_TOKEN": TOKEN, "CALLPLEX_ENGINE": engine, "CALLPLEX_WORKER_CAPACITY": "8"}
    with running_gateway(settings, None) as gateway:
        async with httpx.AsyncClient(timeout=20) as client:
            for round_ in range(3):
                lines = [await place_call(client, order(gateway), 10 * round_ + number) for number in range(CALLS)]
                async with asyncio.TaskGroup() as tasks:
                    for line in lines:
                        tasks.create_task(heard_something(line))
                (worker,) = gateway.children()
                worker.send_signal(signal.SIGKILL)
                async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
                    for line in lines:
                        tasks.create_task(speak(line, 9.0))
                assert all(line.closed.done() for line in lines)
                assert "<Say>" in await what_comes_next(client, gateway, lines[0].call_sid)
                await idle(client, gateway)
            await short_call(client, gateway, 99, 2.0)
            await idle(client, gateway)
        assert end_reasons(gateway.data) == ["caller_hangup"] + ["worker_lost"] * 3 * CALLS
