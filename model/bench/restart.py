"""`python -m model.bench.restart`: an engine's process is killed in mid-call, and how soon its calls speak again.

Owns random weights in a folder as the published ones lie, the callers and the kill. The engine is the worker's own, in
a process of its own, behind its rings; its worker goes on, as in no gateway's sight. What one sees, a worker that ends
with its engine and is started again, is measured after that (`model.bench.restart_worker`). Needs only the model's
packages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import save_file

from model import wire
from model.bench.drive import SOUND
from model.bench.memory import give_back
from model.bench.models import Size, Sizes, random_models, sizes_of
from model.bench.restart_worker import CannotRestart, Kind, WorkerRestart, measure_worker
from model.bench.vocabulary import train_vocabulary
from model.engine_options import EngineOptions, KVDtype
from model.folder import ModelFolder
from model.pace import FRAME
from model.personaplex import PersonaplexEngine
from model.personaplex_session import PersonaplexSession
from model.wire import AgentFrame, CallerFrame, History, Resume, SessionRequest

VOICE = "NATF2"
PROMPT = "you are the receptionist of a clinic"
_VOICE_PART = 50
"""A voice takes so many-th part of the window: 60 frames of the published one."""
_KEPT_SOUND = 125
"""Frames of the caller's sound that a gateway keeps (10 s)."""
_PIECES = 60
"""Of the vocabulary, those that the prompt's text surely gives; the rest stands for nothing."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be measured. seconds: of talk before the kill; history: that calls have behind them when it comes.

    Where that is more, what was said is said to have been said again and again.
    """

    weights: Path
    size: Size = "full"
    device: str = "cuda"
    slots: int = 64
    kv_dtype: KVDtype = "auto"
    seconds: float = 4.0
    history: float = 20.0
    worker: Literal[Kind, "none"] = "model"
    """What kind of worker is restarted, too."""
    transcriber: Literal["none", "whisper"] = "none"
    """Of that worker."""


@dataclass(frozen=True, slots=True)
class Found:
    """Seconds until the engine was ready, and milliseconds from asking for each session to its first answered frame.

    worker: what its restart takes around that of the engine.
    """

    weights_seconds: float
    first_start_seconds: float
    restart_seconds: float
    opened_ms: list[float]
    talk_ms: list[float]
    """From a caller's frame to the answer, for each frame of all calls before the kill."""
    resumed_ms: list[float]
    worker: WorkerRestart | None = None


@dataclass(slots=True)
class _Caller:
    """One call, and what its gateway keeps of it."""

    request: SessionRequest
    session: PersonaplexSession | None = None
    columns: list[bytes] = field(default_factory=list)
    outputs: AsyncIterator[wire.Output] | None = None

    async def begin(self, engine: PersonaplexEngine) -> float:
        """Open it, or take it over with what is kept, and let one frame be answered: milliseconds."""
        begun = time.perf_counter()
        if self.columns:
            heard = min(len(self.columns), _KEPT_SOUND)
            resume = Resume(0, len(self.columns), heard, 0)
            request = replace(self.request, resume=resume)
            self.session = await engine.resume(request, History(b"".join(self.columns), SOUND * heard))
        else:
            self.session = await engine.open(self.request)
        self.outputs = self.session.outputs()
        await self.say()
        return 1000 * (time.perf_counter() - begun)

    async def say(self) -> float:
        """The next frame and its answer: milliseconds between them."""
        assert self.session is not None
        assert self.outputs is not None
        begun = time.perf_counter()
        self.session.push(CallerFrame(len(self.columns), SOUND))
        async for output in self.outputs:
            if isinstance(output, AgentFrame):
                self.columns.append(output.tokens)
                break
        return 1000 * (time.perf_counter() - begun)

    def lengthen(self, frames: int) -> None:
        """Let what is kept of it be of so many frames, if it is of fewer."""
        while len(self.columns) < frames:
            self.columns += self.columns[: frames - len(self.columns)]

    async def talk(self, start: float, frames: int) -> list[float]:
        """Frames every 80 ms from `start` on (of `time.perf_counter`)."""
        took = []
        for index in range(frames):
            await asyncio.sleep(max(0.0, start + index * FRAME - time.perf_counter()))
            took.append(await self.say())
        return took


