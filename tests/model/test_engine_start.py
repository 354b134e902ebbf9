"""The engine's start on tiny weights: memory that speed does not allow to use, prompts kept, weights in 8 bits."""

from __future__ import annotations

import gc
import logging
import os
import re
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import capacity, engine_start, fp8
from model.capacity import SPARES, engine_bytes, fixed_bytes, slot_bytes, unwalked_bytes
from model.conversation import Models, load_models
from model.cuda_graphs import HIGH_PRIORITY, LOW_PRIORITY
from model.engine import Stepper, StepResult
from model.engine_options import Context, EngineOptions, EngineRefused
from model.engine_start import check_card, engine_cores, gpu_number, keep_cores, measure, pci_devices, prepare, start
from model.folder import ModelFolder
from model.fp8_weights import Fp8Linear
from model.prompt_cache import PromptCache
from tests.model.device import DEVICE
from tests.model.rig import caller_pcm
from tests.model.tiny_folder import VOICE

pytestmark = pytest.mark.usefixtures("keeps_threads")


@pytest.fixture
def keeps_threads(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start sets this process's threads, stream and cores, which the tests share."""
    monkeypatch.setattr(engine_start, "prepare", lambda device: None)
    monkeypatch.setattr(engine_start, "keep_cores", lambda device: None)


def test_slots_that_would_be_late_are_given_back_and_it_says_so(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_start, "slots_by_memory", lambda *_: 4)  # a card's memory holds hundreds of tiny calls
    monkeypatch.setattr(engine_start, "slots_by_speed", lambda asked, costs: 2)
    made: list[weakref.ref[Stepper]] = []
    make = engine_start._stepper

    def remembered(models: Models, slots: int, dtype: torch.dtype) -> Stepper:
        stepper = make(models, slots, dtype)
        made.append(weakref.ref(stepper))
        return stepper

    monkeypatch.setattr(engine_start, "_stepper", remembered)
    with caplog.at_level(logging.INFO):
        started = start(EngineOptions(str(tiny.path), device=DEVICE))
    assert started.slots == started.stepper.slots == 2
    assert started.stepper.state.kv.keys.shape[1] == 2 + SPARES + 1
    assert started.stepper.state.kv.keys.dtype == torch.float32, "as these weights are"
    assert max(started.costs) == 2
    assert [each() for each in made] == [None, started.stepper], "the larger one is gone, with its memory"
    assert "steps are on time for 2: the rest is given back; --slots 2 saves that time" in caplog.text
    phases = "packages", "device", "weights", "slots and graphs", "measuring", "fewer slots", "long passes", "prompts"
    (line,) = (record.getMessage() for record in caplog.records if "to be ready" in record.getMessage())
    assert re.fullmatch(
        r"the engine took [\d.]+ s to be ready: " + ", ".join(rf"{name} [\d.]+" for name in phases), line
    )


def test_weights_and_keys_in_8_bits_are_options_of_the_engine(tiny: ModelFolder) -> None:
    started = start(EngineOptions(str(tiny.path), device=DEVICE, slots=1, weights_dtype="fp8", kv_dtype="fp8"))
    assert any(isinstance(module, Fp8Linear) for module in started.stepper.models.lm.modules())
    assert started.stepper.state.kv.keys.dtype == fp8.E4M3
    assert started.stepper.step([0], [b""]).finite.all()
    assert torch.isfinite(started.stepper.state.kv.keys[:, 0].float()).all()


def test_the_prompts_of_personas_are_read_before_the_first_call_and_one_that_cannot_be_harms_none(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    warm = ((VOICE, "you are a kind teacher"), ("NOBODY", "you are"), (VOICE, "you are a teacher on the corner"))
    started = start(EngineOptions(str(tiny.path), device=DEVICE, slots=1, warm=warm))
    assert "a persona's prompt is not prepared: there is no voice 'NOBODY'" in caplog.text
    misses = started.prompts.misses
    for voice, text in (warm[0], warm[2]):
        for _ in started.prompts.fill(started.assets.read(voice, text), started.stepper.lm_slot[0]):
            pass
    assert (started.prompts.hits, started.prompts.misses) == (2, misses)


@pytest.mark.parametrize("context", ["reprime", "sliding"])
def test_a_persona_too_long_to_be_given_back_is_told_of_at_the_start(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture, context: Context
) -> None:
    warm = ((VOICE, "the bank " * 90),)
    started = start(EngineOptions(str(tiny.path), device="cpu", slots=1, context=context, warm=warm))
    told = "160 are the most that long calls can be given back" in caplog.text
    assert (told, started.prompts.misses) == ((True, 0) if context == "reprime" else (False, 1))


def test_more_prompts_than_memory_holds_leave_those_that_come_first_and_it_is_said_once(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    warm = tuple((VOICE, text) for text in ("you are a kind teacher", "the bank is open", "we like to listen", "hello"))
    options = EngineOptions(str(tiny.path), device="cpu", slots=1, warm=warm[:2])
    room = start(options).prompts.nbytes
    monkeypatch.setattr(engine_start, "PromptCache", lambda stepper, most: PromptCache(stepper, room))
    started = start(replace(options, warm=warm))
    assert [started.assets.read(*one) in started.prompts for one in warm] == [True, True, False, False]
    (line,) = (record.getMessage() for record in caplog.records if "memory for prompts" in record.getMessage())
    assert "of 4 personas' prompts 2 are not prepared" in line


def test_where_slots_are_asked_for_prompts_have_what_they_leave(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, mimi = tiny.lm_config(), tiny.mimi_config()
    weights, slot = tiny.lm.stat().st_size + tiny.mimi.stat().st_size, slot_bytes(lm, mimi, 4)
    weights -= unwalked_bytes(lm, 4, "auto")
    free = engine_bytes(2, fixed_bytes(weights, "cpu"), slot) + 5_000
    monkeypatch.setattr(capacity, "PROMPT_LEAST", 4_000)
    monkeypatch.setattr(engine_start, "free_memory", lambda device: free)
    room: list[int] = []

    def made(stepper: Stepper, most: int) -> PromptCache:
        room.append(most)
        return PromptCache(stepper, most)

    monkeypatch.setattr(engine_start, "PromptCache", made)
    assert start(EngineOptions(str(tiny.path), device="cpu", slots=2)).slots == 2
    assert room == [5_000]


def test_a_step_is_measured_with_full_windows_and_leaves_nothing_behind(models: Models) -> None:
    stepper = Stepper(models, 3, kv_dtype=torch.float32)
    seen: list[int] = []
    step = stepper.step

    def watched(slots: Sequence[int], pcm: Sequence[bytes]) -> StepResult:
        seen.extend(stepper.state.kv.offsets[list(slots)].tolist())
        return step(slots, pcm)

    stepper.step = watched  # type: ignore[method-assign]
    assert sorted(measure(stepper)) == [1, 2, 3]
    assert min(seen) >= models.config.transformer.context
    assert stepper.state.kv.offsets.tolist() == [0] * 5
    fresh = Stepper(models, 3, kv_dtype=torch.float32)
    sound = [caller_pcm(0, index) for index in range(6)]
    first, second = ([each.step([1], [pcm]).tokens.tolist() for pcm in sound] for each in (stepper, fresh))
    assert first == second


@pytest.mark.parametrize(
    ("count", "number", "own"),
    [(16, 0, (14, 15)), (16, 3, (8, 9)), (16, 6, ()), (5, 0, ()), (16, None, ())],
)
def test_engines_of_one_machine_do_not_share_the_cores_they_keep(
    count: int, number: int | None, own: tuple[int]
) -> None:
    assert tuple(engine_cores(range(count), number)) == own


GPU, AUDIO, SWITCH, VGA = ("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x10de", "0x068000"), ("0x1234", "0x030000")
MACHINE = {
    "0000:00:02.0": VGA,
    "0000:07:00.0": SWITCH,
    "0000:9b:00.0": ("0x10de", "0x030000"),
    "0000:1b:00.0": GPU,
    "0000:1b:00.1": AUDIO,
    "0001:01:00.0": GPU,
}
"""A machine's PCI devices, three of them GPUs of NVIDIA's."""


@pytest.mark.parametrize(("own", "number"), [("0000:1B:00.0", 0), ("0000:9B:00.0", 1), ("0001:01:00.0", 2)])
@pytest.mark.parametrize("visible", ["", "0", "GPU-8932f937"])
def test_a_gpu_has_its_number_by_its_place_in_the_machine_whatever_a_container_calls_it(
    own: str, number: int, visible: str
) -> None:
    """Each container of a machine has its only GPU as number 0."""
    assert gpu_number(own, MACHINE, visible, "GPU-8932f937") == number


@pytest.mark.parametrize(
    ("visible", "granted", "number"),
    [
        ("", "", 0),
        ("0,1", "", 0),
        ("3", "", 3),
        ("3", "all", 3),
        ("GPU-8932f937", "", None),
        ("", "3", None),
        ("0", "GPU-8932f937", None),
    ],
)
@pytest.mark.parametrize(("own", "devices"), [("", MACHINE), ("0000:1b:00.0", {}), ("0000:3b:00.0", MACHINE)])
def test_where_the_machines_devices_do_not_tell_a_gpu_has_its_number_if_it_is_among_all(
    own: str, devices: dict[str, tuple[str, str]], visible: str, granted: str, number: int | None
) -> None:
    assert gpu_number(own, devices, visible, granted) == number


def test_the_devices_of_a_machine_are_read_from_files(tmp_path: Path) -> None:
    for name, (vendor, kind) in MACHINE.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(f"{vendor}\n")
        (tmp_path / name / "class").write_text(f"{kind}\n")
    (tmp_path / "0000:ff:00.0").mkdir()
    assert pci_devices(tmp_path) == MACHINE
    assert pci_devices(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    ("device", "visible", "own"), [("cuda", "", {14, 15}), ("cuda", "3", {8, 9}), ("cpu", "", set())]
)
def test_the_process_keeps_to_its_cores_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str, own: set[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(engine_start, "pci_devices", dict)
    monkeypatch.setattr(engine_start, "_pci_address", lambda device: "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    kept: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: kept.append((process, {*cores})), raising=False)
    keep_cores(torch.device(device))
    assert kept == ([(0, own)] if own else [])


def test_steps_come_before_other_work_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(engine_start, "stream", lambda device, priority: (device.type, priority))
    monkeypatch.setattr(torch.cuda, "set_stream", made.append)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    prepare(torch.device("cuda"))
    assert made == [("cuda", HIGH_PRIORITY)]
    assert HIGH_PRIORITY < LOW_PRIORITY, "in CUDA the lower number goes first"


def test_all_cores_read_weights_before_the_process_keeps_to_its_own(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    load = load_models

    def loaded(folder: ModelFolder, device: torch.device, fp8: bool) -> Models:
        order.append("weights")
        return load(folder, device, fp8=fp8)

    def no_more(models: Models, slots: int, dtype: torch.dtype) -> Stepper:
        raise EngineRefused("seen enough")

    monkeypatch.setattr(engine_start, "load_models", loaded)
    monkeypatch.setattr(engine_start, "keep_cores", lambda device: order.append(f"cores beside {device}"))
    monkeypatch.setattr(engine_start, "_stepper", no_more)
    with pytest.raises(EngineRefused, match="seen enough"):
        start(EngineOptions(str(tiny.path), device="cpu", slots=1))
    assert order == ["weights", "cores beside cpu"]


def test_a_card_that_cannot_read_8_bits_is_refused_before_anything_is_loaded() -> None:
    check_card((8, 9), EngineOptions("weights", kv_dtype="fp8"))
    check_card((8, 6), EngineOptions("weights", kv_dtype="bf16"))
    with pytest.raises(EngineRefused, match=r"capability 8\.6, and --kv-dtype fp8 needs 8\.9"):
        check_card((8, 6), EngineOptions("weights", kv_dtype="fp8"))
