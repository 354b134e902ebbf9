"""The engine's start on tiny weights: memory that speed does not allow to use, prompts kept, weights in 8 bits."""

from __future__ import annotations

import logging
import re
import weakref
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from model import engine_start
from model.capacity import SPARES
from model.conversation import Models
from model.engine import Stepper, StepResult
from model.engine_options import Context, EngineOptions, EngineRefused
from model.engine_start import check_card, engine_cores, measure, start
from model.folder import ModelFolder
from model.fp8_weights import Fp8Linear
from model.prompt_cache import PromptCache
from tests.model.rig import caller_pcm
from tests.model.tiny_folder import VOICE

pytestmark = pytest.mark.usefixtures("keeps_threads")


@pytest.fixture
def keeps_threads(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start sets this process's threads, which the tests share."""
    monkeypatch.setattr(engine_start, "prepare", lambda device: None)


def test_slots_that_would_be_late_are_given_back_and_it_says_so(
    tiny: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_start, "slots_by_speed", lambda asked, costs: 2)
    made: list[weakref.ref[Stepper]] = []
    make = engine_start._stepper

    def remembered(models: Models, slots: int, dtype: torch.dtype) -> Stepper:
        stepper = make(models, slots, dtype)
        made.append(weakref.ref(stepper))
        return stepper

    monkeypatch.setattr(engine_start, "_stepper", remembered)
    with caplog.at_level(logging.INFO):
        started = start(EngineOptions(str(tiny.path), device="cpu"))
    assert started.slots == started.stepper.slots == 2
    assert started.stepper.state.kv.keys.shape[1] == 2 + SPARES + 1
    assert max(started.costs) == 2
    assert [each() for each in made] == [None, started.stepper], "the larger one is gone, with its memory"
    assert "steps are on time for 2: the rest is given back; --slots 2 saves that time" in caplog.text
    phases = "packages", "device", "weights", "slots and graphs", "measuring", "fewer slots", "long passes", "prompts"
    (line,) = (record.getMessage() for record in caplog.records if "to be ready" in record.getMessage())
    assert re.fullmatch(
        r"the engine took [\d.]+ s to be ready: " + ", ".join(rf"{name} [\d.]+" for name in phases), line
    )


def test_weights_in_8_bits_are_an_option_of_the_engine(tiny: ModelFolder) -> None:
    started = start(EngineOptions(str(tiny.path), device="cpu", slots=1, weights_dtype="fp8"))
    assert any(isinstance(module, Fp8Linear) for module in started.stepper.models.lm.modules())
    assert started.stepper.step([0], [b""]).finite.all()
    assert torch.isfinite(started.stepper.state.kv.keys[:, 0]).all()


def test_the_prompts_of_personas_are_read_before_the_first_call_and_one_that_cannot_be_harms_none(
    tiny: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    warm = ((VOICE, "you are a kind teacher"), ("NOBODY", "you are"), (VOICE, "you are a teacher on the corner"))
    started = start(EngineOptions(str(tiny.path), device="cpu", slots=1, warm=warm))
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
    ("count", "visible", "own"),
    [
        (16, "", (14, 15)),
        (16, "0,1", (14, 15)),
        (16, "3", (8, 9)),
        (16, "6", ()),
        (5, "", ()),
        (16, "GPU-8932f937", ()),
    ],
)
def test_engines_of_one_machine_do_not_share_the_cores_they_keep(count: int, visible: str, own: tuple[int]) -> None:
    assert tuple(engine_cores(range(count), visible)) == own


def test_a_card_that_cannot_read_8_bits_is_refused_before_anything_is_loaded() -> None:
    check_card((8, 9), EngineOptions("weights", kv_dtype="fp8"))
    check_card((8, 6), EngineOptions("weights", kv_dtype="bf16"))
    with pytest.raises(EngineRefused, match=r"capability 8\.6, and --kv-dtype fp8 needs 8\.9"):
        check_card((8, 6), EngineOptions("weights", kv_dtype="fp8"))
