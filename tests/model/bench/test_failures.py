"""A size whose kernels fail costs itself, a device that fails what comes after it: the rest is measured and shown."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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


@pytest.fixture(scope="module")
def one() -> Configuration:
    """One that was measured."""
    sweep = sweep_of(1)
    sweep.run()
    return sweep.found[0]


@pytest.fixture
def measured(one: Configuration, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, Exception]], None]:
    """Lets sizes fail with an error each while they are measured; what is found of others is known."""

    def fail(errors: Mapping[int, Exception]) -> None:
        def measure(self: Sweep, stepper: Stepper, slots: int, costs: Any) -> Configuration:
            if slots in errors:
                raise errors[slots]
            return replace(one, slots=slots)

        monkeypatch.setattr(Sweep, "_measure", measure)

    return fail


def order_of(*slots: int) -> Order:
    return Order("tiny", "cpu", slots, "fp8", seconds=0.1, beside=())


def sweep_of(*slots: int) -> Sweep:
    return Sweep(order_of(*slots), torch.device("cpu"), lambda line: None, lambda found: None)


def test_one_whose_kernels_fail_is_skipped(
    measured: Callable[[Mapping[int, Exception]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it is the largest the next smaller engine is built; it has no step of that size."""
    measured({})
    monkeypatch.setattr(configurations, "Stepper", Failing)
    monkeypatch.setattr(Failing, "size", 3)
    monkeypatch.setattr(Failing, "error", kernel_error("PTXASError"), raising=False)
    assert engine.bench_engine(order_of(1, 3), json_output=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["slots"] for one in shown["configurations"]] == [1]
    assert shown["skipped"] == [{"slots": 3, "reason": "3 slots: PTXASError: PTXAS error: ptxas fatal"}]
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("error", ["OutOfResources", "PTXASError", "RuntimeError"])
def test_whatever_a_kernel_fails_with_costs_its_size(error: str) -> None:
    failed, sweep = kernel_error(error), sweep_of(1, 3)
    assert isinstance(failed, configurations._failures())
    sweep._fail(failed, [1, 3], [1, 3])
    assert [*sweep.skipped] == [3]
    assert sweep.skipped[3].startswith(f"3 slots: {error}: ")
    assert "\n" not in sweep.skipped[3]
    assert not sweep.lost


def test_one_that_fails_while_it_is_measured_is_the_one_that_is_skipped(
    measured: Callable[[Mapping[int, Exception]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    measured({1: kernel_error("OutOfResources")})
    assert engine.bench_engine(order_of(1, 2), json_output=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["slots"] for one in shown["configurations"]] == [2]
    assert [one["slots"] for one in shown["skipped"]] == [1]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_device_that_fails_ends_the_measuring_and_what_was_found_is_shown(
    hangs: bool,
    measured: Callable[[Mapping[int, Exception]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as an illegal access: whatever is asked of the device afterwards fails, too. One that hangs is asked
    nothing: it would be waited for."""
    said = "the device does not go on"
    error = DeviceHung(said) if hangs else RuntimeError(said)
    asked: list[torch.device] = []

    def device_error(device: torch.device) -> str:
        asked.append(device)
        return said

    measured({2: error, 3: AssertionError("nothing comes after it")})
    monkeypatch.setattr(configurations, "device_error", device_error)
    assert engine.bench_engine(order_of(1, 2, 3), json_output=True) == 1
    told = capsys.readouterr()
    shown = json.loads(told.out)
    assert [one["slots"] for one in shown["configurations"]] == [1]
    assert [one["reason"] for one in shown["skipped"]] == [
        f"2 slots: {type(error).__name__}: {said}",
        f"3 slots: the device failed before: {said}",
    ]
    assert len(asked) == (not hangs)
    assert gc.get_freeze_count() == 0
    assert told.err.splitlines()[-1] == f"the device failed, so that not all was measured: {said}"


@pytest.mark.parametrize(
    ("errors", "built"),
    [
        ("same same same", [5, 4, 2]),
        ("same same other other", [5, 4, 2, 3]),
        ("same other same", [5, 4, 3, 2]),
        ("other memory other", [5, 4, 3, 2]),
    ],
)
def test_of_engines_that_cannot_be_built_for_one_reason_the_two_largest_and_the_smallest_are_tried(
    errors: str, built: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"memory": "CUDA out of memory", "same": "shared memory\n", "other": "registers\n"}
    reasons = [*errors.split(), "memory"]
    tried: list[int] = []

    def build(models: Any, slots: int, **options: Any) -> Stepper:
        tried.append(slots)
        raise RuntimeError(said[reasons[len(tried) - 1]] + f"for {slots} slots")

    monkeypatch.setattr(configurations, "Stepper", build)
    sweep = sweep_of(1, 2, 3, 4)
    with pytest.raises(CannotMeasure, match=r"nothing could be measured: 1 slot"):
        sweep.run()
    assert tried == built
    assert sorted(sweep.skipped) == [1, 2, 3, 4]
    if len(built) == 3:
        assert sweep.skipped[3] == "3 slots: RuntimeError: shared memory"
        assert sweep.skipped[1] == "1 slot: RuntimeError: shared memory"
        assert sweep.skipped[2] == (
            "2 slots: larger engines and the smallest could not be built before: RuntimeError: shared memory"
        )


def test_where_only_large_engines_cannot_be_built_all_smaller_ones_are_measured(
    measured: Callable[[Mapping[int, Exception]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that does not fit for many rows does for few: the smallest tells, and the others are tried again."""
    measured({})
    tried: list[int] = []

    def build(self: Sweep, models: Any, left: Sequence[int]) -> tuple[None, Mapping[int, float]]:
        tried.append(left[-1])
        if left[-1] > 3:
            raise RuntimeError("shared memory")
        return None, dict.fromkeys(range(1, 6), 0.0)

    monkeypatch.setattr(Sweep, "_build", build)
    sweep = sweep_of(1, 2, 3, 4, 5)
    sweep.run()
    assert tried == [5, 4, 1, 3]
    assert [one.slots for one in sweep.found] == [1, 2, 3]
    assert sorted(sweep.skipped) == [4, 5]


def test_where_all_fail_the_reason_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "Stepper", Failing)
    monkeypatch.setattr(Failing, "size", 1)
    monkeypatch.setattr(Failing, "error", kernel_error("OutOfResources"), raising=False)
    assert engine.bench_engine(Order("tiny", "cpu", (1,), "fp8", seconds=0.1), json_output=True) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("nothing could be measured: 1 slot: OutOfResources: ")