async def measure(order: Order) -> Found:
    """Make the weights if they are not there, start, talk, kill, start, take over; then the same with a worker.

    Raises CannotRestart.
    """
    begun = time.perf_counter()
    make_weights(order)
    made = time.perf_counter()
    found = await _measure_engine(order, made - begun)
    if order.worker == "none":
        return found
    asked = SessionRequest("call", prompt=PROMPT, voice=VOICE)
    worker = await measure_worker(order.worker, _options(order), asked, order.seconds, order.transcriber)
    return replace(found, worker=worker)


def _options(order: Order) -> EngineOptions:
    return EngineOptions(
        str(order.weights),
        device=order.device,
        slots=order.slots,
        kv_dtype=order.kv_dtype,
        warm=((VOICE, PROMPT),),
    )


async def _measure_engine(order: Order, weights_seconds: float) -> Found:
    options = _options(order)
    made = time.perf_counter()
    engine = PersonaplexEngine(options)
    await engine.start()
    ready = time.perf_counter()
    callers = [_Caller(SessionRequest(f"call-{number}", prompt=PROMPT, voice=VOICE)) for number in range(order.slots)]
    opened = await asyncio.gather(*(caller.begin(engine) for caller in callers))
    talked = await _talk(callers, order.seconds)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)
    killed = time.perf_counter()
    await engine.lost()
    await engine.stop()
    second = PersonaplexEngine(options)
    await second.start()
    back = time.perf_counter()
    for caller in callers:
        caller.lengthen(round(order.history / FRAME))
    resumed = await asyncio.gather(*(caller.begin(second) for caller in callers))
    await second.stop()
    return Found(
        weights_seconds=weights_seconds,
        first_start_seconds=ready - made,
        restart_seconds=back - killed,
        opened_ms=sorted(opened),
        talk_ms=sorted(talked),
        resumed_ms=sorted(resumed),
    )


async def _talk(callers: Sequence[_Caller], seconds: float) -> list[float]:
    """All at once, each at a phase of its own: milliseconds of every frame."""
    start, frames = time.perf_counter(), round(seconds / FRAME)
    spread = (caller.talk(start + FRAME * number / len(callers), frames) for number, caller in enumerate(callers))
    return [took for each in await asyncio.gather(*spread) for took in each]


