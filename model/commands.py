"""What the command line shows of the model: a WAV conversation, clips, weights and voices.

Owns the commands `weights`, `voices` and `bench engine`, progress bars, tables and JSON on standard output; errors end
in one `CommandFailed`. Knows no settings and no personas: folders, prompts and names come in as arguments. Parts are
imported when they are used.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from model.clip_maker import ClipRequest
    from model.offline import OfflineRun


class CommandFailed(Exception):
    """It did not do what it says; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Places:
    """Folders, from the settings."""

    weights: Path
    recordings: Path
    """That of voices.yaml."""


@contextmanager
def told() -> Iterator[None]:
    """End with status 1 and a sentence where a command fails, or lacks a package."""
    try:
        yield
    except CommandFailed as error:
        message = str(error)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("model", "gateway"):
            raise
        message = f"this needs the package {error.name}; install it with: pip install -e '.[model]'"
    else:
        return
    typer.echo(f"callplex: {message}", err=True)
    raise typer.Exit(1)


class _Bars:
    """One bar for each name that progress is told of."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total)


@contextmanager
def _progress(unit: str) -> Iterator[_Bars]:
    """Bars on standard error, gone when the work is done; none where nobody looks."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% of {task.total:,.0f} " + unit),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        yield _Bars(bars)


def offline(run: OfflineRun, as_json: bool) -> None:
    """Hold a conversation with a WAV file. Raises CommandFailed."""
    from model.offline import OfflineError, run_offline

    try:
        with _progress("frames") as bars:
            result = run_offline(run, lambda done, total: bars("conversation", done, total))
    except OfflineError as error:
        raise CommandFailed(str(error)) from error
    if as_json:
        _say(json.dumps(result, ensure_ascii=False))
    else:
        _say(f"{run.out}: {result['seconds']} s; the agent said: {result['text'] or '(nothing)'}")


