"""The engine's benchmark, run for real on a model small enough for a CPU."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gateway.cli import app
from model.bench import configurations, drive, engine, floor, models
from model.bench.configurations import Order
from model.bench.drive import latency
from model.engine import Stepper, StepResult
from model.fp8 import E4M3


def test_a_small_sweep_measures_everything(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order("tiny", "cpu", (2,), "fp8", seconds=0.5, beside=(1,))
    assert engine.bench_engine(order, json_output=True) == 0
    said = capsys.readouterr()
    shown = json.loads(said.out)
    assert {"date", "torch", "device_name", "kv_dtype", "weights_dtype", "size", "commit", "python"} <= shown.keys()
    (found,) = shown["configurations"]
    assert [json.loads(line) for line in said.err.splitlines() if line.startswith("{")] == [found]
    assert found["slots"] == 2
    assert found["lockstep"]["frames"] >= 40
    assert len(found["first_steps"]) == 5
    assert found["random_phases"]["frames"] in (12, 13, 14)  # half a second, two callers
    assert found["repriming"]["latency"]["frames"] in (12, 13, 14)
    assert found["repriming"]["took"] == [], "the first would come later"
    assert found["repriming"]["every"] == pytest.approx(48 * 0.08 / 2)
    assert set(found["parts"]) == {"encode", "temporal", "depformer", "decode"}
    assert all(part["milliseconds"] > 0 and part["launches"] > 0 for part in found["parts"].values())
    assert found["ratio"] > 1
    assert found["beside"] == {}
    assert 128 << 20 < found["memory_bytes"] < 300 << 20  # what the engine reckons for a CPU, and a tiny model
    seen = found["memory"]
    assert seen["slots"] == 3
    assert 0 < seen["tensors"] < seen["reckoned"]
    assert seen["peak_allocated"] is seen["peak_reserved"] is seen["device"] is None
    assert found["lockstep"]["steps"] * 2 == found["lockstep"]["frames"]
    assert found["seconds"] == pytest.approx(sum(found["phases"].values()))
    assert found["seconds"] + sum(shown["start_seconds"].values()) <= shown["seconds"] + 0.1
    for name in ("lockstep", "random_phases", "lockstep_10s"):
        assert 0 < found[name]["p50"] <= found[name]["p99"] <= found[name]["p999"] <= found[name]["max"]


def test_of_which_configurations_something_is_measured() -> None:
    assert engine.some_of("all") is None
    assert engine.some_of("none") == ()
    assert engine.some_of("64,128") == (64, 128)
    with pytest.raises(ValueError, match="1 or more"):
        engine.some_of("0")


def test_one_configuration_alone_may_run_for_longer() -> None:
    order = Order("tiny", "cpu", (1, 2), "bf16", seconds=1.0, steady=300.0, steady_for=(2,))
    assert [order.seconds_at_random(slots) for slots in (1, 2)] == [1.0, 300.0]
    assert replace(order, steady_for=None).seconds_at_random(1) == 300.0
    assert replace(order, steady=0.0).seconds_at_random(2) == 1.0


@pytest.mark.long
def test_work_beside_the_calls_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order("tiny", "cpu", (2,), "bf16", "fp8", seconds=3.0)
    assert engine.bench_engine(order, json_output=True) == 0
    (found,) = json.loads(capsys.readouterr().out)["configurations"]
    kinds = {"open_from_cache", "uncached_prompt", "resume_fast", "resume_deep", "reprime_each_second", "resume_all"}
    assert set(found["beside"]) == kinds
    resumed = found["beside"].pop("resume_all")
    assert len(resumed["took"]) == 2
    assert resumed["others"] is None
    assert all(len(one["took"]) + len(one["refused"]) == 2 for one in found["beside"].values())
    assert all(one["frames"] > 70 for one in found["beside"].values())
    assert all(one["others"] is None or one["others"]["frames"] < one["frames"] for one in found["beside"].values())


def test_what_does_not_fit_is_skipped_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    order = Order("tiny", "cpu", (1, 10_000_000), "float32", seconds=0.3, beside=())
    assert engine.bench_engine(order) == 0
    lines = capsys.readouterr().out.splitlines()
    skipped, step, first = lines[:3]
    assert skipped.startswith("skipped: 10000000 slots with float32 keys and values need ")
    assert step.startswith("a step takes 1: ")
    assert first.startswith("1 slot: lockstep ")
    assert re.search(r"\(p50 / p99 / p99\.9 / max\) of \d+ steps", first)
    assert lines[-2].startswith("  measured in ")
    assert lines[-1].startswith("all of it took ")


def test_where_nothing_fits_the_reason_is_said_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configurations, "free_bytes", lambda device: 0)
    assert engine.bench_engine(Order("tiny", "cpu", (1, 8), "float32", seconds=0.5)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("nothing fits: 1 slot with float32 keys and values needs 0.1 GB, and 0.0 GB are free\n")
    assert said.err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda_device_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.bench_engine(Order("full", "cuda", (1,), "bf16")) == 1
    assert "--device cpu --size tiny" in capsys.readouterr().err


def test_a_step_reads_the_window_and_the_weights_of_one_voice() -> None:
    sizes = models.sizes_of("tiny")
    stepper = Stepper(models.random_models(sizes, torch.device("cpu")), 4, kv_dtype=E4M3)
    models.stand(stepper, 4, 10 * sizes.lm.transformer.context)
    three, one = (floor.nbytes(floor.step_reads(stepper, slots)) for slots in (3, 1))
    main, codec = sizes.lm.transformer, sizes.mimi.transformer
    shown = main.context - 1  # in the reference's window
    ring = 2 * main.layers * shown * (main.dim + main.heads * 4)
    both_sides = 2 * 2 * codec.layers * (codec.context + codec.step - 1) * codec.dim * 4
    assert three - one == 2 * (ring + both_sides)
    depth = sizes.lm.depformer
    step = depth.layers * (4 * depth.dim**2 + 3 * depth.dim * depth.hidden)
    step += depth.dim * main.dim + sizes.lm.card * depth.dim
    layers = main.layers * (4 * main.dim**2 + 3 * main.dim * main.hidden) + main.dim * sizes.lm.text_card
    mimi = sum(t.nbytes for t in stepper.models.mimi.state_dict().values() if t.ndim > 1)
    assert one == 4 * (8 * step + layers) + mimi + ring + both_sides + _gains(main.layers, main.dim)


def _gains(layers: int, dim: int) -> int:
    """Norms' gains of the main transformer are kept as `[1, 1, D]`."""
    return 4 * layers * 2 * dim


