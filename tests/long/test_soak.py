"""Hundreds of calls in a row leave nothing behind: memory stays flat, in the gateway and in the worker."""

from __future__ import annotations

import pytest

from gateway.bench.child import Gateway, running_gateway

from .calls import TOKEN, short_calls

pytestmark = [pytest.mark.long, pytest.mark.anyio]

CALLS = 500
MEGABYTE = 1_000_000


async def growth(gateway: Gateway, seconds: float, at_once: int) -> tuple[float, float]:
    """Megabytes that gateway and worker grew by from the 100th call to the 500th."""
    await short_calls(gateway, 0, 100, seconds, at_once)
    before = gateway.usage()
    await short_calls(gateway, 100, CALLS - 100, seconds, at_once)
    after = gateway.usage()
    return (
        (after.rss_bytes - before.rss_bytes) / MEGABYTE,
        (after.child_rss_bytes - before.child_rss_bytes) / MEGABYTE,
    )


async def test_the_gateway_stays_flat() -> None:
    settings = {"CALLPLEX_TWILIO_AUTH_TOKEN": TOKEN, "CALLPLEX_EMBEDDED_ECHO": "1"}
    with running_gateway(settings, None) as gateway:
        grown, _ = await growth(gateway, seconds=0.6, at_once=8)
        assert gateway.usage().rss_bytes < 150 * MEGABYTE
        assert len(list(gateway.data.glob("calls/*/transcript.json"))) == CALLS
    assert grown < 5


async def test_the_rehearsal_worker_stays_flat() -> None:
    settings = {"CALLPLEX_TWILIO_AUTH_TOKEN": TOKEN, "CALLPLEX_ENGINE": "rehearsal", "CALLPLEX_WORKER_CAPACITY": "8"}
    with running_gateway(settings, None) as gateway:
        gateway_grown, worker_grown = await growth(gateway, seconds=2.0, at_once=4)
        assert gateway.usage().child_rss_bytes < 700 * MEGABYTE
    assert gateway_grown < 5
    assert worker_grown < 25