def clip(request: ClipRequest, weights: Path, device: str, out: Path) -> None:
    """Make a clip whose words were recognised, and its WAV beside it to listen to. Raises CommandFailed."""
    from model.clip import save_clip
    from model.clip_maker import ClipUnsaid, make_clip, rehearsal_recogniser
    from model.conversation import load_models
    from model.folder import FolderInvalid, ModelFolder
    from model.load import WeightsError
    from model.offline import OfflineError, usable_device, write_wav
    from model.prompt import PromptTooLong
    from model.rehearsal.weights import WeightsMissing
    from model.tokenizer import TokenizerError
    from model.voice import VoiceError

    if out.suffix == ".wav":
        raise CommandFailed(f"{out} is where its sound goes; name the clip {out.with_suffix('.clip')}")
    try:
        recognise = rehearsal_recogniser()
    except WeightsMissing as error:
        raise CommandFailed(f"a clip is checked by speech recognition: {error}") from error
    except ImportError as error:
        raise CommandFailed(
            f"a clip is checked by speech recognition, which needs {error.name}; "
            "install it with: pip install -e '.[rehearsal]'"
        ) from error
    expected = (FolderInvalid, WeightsError, TokenizerError, VoiceError, PromptTooLong, ClipUnsaid, OfflineError)
    try:
        models = load_models(ModelFolder(weights), usable_device(device))
        made = make_clip(models, request, recognise)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_clip(out, made.clip)
        write_wav(out.with_suffix(".wav"), [made.pcm])
    except (*expected, ValueError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{out} cannot be written: {error.strerror}") from error
    _say(f"{out}: {len(made.pcm) / 24_000:.1f} s, heard as: {made.clip.heard}")


def download_weights(path: Path, revision: str) -> None:
    """Fetch the published weights into a folder. Raises CommandFailed."""
    from model.weights import WeightsUnavailable, download, read_record

    try:
        with _progress("bytes") as bars:
            fetched = download(path, bars, revision=revision)
    except WeightsUnavailable as error:
        raise CommandFailed(str(error)) from error
    commit = read_record(path).revision
    done = "downloaded" if fetched else "already there, nothing to download"
    _say(f"{path}: {done} (revision {commit})\nUse it with: export CALLPLEX_WEIGHTS_DIR={path}")


def verify_weights(path: Path, quick: bool, as_json: bool) -> None:
    """Check every tensor's name and shape, and every downloaded byte unless `quick`. Raises CommandFailed."""
    from model.weights import changed_files, read_record
    from model.weights_check import weight_problems

    problems = list(weight_problems(path))
    if not quick:
        with _progress("bytes") as bars:
            problems += changed_files(path, bars)
    compared = not quick and bool(read_record(path).files)
    if as_json:
        _say(json.dumps({"ok": not problems, "problems": problems, "bytes_compared": compared}))
    if problems:
        raise CommandFailed("\n".join(problems))
    if not as_json:
        reason = "" if compared else "; bytes not compared" + ("" if quick else ": it was not downloaded by callplex")
        _say(f"{path}: whole{reason}")


def show_weights(path: Path, as_json: bool) -> None:
    """Show which of the published files are in a folder."""
    from model.weights import list_weights

    listed = list_weights(path)
    if as_json:
        _say(json.dumps({one.name: {"size": one.size, "state": one.state} for one in listed}))
        return
    rows = [(one.name, f"{one.size / 1e6:,.1f} MB" if one.size else "", one.state) for one in listed]
    _table(str(path), ("file", "size", "state"), rows)


def show_voices(published: Path, recordings: Path, as_json: bool) -> None:
    """Show all voices. Raises CommandFailed."""
    from model.voices import VoiceRefused, list_voices

    try:
        listed = list_voices(published, recordings)
    except VoiceRefused as error:
        raise CommandFailed(str(error)) from error
    if as_json:
        shown = {v.name: {"kind": v.kind, "usable": v.usable, "detail": v.detail} for v in listed}
        _say(json.dumps(shown, ensure_ascii=False))
        return
    rows = [(v.name, v.kind, "yes" if v.usable else "no", v.detail) for v in listed]
    _table("voices", ("voice", "kind", "usable", ""), rows)


def record_voice(recordings: Path, name: str, recording: Path, who: str, when: str, purpose: str) -> None:
    """Add a recording with its consent record. Raises CommandFailed."""
    from model.voices import Consent, VoiceRefused, add_voice

    try:
        added = add_voice(recordings, name, recording, Consent(who, when, purpose), datetime.date.today())
    except VoiceRefused as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{recordings} cannot be written: {error.strerror}") from error
    _say(f"{added.path}: {added.detail}")


def delete_voice(recordings: Path, name: str) -> None:
    """Delete a recording with its consent record. Raises CommandFailed."""
    from model.voices import VoiceRefused, remove_voice

    try:
        remove_voice(recordings, name)
    except VoiceRefused as error:
        raise CommandFailed(str(error)) from error
    _say(f"{name}: the recording and its record are deleted")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*heads, title=title, title_justify="left", box=None)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


