"""What `callplex worker` runs: settings -> engine -> the worker's server.

The one place that may start either side; of the gateway only settings and personas are read in this process.
"""

from __future__ import annotations

import ssl
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.settings import Settings

if TYPE_CHECKING:
    from model.server import Door
    from model.worker_engine import WorkerEngine


_MODEL_PACKAGES = ("torch", "sentencepiece", "safetensors")


class WorkerRefused(Exception):
    """The worker cannot start; the message says what to do."""


async def run_worker(settings: Settings, exit_with_parent: bool = False) -> None:
    """Serve the configured engine until stopped. Raises WorkerRefused."""
    from model.server import ListenRefused
    from model.serving import EngineEnded, serve

    engine, refusals = _engine(settings)
    try:
        await serve(
            engine,
            settings.worker_listen,
            token=settings.worker_token.get_secret_value(),
            capacity=settings.worker_capacity,
            tls=_tls(settings),
            exit_with_parent=exit_with_parent,
            doors=_doors(settings),
        )
    except (ListenRefused, EngineEnded) as error:
        raise WorkerRefused(str(error)) from error
    except refusals as error:
        raise WorkerRefused(str(error)) from error


def _engine(settings: Settings) -> tuple[WorkerEngine, tuple[type[Exception], ...]]:
    """The configured engine, and the errors with which its start says what is missing."""
    if settings.engine == "echo":
        from model.echo import EchoEngine

        return EchoEngine(), ()
    if settings.engine == "personaplex":
        return _personaplex(settings)
    try:
        from model.rehearsal.chat import ChatSettings
        from model.rehearsal.engine import RehearsalEngine
        from model.rehearsal.weights import WeightsMissing
    except ImportError as error:
        raise WorkerRefused(
            f"the rehearsal engine needs the package {error.name}; install it with: pip install -e '.[rehearsal]'"
        ) from error
    chat = None
    if settings.chat_url:
        chat = ChatSettings(settings.chat_url, settings.chat_model, settings.chat_key.get_secret_value())
    try:
        return RehearsalEngine(settings.weights_dir, chat), (WeightsMissing,)
    except WeightsMissing as error:
        raise WorkerRefused(str(error)) from error


def _personaplex(settings: Settings) -> tuple[WorkerEngine, tuple[type[Exception], ...]]:
    for package in _MODEL_PACKAGES:
        if find_spec(package) is None:
            raise WorkerRefused(
                f"the personaplex engine needs the package {package}; install it with: pip install -e '.[model]'"
            )
    weights = settings.weights_dir or Path("weights")
    if not weights.is_dir():
        # Said here, before the transcriber, which looks into the same folder for weights of its own.
        raise WorkerRefused(f"{weights} is not a folder; get the weights with: callplex weights download")
    from model.engine_options import EngineOptions, EngineRefused
    from model.personaplex import PersonaplexEngine
    from model.transcriber import TranscriberRefused, WhisperPool

    options = EngineOptions(
        weights=str(weights),
        recordings=str(settings.personas / "voices"),
        personas=str(settings.personas),
        device=settings.device,
        slots=settings.slots,
        context=settings.context,
        kv_dtype=settings.kv_dtype,
        weights_dtype=settings.weights_dtype,
        warm=_routed_prompts(settings),
        log_level=settings.log_level.upper(),
    )
    transcriber = WhisperPool(settings.weights_dir) if settings.transcriber == "whisper" else None
    return PersonaplexEngine(options, transcriber), (EngineRefused, TranscriberRefused)


def _doors(settings: Settings) -> list[Door]:
    """Moshi's protocol beside our own, where the package for Ogg Opus is installed."""
    if find_spec("sphn") is None:
        return []
    from model.moshi.door import MoshiDoor

    origins = (part.strip().rstrip("/") for part in settings.moshi_origins.split(","))
    return [MoshiDoor([origin for origin in origins if origin])]


def _routed_prompts(settings: Settings) -> tuple[tuple[str, str], ...]:
    """Voice and prompt of every persona that can be read here, with the defaults of its variables.

    Those that numbers lead to come first, in the order of `routing.yaml`. So that no first caller waits for a prompt;
    where the worker has no personas beside it, or one was edited since it started, that persona's first caller does.
    """
    from gateway.personas import read_personas, session_request
    from gateway.routing import read_routing

    if not settings.personas.is_dir():
        return ()
    personas = read_personas(settings.personas, [])
    routing = read_routing(settings.personas, personas, personas, [])
    routed = [entry.persona for _, entry in routing.spec.entries()] if routing else []
    names = [name for name in dict.fromkeys((*routed, *personas)) if name in personas]
    requests = [session_request(personas[name], "", {}, 0) for name in names]
    return tuple(dict.fromkeys((request.voice, request.prompt) for request in requests))


def _tls(settings: Settings) -> ssl.SSLContext | None:
    if settings.worker_tls_cert is None or settings.worker_tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(settings.worker_tls_cert, settings.worker_tls_key)
    except OSError as error:
        raise WorkerRefused(f"CALLPLEX_WORKER_TLS_CERT and _KEY: {error.strerror or error}") from error
    return context
