"""A size whose kernels fail costs itself, a device that fails what comes after it: the rest is measured and shown."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest
import torch

from model.bench import configurations, engine
from model.bench.configurations import Configuration, Order, Sweep
from model.bench.device import CannotMeasure
from model.engine import Stepper, StepResult
from model.standstill import DeviceHung


class Failing(Stepper):
    """An engine of which steps of `size` rows fail with `error`."""

    size = 0
    error: Exception

    def step(self, slots: Any, pcm: Any) -> StepResult:
        if len(slots) == self.size:
            raise self.error
        return super().step(slots, pcm)


def kernel_error(name: str) -> Exception:
    """Triton's. Not imported before all tests are collected: those of kernels say first how it is to be."""
    errors = pytest.importorskip("triton.runtime.errors")
    made: dict[str, Exception] = {
        "OutOfResources": errors.OutOfResources(300_000, 232_448, "shared memory"),
        "PTXASError": errors.PTXASError("ptxas fatal\n0x01"),
        "RuntimeError": RuntimeError("Triton Error [CUDA]: invalid argument"),
    }
    return made[name]


@pytest.mark.parametrize("error", ["OutOfResources", "PTXASError", "RuntimeError"])
def test_one_whose_kernels_fail_is_skipped(
    error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is the largest the next smaller engine is built; it has no step of that size."""
    monkeypatch.setattr(configurations, "Stepper", Failing)
    monkeypatch.setattr(Failing, "size", 3)
    monkeypatch.setattr(Failing, "error", kernel_error(error), raising=False)
    order = Order("tiny", "cpu", (1, 3), "fp8", seconds=0.1, beside=())
    assert engine.bench_engine(order, json_output=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["slots"] for one in shown["configurations"]] == [1]
    (skipped,) = shown["skipped"]
    assert skipped["slots"] == 3
    assert skipped["reason"].startswith(f"3 slots: {error}: ")
    assert "\n" not in skipped["reason"]
    assert gc.get_freeze_count() == 0


def test_one_that_fails_while_it_is_measured_is_the_one_that_is_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Sweep._measure

    def broken(self: Sweep, stepper: Stepper, slots: int, costs: Any) -> Configuration:
        if slots == 1:
            raise kernel_error("OutOfResources")
        return measure(self, stepper, slots, costs)

    monkeypatch.setattr(Sweep, "_measure", broken)
    order = Order("tiny", "cpu", (1, 2), "fp8", seconds=0.1, beside=())
    assert engine.bench_engine(order, json_output=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["slots"] for one in shown["configurations"]] == [2]
    assert [one["slots"] for one in shown["skipped"]] == [1]


def test_a_device_that_fails_ends_the_measuring_and_what_was_found_is_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an illegal access: whatever is asked of the device afterwards fails, too."""
    said = "CUDA error: an illegal memory access was encountered"
    measure = Sweep._measure

    def broken(self: Sweep, stepper: Stepper, slots: int, costs: Any) -> Configuration:
        if slots == 2:
            monkeypatch.setattr(configurations, "device_error", lambda device: said)
            raise RuntimeError(said)
        assert slots == 1, "nothing comes after it"
        return measure(self, stepper, slots, costs)

    monkeypatch.setattr(Sweep, "_measure", broken)
    order = Order("tiny", "cpu", (1, 2, 3), "fp8", seconds=0.1, beside=())
    assert engine.bench_engine(order, json_output=True) == 1
    told = capsys.readouterr()
    shown = json.loads(told.out)
    assert [one["slots"] for one in shown["configurations"]] == [1]
    assert [one["reason"] for one in shown["skipped"]] == [
        f"2 slots: RuntimeError: {said}",
        f"3 slots: the device failed before: {said}",
    ]
    assert gc.get_freeze_count() == 0
    assert told.err.splitlines()[-1] == f"the device failed, so that not all was measured: {said}"


def test_a_device_that_hangs_ends_the_measuring_and_is_asked_no_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "the device does not end the work that it was given beside its steps, for 10 s; the engine ends"
    measure = Sweep._measure

    def broken(self: Sweep, stepper: Stepper, slots: int, costs: Any) -> Configuration:
        if slots == 2:
            raise DeviceHung(said)
        return measure(self, stepper, slots, costs)

    def asked(device: torch.device) -> str:
        raise AssertionError("it would be waited for")

    monkeypatch.setattr(Sweep, "_measure", broken)
    monkeypatch.setattr(configurations, "device_error", asked)
    order = Order("tiny", "cpu", (1, 2, 3), "fp8", seconds=0.1, beside=())
    assert engine.bench_engine(order, json_output=True) == 1
    told = capsys.readouterr()
    shown = json.loads(told.out)
    assert [one["slots"] for one in shown["configurations"]] == [1]
    assert [one["reason"] for one in shown["skipped"]] == [
        f"2 slots: DeviceHung: {said}",
        f"3 slots: the device failed before: {said}",
    ]
    assert told.err.splitlines()[-1] == f"the device failed, so that not all was measured: {said}"


@pytest.mark.parametrize(
    ("errors", "built"),
    [("same same", [5, 4]), ("same other same", [5, 4, 3, 2]), ("other memory other", [5, 4, 3, 2])],
)
def test_of_engines_that_cannot_be_built_for_one_reason_two_are_tried(
    errors: str, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"memory": "CUDA out of memory", "same": "shared memory\n", "other": "registers\n"}
    reasons = [*errors.split(), "memory"]
    tried: list[int] = []

    def build(models: Any, slots: int, **options: Any) -> Stepper:
        tried.append(slots)
        raise RuntimeError(said[reasons[len(tried) - 1]] + f"for {slots} slots")

    monkeypatch.setattr(configurations, "Stepper", build)
    order = Order("tiny", "cpu", (1, 2, 3, 4), "fp8", seconds=0.1, beside=())
    sweep = Sweep(order, torch.device("cpu"), lambda line: None, lambda found: None)
    with pytest.raises(CannotMeasure, match=r"nothing could be measured: 1 slot"):
        sweep.run()
    assert tried == built
    assert sorted(sweep.skipped) == [1, 2, 3, 4]
    if len(built) == 2:
        assert sweep.skipped[3] == "3 slots: RuntimeError: shared memory"
        assert sweep.skipped[1] == "1 slot: two larger engines could not be built before: RuntimeError: shared memory"


def test_where_all_fail_the_reason_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "Stepper", Failing)
    monkeypatch.setattr(Failing, "size", 1)
    monkeypatch.setattr(Failing, "error", kernel_error("OutOfResources"), raising=False)
    assert engine.bench_engine(Order("tiny", "cpu", (1,), "fp8", seconds=0.1), json_output=True) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("nothing could be measured: 1 slot: OutOfResources: ")