def test_latency_counts_what_is_late() -> None:
    found = latency([0.01] * 98 + [0.081, 0.5], 10)
    assert (found.frames, found.steps, found.misses, found.mean_batch) == (100, 10, 2, 10.0)
    assert found.p50 == pytest.approx(10)
    assert found.max == pytest.approx(500)
    with pytest.raises(ValueError, match="nothing was measured"):
        latency([], 1)


def test_the_first_steps_after_windows_were_filled_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for the filling, too: among few steps they would be all that p99 shows."""

    class Timed(Stepper):
        now = 0.0
        done = 0

        def __init__(self) -> None:
            """It has no networks."""

        def step(self, slots: Any, pcm: Any) -> StepResult:
            self.now += 1.0 if self.done < 5 else 0.01
            self.done += 1
            return StepResult(*[torch.zeros(())] * len(fields(StepResult)))  # type: ignore[arg-type]

    stepper = Timed()
    monkeypatch.setattr(drive, "time", SimpleNamespace(perf_counter=lambda: stepper.now))
    assert drive.first_steps(stepper, 2) == pytest.approx((1000.0,) * 5)
    found = drive.lockstep(stepper, 2, 1.0, least=200)
    assert (found.steps, found.frames) == (200, 400)
    assert found.max == pytest.approx(10)
    assert drive.lockstep(stepper, 2, 3.0, least=200).steps in (300, 301), "as long as it is to be, if that is longer"


def test_the_command_runs_and_says_what_is_wrong_with_its_words() -> None:
    runner = CliRunner()
    bad = runner.invoke(app, ["bench", "engine", "--slots", "1,many"])
    assert bad.exit_code == 2
    assert "is not a list such as 1,8,64" in bad.output
    done = runner.invoke(app, ["bench", "engine", "--size", "tiny", "--device", "cpu", "--slots", "100000000"])
    assert done.exit_code == 1
    assert "nothing fits" in done.output
