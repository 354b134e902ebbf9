"""Imports run one way: the rules of the design, held by reading every file's import statements."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_START_A_WORKER = {"gateway/cli.py", "gateway/worker_process.py"}
"""What runs in the worker's process: the only files outside `model` that import more of it than the wire."""

SHELL = {
    *(f"gateway/rtp/{name}.py" for name in ("ports", "session", "ticker")),
    *(
        f"gateway/sip/{name}.py"
        for name in ("binding", "bridge", "doctor", "endpoint", "handover", "leg", "line", "names", "settings")
    ),
    "gateway/sip/stream.py",
    "gateway/sip/switchboard.py",
}
"""Of SIP and RTP, what is not pure: sockets, the clock, and what is built on them."""

PURE = {
    *(
        file
        for folder in ("gateway/sip", "gateway/rtp")
        for path in (ROOT / folder).glob("*.py")
        if (file := path.relative_to(ROOT).as_posix()) not in SHELL
    ),
    *(path.relative_to(ROOT).as_posix() for path in (ROOT / "gateway/redaction").glob("*.py")),
    "gateway/audio.py",
    "gateway/call_document.py",
    "gateway/history.py",
    "gateway/latency.py",
    "gateway/leg.py",
    "gateway/recording/consent.py",
    "gateway/recording/orders.py",
    "gateway/recording/seal.py",
    "gateway/recording/wav.py",
    "gateway/telnyx/protocol.py",
    "gateway/telnyx/signature.py",
    "gateway/telnyx/texml.py",
    "gateway/transcript.py",
    "gateway/twilio/flood.py",
    "gateway/twilio/protocol.py",
    "gateway/twilio/signature.py",
    "gateway/twilio/twiml.py",
    "gateway/webhooks/events.py",
    "gateway/webhooks/retry.py",
    "gateway/webhooks/signature.py",
    "model/capacity.py",
    "model/config.py",
    "model/engine_options.py",
    "model/metrics.py",
    "model/moshi/protocol.py",
    "model/prompt.py",
    "model/pace.py",
    "model/scheduler.py",
    "model/utterances.py",
    "model/wire.py",
    "model/wire_fields.py",
    "model/wire_resume.py",
    "model/wire_script.py",
}
PACKAGES = {"gateway", "model", "model.moshi", "gateway.redaction", "gateway.sip", "gateway.twilio", "gateway.webhooks"}
OUTSIDE_WORLD = {
    "asyncio",
    "os",
    "random",
    "secrets",
    "select",
    "signal",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
}
"""Of the standard library, what a pure file never imports: clocks, files, networks, chance."""

PURE_LIBRARIES = {"audioop", "cryptography", "numpy", "orjson", "pylibsrtp", "re2"}
"""Codecs, arithmetic, ciphers and patterns that neither look at a clock nor touch the world."""

PARTS_OF_A_CALL = {
    *("gateway.audio", "gateway.call_clock", "gateway.engine", "gateway.leg", "gateway.personas", "gateway.transcript")
}


def modules(folder: str) -> list[str]:
    return sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.py"))


def imported(file: str) -> set[str]:
    """Full names of all a file imports, inside functions too; `from a import b` counts as a and a.b."""
    package = file.split("/")[:-1]
    return set(_names(ast.parse((ROOT / file).read_text()), package))


def _names(tree: ast.AST, package: list[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_reader_sees_every_way_to_import() -> None:
    source = "import a.b\ndef f():\n    from c import d\nfrom . import e\nfrom ..g import h\n"
    assert set(_names(ast.parse(source), ["x", "y"])) == {"a.b", "c", "c.d", "x.y", "x.y.e", "x.g", "x.g.h"}
    assert "model.wire" in imported("gateway/engine.py")


@pytest.mark.parametrize("file", modules("gateway"))
def test_the_gateway_knows_of_the_model_only_the_wire_and_never_torch(file: str) -> None:
    names = imported(file)
    assert not [name for name in names if within(name, "torch")]
    beyond = {name for name in names if within(name, "model") and name != "model" and not within(name, "model.wire")}
    assert not beyond or file in MAY_START_A_WORKER


@pytest.mark.parametrize("file", modules("model"))
def test_the_model_never_knows_the_gateway(file: str) -> None:
    assert not [name for name in imported(file) if within(name, "gateway")]


@pytest.mark.parametrize("file", sorted(PURE))
def test_pure_files_import_only_pure_ones(file: str) -> None:
    pure = {name.removesuffix(".py").replace("/", ".") for name in PURE}
    for name in imported(file):
        top = name.partition(".")[0]
        if top in ("gateway", "model"):
            assert name in PACKAGES or any(within(name, module) for module in pure), name
        elif top not in PURE_LIBRARIES:
            assert top in sys.stdlib_module_names, name
            assert top not in OUTSIDE_WORLD, name


def test_what_a_call_is_made_of_does_not_know_the_call() -> None:
    above = ("gateway.call", "gateway.desk", "gateway.app", "gateway.serving", "gateway.twilio", "gateway.cli")
    for part in PARTS_OF_A_CALL:
        file = part.replace(".", "/") + ".py"
        assert not [name for name in imported(file) for upper in above if within(name, upper)], file
    carriers = ("gateway.app", "gateway.desk", "gateway.serving", "gateway.cli", "gateway.twilio")
    assert not [name for name in imported("gateway/call.py") for upper in carriers if within(name, upper)]


def test_the_wire_loads_without_weight() -> None:
    assert (ROOT / "model/__init__.py").read_text() == ""
    heavy = "{'torch', 'numpy', 'fastapi', 'pydantic'}"
    check = f"import sys, model.wire; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
