"""A gateway on one core under load, as `callplex bench gateway` measures it."""

from __future__ import annotations

import json

import pytest

from gateway.bench.gateway import bench_gateway

pytestmark = pytest.mark.long

CALLS = 200


@pytest.mark.parametrize("worker_process", [False, True])
def test_two_hundred_calls_lose_nothing(capsys: pytest.CaptureFixture[str], worker_process: bool) -> None:
    """Losses and processor time, which a busy machine distorts less than latency."""
    assert bench_gateway(CALLS, 20, json_output=True, worker_process=worker_process) == 0
    (load,) = json.loads(capsys.readouterr().out)["loads"]
    assert load["failed_calls"] == 0
    assert load["lost_per_call_minute"] < 1
    assert load["cpu_percent_per_call"] < 0.45
    assert load["added_ms"]["p50"] < 20
