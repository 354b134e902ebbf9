"""The engine's start on tiny weights: memory that speed does not allow to use is given back; weights in 8 bits."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch

from model import engine_start
from model.conversation import Models
from model.engine import Stepper
from model.engine_options import EngineOptions
from model.engine_start import start
from model.folder import ModelFolder
from model.fp8_weights import Fp8Linear

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
    with caplog.at_level(logging.WARNING):
        started = start(EngineOptions(str(tiny.path), device="cpu"))
    assert started.slots == started.stepper.slots == 2
    assert started.stepper.state.kv.keys.shape[1] == 2 + engine_start.SPARES + 1
    assert max(started.costs) == 2
    assert [each() for each in made] == [None, started.stepper], "the larger one is gone, with its memory"
    assert "steps are on time for 2: the rest is given back; --slots 2 saves that time" in caplog.text


def test_weights_in_8_bits_are_an_option_of_the_engine(tiny: ModelFolder) -> None:
    started = start(EngineOptions(str(tiny.path), device="cpu", slots=1, weights_dtype="fp8"))
    assert any(isinstance(module, Fp8Linear) for module in started.stepper.models.lm.modules())
    assert started.stepper.step([0], [b""]).finite.all()
    assert torch.isfinite(started.stepper.state.kv.keys[:, 0]).all()
