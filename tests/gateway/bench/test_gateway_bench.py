"""The bench against a real gateway, and its search for the most calls."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gateway.bench.gateway import bench_gateway, find_most
from gateway.bench.measure import DESIGNED_SECONDS, Measured
from gateway.bench.report import Load, Resources, load_report


@pytest.mark.parametrize("worker_process", [False, True])
def test_real_calls_come_back_whole(worker_process: bool, capfd: pytest.CaptureFixture[str]) -> None:
    assert bench_gateway(3, 2.0, worker_process=worker_process, json_output=True) == 0
    report = json.loads(capfd.readouterr().out)
    (load,) = report["loads"]
    assert load["calls"] == 3
    assert load["failed_calls"] == 0
    # A machine that is busy with other tests is no place to judge, only to see that it is measured.
    assert load["lost_per_call_minute"] < 300
    assert -5 < load["added_ms"]["p50"] < 500
    assert load["round_trip_ms"]["p50"] == pytest.approx(load["added_ms"]["p50"] + report["designed_ms"], abs=0.1)
    assert 0 < load["cpu_percent"] < 100
    assert 30 < load["rss_mb"] < 150
    # What writes the recordings is there in both.
    assert load["worker_rss_mb"] > (60 if worker_process else 20)


def test_a_gateway_that_cannot_be_reached_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    assert bench_gateway(1, 1.0, url="http://127.0.0.1:9") == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("No call came up: ")
    assert err.count("\n") == 1


def a_load(calls: int, added: float) -> Load:
    trips = np.full(10, DESIGNED_SECONDS + added)
    seen = Measured(calls, trips, trips - trips[0], calls * 100, 0, 0, 0, np.zeros(1))
    return load_report(seen, calls, [], 10.0, Resources(1.0, 0.0, 0, 0, 0))


@pytest.mark.parametrize("true_most", [0, 3, 100, 217, 1000])
def test_the_most_calls_are_found_by_doubling_and_halving(true_most: int) -> None:
    most, loads = find_most(lambda calls: a_load(calls, 0.019 if calls <= true_most else 0.021), begin=50)
    assert most <= true_most <= most + max(1, round(0.05 * (true_most + 50)))
    assert len(loads) < 15
    assert loads[0].calls == 50