WeightsDir = Annotated[Path | None, typer.Option("--dir", help="Their folder; by default CALLPLEX_WEIGHTS_DIR.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def weights_app(places: Callable[[], Places]) -> typer.Typer:
    """`callplex weights`."""
    app = typer.Typer(no_args_is_help=True, help="The duplex model's weights.")

    @app.command("download")
    def download(
        folder: WeightsDir = None,
        revision: Annotated[str, typer.Option(help="A commit or branch of the repository.")] = "main",
    ) -> None:
        """Fetch them from Hugging Face with your token; goes on where it stopped."""
        with told():
            download_weights(folder or places().weights, revision)

    @app.command("verify")
    def verify(
        folder: WeightsDir = None,
        quick: Annotated[bool, typer.Option("--quick", help="Names and shapes only, not every byte.")] = False,
        json_output: Json = False,
    ) -> None:
        """Check that they are whole, without network."""
        with told():
            verify_weights(folder or places().weights, quick, json_output)

    @app.command("list")
    def list_(folder: WeightsDir = None, json_output: Json = False) -> None:
        """Show which files are there."""
        with told():
            show_weights(folder or places().weights, json_output)

    return app


def voices_app(places: Callable[[], Places]) -> typer.Typer:
    """`callplex voices`."""
    app = typer.Typer(no_args_is_help=True, help="The duplex model's voices.")

    @app.command("list")
    def list_(json_output: Json = False) -> None:
        """Show the published voices, and the recordings with their consent."""
        with told():
            show_voices(places().weights / "voices", places().recordings, json_output)

    @app.command("add")
    def add(
        name: Annotated[str, typer.Argument(help="Lower-case letters, digits and hyphens.")],
        recording: Annotated[Path, typer.Argument(help="A mono WAV file, up to 30 s.")],
        who: Annotated[str, typer.Option(help="The person whose voice it is.")],
        when: Annotated[str, typer.Option(help="The day they agreed, such as 2026-03-31.")],
        purpose: Annotated[str, typer.Option(help="What they agreed it may be used for.")],
    ) -> None:
        """Add a recorded voice together with the consent to use it."""
        with told():
            record_voice(places().recordings, name, recording, who, when, purpose)

    @app.command("remove")
    def remove(name: Annotated[str, typer.Argument(help="A recorded voice.")]) -> None:
        """Delete a recorded voice and its consent record."""
        with told():
            delete_voice(places().recordings, name)

    return app


class _Size(StrEnum):
    FULL = "full"
    TINY = "tiny"


class _Device(StrEnum):
    CUDA = "cuda"
    CPU = "cpu"


class _KVType(StrEnum):
    FLOAT32 = "float32"
    BF16 = "bf16"
    FP8 = "fp8"


class _WeightsType(StrEnum):
    BF16 = "bf16"
    FP8 = "fp8"


def bench_engine_command(
    size: Annotated[_Size, typer.Option(help="The published model's, or one for a CPU.")] = _Size.FULL,
    device: Annotated[_Device, typer.Option(help="Where it runs.")] = _Device.CUDA,
    slots: Annotated[str, typer.Option(help="Calls at once, one configuration each.")] = "1,8,16,32,64,96,128,150",
    kv_dtype: Annotated[_KVType, typer.Option(help="How keys and values are stored.")] = _KVType.BF16,
    weights_dtype: Annotated[_WeightsType, typer.Option(help="How matrices are stored.")] = _WeightsType.BF16,
    seconds: Annotated[float, typer.Option(min=1, help="Of each run of one configuration.")] = 3.5,
    steady: Annotated[
        float, typer.Option(min=0, help="Seconds of the run with prompts given back, if not those.")
    ] = 0.0,
    steady_for: Annotated[str, typer.Option(help="Slots that run for so long: all, none, 64,128.")] = "all",
    beside: Annotated[str, typer.Option(help="Slots measured with work beside the calls: all, none, 64,128.")] = "all",
    json_output: Json = False,
) -> None:
    """The duplex model's engine with random weights and full windows: what a device holds, and what bounds it."""
    with told():
        from model.bench.configurations import Order
        from model.bench.engine import bench_engine, slots_of, some_of

        try:
            counts = slots_of(slots)
        except ValueError:
            raise typer.BadParameter(f"{slots!r} is not a list such as 1,8,64", param_hint="--slots") from None
        some = []
        for option, text in (("--beside", beside), ("--steady-for", steady_for)):
            try:
                some.append(some_of(text))
            except ValueError:
                raise typer.BadParameter(f"{text!r} is not all, none or 64,128", param_hint=option) from None
        order = Order(
            size.value,
            device.value,
            counts,
            kv_dtype.value,
            weights_dtype.value,
            seconds,
            beside=some[0],
            steady=steady,
            steady_for=some[1],
        )
        raise typer.Exit(bench_engine(order, json_output=json_output))
