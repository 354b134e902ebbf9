"""Memory: what is reckoned covers what an engine holds, and too little of it costs one configuration, not all."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
import torch

from model.bench import configurations, engine
from model.bench.configurations import Configuration, Order, Sweep
from model.bench.memory import out_of_memory, tensor_bytes
from model.bench.models import Size, random_models, sizes_of
from model.bench.talk import CallEnded, Talk
from model.capacity import engine_bytes, fixed_bytes, kv_item, slot_bytes
from model.engine import Stepper, StepResult
from model.kv_cache import DTYPES, KVType

LACK = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 139.80 GiB"


@pytest.mark.parametrize("kv_dtype", ["bf16", "fp8"])
@pytest.mark.parametrize(("size", "device"), [("full", "meta"), ("tiny", "cpu")])
def test_what_is_reckoned_is_at_least_what_an_engine_holds(size: Size, device: str, kv_dtype: KVType) -> None:
    """Of the published sizes, too: tensors without memory have sizes as well."""
    sizes = sizes_of(size)
    slot = slot_bytes(sizes.lm, sizes.mimi, kv_item(kv_dtype, sizes.lm.transformer.head_dim))
    held = {}
    for slots in (1, 64, 150):
        models = random_models(sizes, torch.device(device))
        weights = tensor_bytes([models], device)
        held[slots] = tensor_bytes([Stepper(models, slots, kv_dtype=DTYPES[kv_dtype])], device)
        assert weights < held[slots] <= engine_bytes(slots, fixed_bytes(weights, "cpu"), slot)
    assert held[150] - held[64] <= (150 - 64) * slot
    if size == "full":
        assert held[150] - held[64] > 0.99 * (150 - 64) * slot, "and no more than is needed"


def test_a_storage_is_counted_once_however_it_is_held() -> None:
    tensor = torch.zeros(100)
    elsewhere = torch.zeros(7, device="meta")
    holders = [{"whole": tensor, "part": [tensor[:10], (tensor.view(10, 10), elsewhere)]}, tensor]
    assert tensor_bytes(holders, "cpu") == 400
    assert tensor_bytes(holders, "meta") == 28


def test_too_little_memory_is_known_by_many_names() -> None:
    assert out_of_memory(torch.OutOfMemoryError(LACK)) == "CUDA out of memory. Tried to allocate 2.00 GiB."
    assert out_of_memory(RuntimeError("Triton Error [CUDA]: out of memory"))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    late = RuntimeError("the capture was invalidated")
    late.__context__ = torch.OutOfMemoryError(LACK)
    assert out_of_memory(late).startswith("CUDA out of memory")


class Greedy(Stepper):
    """An engine whose memory suffices for `most` slots: whether it is built, or steps."""

    most = 0
    where = ""
    alive: weakref.WeakSet[Greedy]

    def __init__(self, models: Any, slots: int, **options: Any) -> None:
        assert not self.alive, "the memory of the one before is free"
        super().__init__(models, slots, **options)
        self.alive.add(self)
        if slots > self.most and self.where == "built":
            raise torch.OutOfMemoryError(LACK)

    def step(self, slots: Any, pcm: Any) -> StepResult:
        if self.slots > self.most and self.where == "steps":
            raise torch.OutOfMemoryError(LACK)
        return super().step(slots, pcm)


@pytest.fixture
def greedy(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> type[Greedy]:
    monkeypatch.setattr(configurations, "Stepper", Greedy)
    monkeypatch.setattr(Greedy, "most", 3)
    monkeypatch.setattr(Greedy, "where", request.param)
    monkeypatch.setattr(Greedy, "alive", weakref.WeakSet(), raising=False)
    return Greedy


@pytest.mark.parametrize("greedy", ["built", "steps"], indirect=True)
def test_where_memory_does_not_suffice_after_all_the_next_smaller_engine_is_built(
    greedy: type[Greedy], capsys: pytest.CaptureFixture[str]
) -> None:
    order = Order("tiny", "cpu", (2, 4, 8), "fp8", seconds=0.1, beside=())
    assert engine.bench_engine(order, json_output=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [one["slots"] for one in shown["configurations"]] == [2]
    assert [one["memory"]["slots"] for one in shown["configurations"]] == [3]
    assert [one["slots"] for one in shown["skipped"]] == [4, 8]
    for one in shown["skipped"]:
        assert one["reason"].startswith(f"{one['slots']} slots with fp8 keys and values need more memory than there")
        assert one["reason"].endswith("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert not greedy.alive
    assert gc.get_freeze_count() == 0


@pytest.mark.parametrize("greedy", ["built"], indirect=True)
def test_where_no_engine_can_be_built_that_is_said(greedy: type[Greedy], capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.bench_engine(Order("tiny", "cpu", (4, 8), "fp8", seconds=0.1), json_output=True) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].startswith("nothing fits: 4 slots with fp8 keys and values need more memory")


def test_what_was_measured_survives_what_comes_after(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Sweep._measure

    def broken(self: Sweep, stepper: Stepper, slots: int, costs: Any) -> Configuration:
        if slots == 2:
            raise ZeroDivisionError
        return measure(self, stepper, slots, costs)

    monkeypatch.setattr(Sweep, "_measure", broken)
    with pytest.raises(ZeroDivisionError):
        engine.bench_engine(Order("tiny", "cpu", (1, 2), "fp8", seconds=0.1, beside=()), json_output=True)
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = (line for line in said.err.splitlines() if line.startswith("{"))
    assert json.loads(line)["slots"] == 1


def test_one_whose_calls_are_ended_is_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Talk.run

    def broken(self: Talk, *arguments: Any) -> Any:
        if self.slots == 1:
            raise CallEnded("the engine ended a call")
        return run(self, *arguments)

    monkeypatch.setattr(Talk, "run", broken)
    order = Order("tiny", "cpu", (1, 2), "fp8", seconds=0.1, beside=())
    assert engine.bench_engine(order, json_output=True) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["skipped"] == [{"slots": 1, "reason": "1 slot: the engine ended a call"}]
    assert [one["slots"] for one in shown["configurations"]] == [2]