def make_weights(order: Order) -> None:
    """A folder of random networks, with a vocabulary and a voice; what is there already is used as it is."""
    folder, sizes = ModelFolder(order.weights), sizes_of(order.size)
    if folder.lm.is_file():
        return
    folder.voices.mkdir(parents=True, exist_ok=True)
    if order.size != "full":
        _write_sizes(folder.path, sizes)
    train_vocabulary(folder.tokenizer, [PROMPT] * 4, sizes.lm.text_card, _PIECES)
    main = sizes.lm.transformer
    voice = {
        "embeddings": torch.randn((main.context // _VOICE_PART, 1, 1, main.dim)),
        "cache": torch.zeros((1, sizes.lm.rows, sizes.lm.columns), dtype=torch.long),
    }
    torch.save(voice, folder.voices / f"{VOICE}.pt")
    device = torch.device(order.device)
    _write_networks(folder, sizes, device)
    give_back(device)  # an engine's process finds free what this one does not keep


def _write_networks(folder: ModelFolder, sizes: Sizes, device: torch.device) -> None:
    models = random_models(sizes, device)
    for module, path in ((models.mimi, folder.mimi), (models.lm, folder.lm)):
        save_file({name: tensor.cpu() for name, tensor in module.state_dict().items()}, path)


def _write_sizes(path: Path, sizes: Sizes) -> None:
    """The sizes as a checkpoint's JSON has them."""
    (path / "lm.json").write_text(json.dumps({"config": _language(sizes)}))
    (path / "mimi.json").write_text(json.dumps({"config": _sound(sizes)}))


def _language(sizes: Sizes) -> dict[str, object]:
    """An MLP's width stands here as that of its ungated form."""
    main, depth = sizes.lm.transformer, sizes.lm.depformer
    return {
        "dim": main.dim,
        "num_heads": main.heads,
        "num_layers": main.layers,
        "context": main.context,
        "hidden_scale": 1.5 * main.hidden / main.dim,
        "max_period": main.max_period,
        "depformer_dim": depth.dim,
        "depformer_num_heads": depth.heads,
        "depformer_num_layers": depth.layers,
        "depformer_dim_feedforward": 3 * depth.hidden // 2,
        "dep_q": depth.steps,
        "text_card": sizes.lm.text_card,
        "card": sizes.lm.card,
        "delays": sizes.lm.delays,
    }


def _sound(sizes: Sizes) -> dict[str, object]:
    seanet, transformer, quantizer = sizes.mimi.seanet, sizes.mimi.transformer, sizes.mimi.quantizer
    return {
        "seanet": {
            "dimension": seanet.dimension,
            "n_filters": seanet.filters,
            "ratios": seanet.ratios,
            "kernel_size": seanet.kernel,
            "residual_kernel_size": seanet.residual_kernel,
            "last_kernel_size": seanet.last_kernel,
            "compress": seanet.compress,
            "channels": seanet.channels,
        },
        "transformer": {
            "d_model": transformer.dim,
            "num_heads": transformer.heads,
            "num_layers": transformer.layers,
            "context": transformer.context,
            "max_period": transformer.max_period,
            "dim_feedforward": transformer.hidden,
        },
        "quantizer": {
            "dimension": quantizer.dimension,
            "n_q": quantizer.codebooks,
            "bins": quantizer.bins,
            "input_dimension": quantizer.input_dimension,
        },
    }


def _shown(found: Found) -> str:
    opened, talk, resumed = found.opened_ms, found.talk_ms, found.resumed_ms
    lines = "\n".join(
        (
            f"ready after {found.first_start_seconds:.1f} s",
            f"killed, and ready again after {found.restart_seconds:.1f} s",
            f"{len(opened)} calls opened at once: first frame after {_middle(opened):.0f} ms (median), "
            f"{opened[-1]:.0f} ms (last)",
            f"a frame answered in {_middle(talk):.1f} ms (median), {talk[int(0.99 * len(talk))]:.1f} ms (p99)",
            f"{len(resumed)} calls resumed at once: they spoke after {_middle(resumed):.0f} ms (median), "
            f"{resumed[-1]:.0f} ms (last)",
        )
    )
    return lines if found.worker is None else f"{lines}\n{_shown_worker(found.worker)}"


def _shown_worker(found: WorkerRestart) -> str:
    kind = "callplex worker" if found.kind == "callplex" else "worker of the model's packages alone"
    return (
        f"a {kind}, transcriber {found.transcriber}: ready after {found.first_start:.1f} s\n"
        f"its engine killed with {found.sessions} calls: told after {found.told:.2f} s, the worker ended after "
        f"{found.ended:.2f}; the next one listened after {found.listening:.1f} and was ready after {found.ready:.1f} s"
    )


def _middle(values: Sequence[float]) -> float:
    return values[len(values) // 2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.restart")
    parser.add_argument("--size", choices=get_args(Size), default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--kv-dtype", choices=get_args(KVDtype), default="auto")
    parser.add_argument("--seconds", type=float, default=4.0, help="of talk before the kill")
    parser.add_argument("--history", type=float, default=20.0, help="seconds that calls have behind them, at least")
    parser.add_argument(
        "--worker",
        choices=[*get_args(Kind), "none"],
        default="model",
        help="restarted after the engine by itself: one of the model's packages, or `callplex worker`",
    )
    parser.add_argument("--transcriber", choices=["none", "whisper"], default="none", help="of that worker")
    parser.add_argument("--weights", type=Path, help="folder for the random weights; without it, one that is deleted")
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(arguments))
    as_json, folder = options.pop("json"), options.pop("weights")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            found = asyncio.run(measure(Order(folder or Path(temporary), **options)))
        except CannotRestart as error:
            sys.stderr.write(f"{error}\n")
            return 1
    sys.stdout.write((json.dumps(asdict(found)) if as_json else _shown(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
