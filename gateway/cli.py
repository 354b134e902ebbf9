"""The `callplex` command: reads words and settings, starts the right thing, says errors in one sentence.

Exit status 0: it did what it says; 1: it failed, one sentence on standard error says why; 2: wrong use.
Parts are imported when their command runs, so that `callplex --help` is quick and a gateway never
loads a worker's libraries.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.bench.commands import bench_app
from gateway.command import Json, fail, read_settings
from gateway.core_dumps import forbid_core_dumps
from gateway.records.commands import records_app
from gateway.settings import Settings, SettingsInvalid, load_settings, masked
from gateway.webhooks.commands import webhooks_app
from model.commands import Places, bench_engine_command, told, voices_app, weights_app

if TYPE_CHECKING:
    from gateway.persona_model import Persona
    from model.wire import SessionRequest

# The matrices here are small: BLAS threads would spend their time waiting for each other, 400 ms for
# a sentence where one thread takes 17 (measured on two busy cores). Read when numpy is first loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Lets a phone number be answered by a full-duplex speech model.",
)
personas_app = typer.Typer(no_args_is_help=True, help="Check the personas.")
app.add_typer(personas_app, name="personas")
app.add_typer(bench_app, name="bench")
bench_app.command("engine")(bench_engine_command)
app.add_typer(weights_app(lambda: _places(read_settings())), name="weights")
app.add_typer(voices_app(lambda: _places(read_settings())), name="voices")
app.add_typer(records_app(read_settings), name="records")
app.add_typer(webhooks_app(read_settings), name="webhooks")


def _run(work: Coroutine[Any, Any, None], expected: tuple[type[Exception], ...]) -> None:
    """Run on uvloop; an expected error ends with its sentence, also from inside a task group."""
    import uvloop

    def first(group: BaseExceptionGroup[Exception]) -> Exception:
        inner = group.exceptions[0]
        return first(inner) if isinstance(inner, BaseExceptionGroup) else inner

    try:
        uvloop.run(work)
    except expected as error:
        fail(str(error))
    except BaseExceptionGroup as group:
        matching = group.subgroup(expected)
        if matching is None:
            raise
        fail(str(first(matching)))


@app.command()
def serve(
    listen: Annotated[str | None, typer.Option(help="Where carriers reach us, host:port.")] = None,
    admin_listen: Annotated[str | None, typer.Option(help="Metrics and API, host:port.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the addresses as JSON once ready.")] = False,
) -> None:
    """Answer calls until stopped."""
    forbid_core_dumps()
    settings = read_settings(listen=listen, admin_listen=admin_listen)
    from gateway.engine import EngineError
    from gateway.persona_model import PersonaInvalid
    from gateway.recording.bucket import BucketError
    from gateway.records.database import DatabaseInvalid, DatabaseUnavailable
    from gateway.serving import CannotListen, Listening
    from gateway.serving import serve as serve_gateway
    from gateway.webhooks.endpoints import WebhookInvalid

    def ready(at: Listening) -> None:
        if json_output:
            typer.echo(json.dumps({"listening": at.public, "admin": at.admin, "sip": dict(at.sip)}))
        _say_what_next(settings, at.public, at.admin)
        if at.sip:
            typer.echo(f"  SIP: {', '.join(f'{kind} {where}' for kind, where in at.sip.items())}", err=True)

    _run(
        serve_gateway(settings, ready),
        (
            BucketError,
            CannotListen,
            PersonaInvalid,
            EngineError,
            SettingsInvalid,
            WebhookInvalid,
            DatabaseInvalid,
            DatabaseUnavailable,
        ),
    )


def _command() -> str:
    """How this command was called, so that what we print can be pasted."""
    started, found = sys.argv[0], shutil.which("callplex")
    if Path(started).name != "callplex" or (found is not None and Path(found).samefile(started)):
        return "callplex"
    return shlex.quote(started)


def _say_what_next(settings: Settings, public: str, admin: str) -> None:
    say: Callable[[str], None] = lambda line: typer.echo(line, err=True)  # noqa: E731
    base = settings.public_url.rstrip("/") or f"http://{public}"
    say(f"callplex: ready on {public}; metrics on http://{admin}/metrics")
    if settings.public_url:
        say(f"  Twilio: set the number's voice webhook to  {base}/twilio/voice  (HTTP POST)")
    else:
        say("  Twilio: set CALLPLEX_PUBLIC_URL to the https address under which Twilio reaches this gateway,")
        say("          and CALLPLEX_TWILIO_AUTH_TOKEN to the account's auth token; then its voice webhook")
        say("          is  <CALLPLEX_PUBLIC_URL>/twilio/voice  (HTTP POST)")
    token = " (CALLPLEX_TWILIO_AUTH_TOKEN set there too)" if settings.twilio_auth_token.get_secret_value() else ""
    say(f"  From another terminal{token}:  {_command()} call --wav FILE.wav --url http://{public}")
    if settings.allow_unsigned:
        say("WARNING: CALLPLEX_ALLOW_UNSIGNED is set: anybody who can reach this port can place calls.")


@app.command()
def worker(
    listen: Annotated[str | None, typer.Option(help="Where gateways reach it, host:port.")] = None,
    engine: Annotated[str | None, typer.Option(help="rehearsal, echo or personaplex.")] = None,
    capacity: Annotated[int | None, typer.Option(help="Calls it holds at once.")] = None,
    slots: Annotated[int | None, typer.Option(help="The same for personaplex; 0: as many as it can.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or auto.")] = None,
    context: Annotated[str | None, typer.Option(help="reprime, or sliding as the reference.")] = None,
    kv_dtype: Annotated[str | None, typer.Option(help="auto, float32, bf16 or fp8.")] = None,
    weights_dtype: Annotated[str | None, typer.Option(help="auto or fp8.")] = None,
    transcriber: Annotated[str | None, typer.Option(help="whisper or none.")] = None,
    exit_with_parent: Annotated[bool, typer.Option(help="End when standard input does.")] = False,
) -> None:
    """Run one engine and serve it to gateways."""
    forbid_core_dumps()
    settings = read_settings(
        worker_listen=listen,
        engine=engine,
        worker_capacity=capacity,
        slots=slots,
        device=device,
        context=context,
        kv_dtype=kv_dtype,
        weights_dtype=weights_dtype,
        transcriber=transcriber,
    )
    from gateway.worker_process import WorkerRefused, run_worker

    _run(run_worker(settings, exit_with_parent), (WorkerRefused,))


@app.command()
def demo(json_output: Json = False) -> None:
    """Place one call against a real gateway and worker on this machine, and show all of it."""
    settings = read_settings()
    from gateway.demo import run_demo

    raise typer.Exit(run_demo(json_output=json_output, data_dir=settings.data_dir))


@app.command()
def call(
    wav: Annotated[Path | None, typer.Option(help="What the caller says: a WAV file.")] = None,
    mic: Annotated[bool, typer.Option("--mic", help="Speak through the microphone instead.")] = False,
    to: Annotated[str, typer.Option("--to", help="Number dialled.")] = "+15550100",
    from_: Annotated[str, typer.Option("--from", help="Number shown as the caller's.")] = "+15550199",
    url: Annotated[str, typer.Option(help="The gateway.")] = "http://127.0.0.1:8080",
    sip: Annotated[str | None, typer.Option(help="Call over SIP instead, for example sip:agent@127.0.0.1.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for agent.wav and call.wav.")] = None,
    json_output: Json = False,
) -> None:
    """A phone in the terminal: calls a gateway as Twilio would, or over SIP."""
    settings = read_settings()
    from gateway.phone.command import call_command
    from gateway.phone.sip import account_from

    raise typer.Exit(
        call_command(
            url=url,
            wav=wav,
            mic=mic,
            to_number=to,
            from_number=from_,
            out=out,
            json_output=json_output,
            auth_token=settings.twilio_auth_token.get_secret_value(),
            account_sid=settings.twilio_account_sid,
            sign_as=settings.public_url,
            sip=account_from(sip, settings.sip) if sip is not None else None,
        )
    )


@app.command()
def doctor(json_output: Json = False) -> None:
    """Say what is missing or wrong, each with the command that fixes it."""
    from gateway.doctor.examine import examine
    from gateway.doctor.finding import report

    raise typer.Exit(report(examine(load_settings), json_output))


@app.command()
def config(json_output: Json = False) -> None:
    """Print the effective settings, secrets masked."""
    effective = masked(read_settings())
    if json_output:
        typer.echo(json.dumps(effective))
        return
    for name, value in effective.items():
        typer.echo(f"{name}={value}")


@personas_app.command("check")
def personas_check(path: Annotated[Path | None, typer.Argument(help="A file or folder.")] = None) -> None:
    """Validate persona files; every problem with its file, line and field."""
    settings = read_settings()
    from gateway.personas import check_personas

    problems = check_personas(path or settings.personas)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise typer.Exit(1)
    typer.echo(f"{path or settings.personas}: valid")


@app.command()
def offline(
    caller_wav: Annotated[Path, typer.Option(help="What the caller says: a WAV file.")],
    out: Annotated[Path, typer.Option(help="What the agent says: a WAV file of the same length.")],
    text: Annotated[Path | None, typer.Option(help="The agent's words and their times: a JSON file.")] = None,
    voice: Annotated[str, typer.Option(help="One of `callplex voices list`.")] = "",
    prompt: Annotated[str, typer.Option(help="Who the agent is and what it knows.")] = "",
    persona: Annotated[Path | None, typer.Option(help="Take voice, prompt and sampling from this persona.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same conversation.")] = 0,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    stereo: Annotated[Path | None, typer.Option(help="Both sides: a WAV file, the caller on the left.")] = None,
    json_output: Json = False,
) -> None:
    """Hold a conversation with a WAV file, with the duplex model and no phone."""
    places = _places(read_settings())
    with told():
        from model import commands
        from model.offline import OfflineRun
        from model.wire import Sampling

        sampling = Sampling(seed=seed)
        if persona is not None:
            request = _persona_request(persona, seed)
            voice, prompt, sampling = voice or request.voice, prompt or request.prompt, request.sampling
        run = OfflineRun(
            caller=caller_wav,
            out=out,
            text=text,
            voice=voice or "NATF2",
            prompt=prompt,
            weights=places.weights,
            recordings=places.recordings,
            sampling=None if greedy else sampling,
            device=device,
            stereo=stereo,
        )
        commands.offline(run, json_output)


@personas_app.command("clip")
def personas_clip(
    persona: Annotated[Path, typer.Argument(help="A persona file.")],
    text: Annotated[str, typer.Option(help="What is said; by default the persona's disclosure.")] = "",
    out: Annotated[Path | None, typer.Option(help="By default clips/PERSONA-VERSION.clip beside the persona.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The first seed that is tried.")] = 0,
    attempts: Annotated[int, typer.Option(min=1, help="How many are.")] = 8,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Let a persona's voice say its disclosure, check it by speech recognition, and keep it as a clip."""
    places = _places(read_settings())
    with told():
        from model import commands
        from model.clip_maker import ClipRequest
        from model.folder import ModelFolder
        from model.voices import VoiceRefused, voice_file

        request, one = _persona_request(persona, seed), _persona(persona)
        try:
            voice_path = voice_file(request.voice, ModelFolder(places.weights).voices, places.recordings)
        except VoiceRefused as error:
            fail(str(error))
        said = text or one.disclosure
        if not said:
            fail(f"{persona} has no disclosure; say what to speak with --text")
        if said != one.disclosure and out is None:
            fail("say where to keep it with --out: the default place is that of the persona's own disclosure")
        wanted = ClipRequest(
            said, request.voice, voice_path, request.prompt, one.id, one.version, seed=seed, attempts=attempts
        )
        place = out or persona.parent / "clips" / f"{one.id}-{one.version}.clip"
        commands.clip(wanted, places.weights, device, place)


def _places(settings: Settings) -> Places:
    return Places(settings.weights_dir or Path("weights"), settings.personas / "voices")


def _persona(path: Path) -> Persona:
    from gateway.personas import read_persona
    from gateway.yaml_lines import Problem

    problems: list[Problem] = []
    persona = read_persona(path, problems)
    if problems or persona is None:
        fail("\n".join(map(str, problems)))
    return persona


def _persona_request(path: Path, seed: int) -> SessionRequest:
    from gateway.personas import session_request

    return session_request(_persona(path), "offline", {}, seed)


def main() -> None:
    """Entry point; Ctrl-C is a wish, not an error."""
    try:
        app()
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


if __name__ == "__main__":
    main()
