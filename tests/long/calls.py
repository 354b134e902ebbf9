"""Short calls for soak and chaos, as the bench makes them."""

from __future__ import annotations

import asyncio
import time

import httpx

from gateway.bench.child import Gateway
from gateway.bench.line import Line
from gateway.bench.load import LoadOrder, place_call

TOKEN = "0123456789abcdef0123456789abcdef"
NUMBER = "+15550100000"


def order(gateway: Gateway, seed: int = 0) -> LoadOrder:
    return LoadOrder(gateway.url, TOKEN, NUMBER, 1, 1.0, seed)


async def speak(line: Line, seconds: float) -> None:
    """Send the track in real time, until then or until the gateway hangs up."""
    begin = time.monotonic()
    while (now := time.monotonic()) < begin + seconds and not line.closed.done():
        line.send_media(now)
        await asyncio.sleep(max(0.0, begin + 0.02 * line.sent - time.monotonic()))


async def idle(client: httpx.AsyncClient, gateway: Gateway) -> None:
    """Wait until every call is filed and the gateway would take the next one."""
    async with asyncio.timeout(30):
        while True:
            answer = await client.get(f"{gateway.url}/readyz")
            if answer.status_code == 200 and answer.json()["calls"] == 0:
                return
            await asyncio.sleep(0.1)


async def short_call(client: httpx.AsyncClient, gateway: Gateway, number: int, seconds: float) -> Line:
    """One whole call: it must have been answered with sound."""
    line = await place_call(client, order(gateway), number)
    await speak(line, seconds)
    await line.stop()
    assert any(b'"media"' in body for _, body in line.received), f"call {number} heard nothing"
    return line


async def short_calls(gateway: Gateway, first: int, count: int, seconds: float, at_once: int) -> None:
    """Calls in a row, `at_once` of them side by side."""
    numbers = iter(range(first, first + count))

    async def in_a_row(client: httpx.AsyncClient) -> None:
        for number in numbers:
            await short_call(client, gateway, number, seconds)

    async with httpx.AsyncClient(timeout=20) as client, asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(in_a_row(client))
    async with httpx.AsyncClient() as client:
        await idle(client, gateway)
