"""The SIP bench: its arithmetic, and one small measurement for real."""

from __future__ import annotations

import json
from array import array

import pytest

from gateway.bench.sip import bench_sip
from gateway.bench.sip_load import measure_sip


def log(numbers: list[int], times: list[float]) -> tuple[array[float], array[int]]:
    return array("d", times), array("H", numbers)


def test_spacing_is_that_of_packets_in_sequence_and_gaps_are_counted() -> None:
    beat = log([65_534, 65_535, 0, 3], [0.0, 0.02, 0.05, 0.11])
    measured = measure_sip([beat, log([], [])], [], (0.0, 1.0), 10)
    assert sorted(measured.off_beat) == pytest.approx([0.0, 0.01])
    assert (measured.received, measured.missing, measured.silent, measured.calls) == (4, 2, 1, 2)


def test_only_the_window_counts() -> None:
    measured = measure_sip([log([1, 2, 3, 9], [0.0, 0.5, 0.52, 2.0])], [], (0.4, 1.0), 10)
    assert (measured.received, measured.missing) == (2, 0)


def test_ten_calls_for_real(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_sip(calls=10, seconds=2.0, json_output=True) == 0
    load = json.loads(capsys.readouterr().out)
    assert load["failed_calls"] == 0
    assert load["missing"] == 0
    assert 490 < load["packets_per_second"] < 510
    assert load["cpu_percent"] > 0
