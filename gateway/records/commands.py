"""The `callplex records` commands: see, export, erase, and the API's tokens."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import json
import sys
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar

import typer

if TYPE_CHECKING:
    from gateway.records.database import Database
    from gateway.records.erasure import Eraser
    from gateway.records.sound import Sound
    from gateway.settings import Settings

_T = TypeVar("_T")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def records_app(settings: Callable[[], Settings]) -> typer.Typer:
    """The commands; `settings` reads them when a command runs."""
    app = typer.Typer(no_args_is_help=True, help="See, export and erase the records of calls.")
    tokens = typer.Typer(no_args_is_help=True, help="Tokens of the admin API.")
    app.add_typer(tokens, name="token")

    def run(work: Callable[[Database, Settings], Coroutine[Any, Any, _T]]) -> _T:
        return _run(settings(), work)

    _reading(app, run)
    _one(app, run)
    _erasing(app, run)
    _tokens(tokens, run)
    return app


Run = Callable[[Callable[["Database", "Settings"], Coroutine[Any, Any, Any]]], Any]


def _reading(app: typer.Typer, run: Run) -> None:
    @app.command("list")
    def list_command(
        number: Annotated[str, typer.Option(help="The caller's or ours.")] = "",
        persona: Annotated[str, typer.Option(help="Who answered.")] = "",
        end_reason: Annotated[str, typer.Option(help="How they ended, for example lost.")] = "",
        since: Annotated[str, typer.Option(help="Started then or later: 2026-01-31, or with a time; UTC.")] = "",
        until: Annotated[str, typer.Option(help="Started before.")] = "",
        text: Annotated[str, typer.Option(help="Words that were said; finds calls that are over.")] = "",
        after: Annotated[str, typer.Option(help="Go on after the last page: its `next`.")] = "",
        limit: Annotated[int, typer.Option(min=1, max=500)] = 50,
        json_output: Json = False,
    ) -> None:
        """Calls, the newest first."""
        from gateway.records import audit
        from gateway.records.calls import CallFilter, find
        from gateway.records.views import moment, summary

        async def work(database: Database, settings: Settings) -> dict[str, Any]:
            wanted = CallFilter(number, persona, end_reason, "", moment(since), moment(until), text)
            async with database.begin() as connection:
                page = await find(connection, wanted, after, limit)
                await audit.note(connection, _who(), audit.LIST, calls=len(page.calls))
            return {"calls": [summary(row) for row in page.calls], "next": page.next}

        found = run(work)
        if json_output:
            typer.echo(json.dumps(found))
            return
        if not found["calls"]:
            typer.echo("no such calls", err=True)
        for one in found["calls"]:
            typer.echo(_line(one))
        if found["next"]:
            typer.echo(f"more: --after {found['next']}")


def _one(app: typer.Typer, run: Run) -> None:
    @app.command()
    def show(call_id: str, json_output: Json = False) -> None:
        """One call: what was said, what happened, who was told."""
        found = run(_record(call_id, "view", ""))
        if json_output:
            typer.echo(json.dumps(found))
            return
        from gateway.records.exports import as_text

        typer.echo(as_text(found), nl=False)
        for one in found["events"]:
            typer.echo(f"event {one['at']:.1f} s  {one['kind']}  {json.dumps(one['data'])}")
        for one in found["deliveries"]:
            typer.echo(
                f"delivery {one['id']}  {one['event']} to {one['endpoint']}: {one['state']}, {one['attempts']} attempts"
            )

    @app.command()
    def export(
        call_id: Annotated[str, typer.Argument(help="A call; or name a caller with --number.")] = "",
        number: Annotated[str, typer.Option(help="Every call of one caller, into the folder --out.")] = "",
        format: Annotated[Literal["json", "text", "vtt", "wav"], typer.Option()] = "json",  # noqa: A002
        out: Annotated[
            Path | None, typer.Option(help="A file, or with --number a folder; else standard output.")
        ] = None,
    ) -> None:
        """A call as JSON, text, WebVTT, or its recording as WAV; or all that is kept of one caller."""
        if bool(call_id) == bool(number):
            raise typer.BadParameter("name a call, or a caller with --number")
        if number and out is None:
            raise typer.BadParameter("say with --out into which folder")
        if number and out is not None:
            missing = _export_caller(run, number, format, out)
        else:
            missing = _export_call(run, call_id, format, out)
        if missing:
            _fail("; ".join(missing))


def _export_call(run: Run, call_id: str, form: str, out: Path | None) -> list[str]:
    """Returns what is missing, in sentences."""
    if form != "wav":
        _keep(_rendered(run(_record(call_id, "export", form)), form), out)
        return []
    missing: str = run(_recording(call_id, out))
    return [missing] if missing else []


def _export_caller(run: Run, number: str, form: str, folder: Path) -> list[str]:
    """All calls of one caller into the folder, with their recordings; returns what is missing, in sentences."""

    async def theirs(database: Database, settings: Settings) -> list[str]:
        return await _eraser(database, settings).calls_of(number)

    found, missing = run(theirs), []
    for one in found:
        kept = run(_record(one, "export", form))
        if form != "wav":
            _keep(_rendered(kept, form), folder / f"{one}.{ENDINGS[form]}")
        if kept["recorded"]:
            missing += _export_call(run, one, "wav", folder / f"{one}.wav")
    typer.echo(f"{len(found)} calls of {number} are in {folder}", err=True)
    return missing


def _erasing(app: typer.Typer, run: Run) -> None:
    @app.command()
    def erase(
        call_id: Annotated[str, typer.Argument(help="A call; or name a caller with --number.")] = "",
        number: Annotated[str, typer.Option(help="Every call of one caller.")] = "",
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
        json_output: Json = False,
    ) -> None:
        """Delete what was said and what names the caller, for good; that there was a call stays known."""
        if bool(call_id) == bool(number):
            raise typer.BadParameter("name a call, or a caller with --number")

        async def which(database: Database, settings: Settings) -> list[str]:
            return await _eraser(database, settings).calls_of(number)

        wanted = [call_id] if call_id else run(which)
        if wanted and not yes:
            typer.confirm(f"Erase {len(wanted)} calls for good?", abort=True, err=True)

        async def work(database: Database, settings: Settings) -> tuple[list[dict[str, Any]], list[str]]:
            return await _erase(_eraser(database, settings), wanted)

        erased, elsewhere = run(work)
        if call_id and not erased:
            _fail(elsewhere[0] if elsewhere else f"there is no call {call_id} that is over")
        if json_output:
            typer.echo(json.dumps({"erased": erased}))
        else:
            typer.echo(f"{len(erased)} calls are erased; the audit log says what was deleted")
        _say_what_is_left(erased)
        if elsewhere:
            _fail("; ".join(elsewhere))


async def _erase(eraser: Eraser, wanted: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """What was erased, and in sentences what only another gateway can: that stops no other call."""
    from gateway.records.sound import FilesElsewhere

    erased: list[dict[str, Any]] = []
    elsewhere: list[str] = []
    for one in wanted:
        try:
            done = await eraser.erase(one, _who())
        except FilesElsewhere as error:
            elsewhere.append(str(error))
            continue
        if done is not None:
            erased.append({"call_id": done.call_id, **done.detail})
    return erased, elsewhere


def _say_what_is_left(erased: Iterable[dict[str, Any]]) -> None:
    """Files on disks of gateways that do not run: each deletes them when it starts again."""
    from gateway.records.files import gateway_at

    for one in erased:
        place = one.get("not_reached") or one.get("recording", {}).get("not_reached")
        if place:
            left = f"files of {one['call_id']} may be left on {gateway_at(place)}, which does not run"
            typer.echo(f"callplex: {left}; it deletes them when it starts", err=True)


def _eraser(database: Database, settings: Settings) -> Eraser:
    from gateway.records.erasure import Eraser
    from gateway.records.files import Records
    from gateway.records.unfiled import Unfiled

    records, unfiled = Records(settings.data_dir), Unfiled(settings.data_dir)
    return Eraser(database, records, _sound(settings).delete, unfiled, settings.s3.wanted)


def _sound(settings: Settings) -> Sound:
    from gateway.recording.store import configured_store
    from gateway.records.files import place_of
    from gateway.records.sound import Sound

    return Sound(configured_store(settings), settings.data_keys, place_of(settings.data_dir))


def _tokens(app: typer.Typer, run: Run) -> None:
    @app.command()
    def create(name: str, json_output: Json = False) -> None:
        """Make a token. From the first one on, the admin API answers only those who bring one."""
        from gateway.records.api_tokens import create as make

        token = run(lambda database, settings: make(database, name))
        typer.echo(json.dumps({"name": name, "token": token}) if json_output else token)

    @app.command("list")
    def list_command(json_output: Json = False) -> None:
        """Names of the tokens; the tokens themselves are nowhere."""
        from gateway.records.api_tokens import listed
        from gateway.records.views import stamp

        found = run(lambda database, settings: listed(database))
        shown = [{name: value if name == "name" else stamp(value) for name, value in one.items()} for one in found]
        if json_output:
            typer.echo(json.dumps({"tokens": shown}))
            return
        if not shown:
            typer.echo("no tokens: whoever reaches the admin listener may ask", err=True)
        for one in shown:
            revoked = f", revoked {one['revoked_at']}" if one["revoked_at"] else ""
            typer.echo(f"{one['name']}  made {one['created_at']}{revoked}")

    @app.command()
    def revoke(name: str) -> None:
        """The token opens nothing from now on."""
        from gateway.records.api_tokens import revoke as stop

        run(lambda database, settings: stop(database, name))
        typer.echo(f"the token {name} is revoked")


def _line(one: dict[str, Any]) -> str:
    """A call in one line."""
    seconds = "live" if one["seconds"] is None else f"{one['seconds']:.0f} s"
    numbers = f"{one['from'] or '-'} -> {one['to'] or '-'}"
    end = f"{one['persona']}  {seconds}  {one['end_reason']}"
    return f"{one['started_at'][:19]}  {one['call_id']}  {numbers}  {end}"


ENDINGS = {"json": "json", "text": "txt", "vtt": "vtt"}


def _record(call_id: str, action: str, form: str) -> Callable[[Database, Settings], Coroutine[Any, Any, Any]]:
    async def work(database: Database, settings: Settings) -> dict[str, Any]:
        from gateway.records import audit
        from gateway.records.views import record

        async with database.begin() as connection:
            found = await record(connection, call_id)
            if found is None:
                _fail(f"there is no call {call_id}")
            detail = {"format": form} if form else {}
            await audit.note(connection, _who(), action, call_id, **detail)
        return found

    return work


def _recording(call_id: str, out: Path | None) -> Callable[[Database, Settings], Coroutine[Any, Any, str]]:
    """Write the call's recording as WAV; what comes of it is why it cannot be written, empty if it is."""

    async def work(database: Database, settings: Settings) -> str:
        from gateway.records import audit
        from gateway.records.calls import row_of
        from gateway.records.sound import SoundUnavailable

        async with database.begin() as connection:
            row = await row_of(connection, call_id)
            if row is None or not row["recording"]:
                return f"there is no recording of {call_id}" if row else f"there is no call {call_id}"
            await audit.note(connection, _who(), audit.EXPORT, call_id, format="wav")
        try:
            recording = await _sound(settings).open(row["recording"], row["files_on"])
        except SoundUnavailable as error:
            return str(error)
        with contextlib.closing(recording):
            _write(recording.wav(), out)
        if warning := recording.cut_warning():
            typer.echo(f"callplex: {warning}", err=True)
        return ""

    return work


def _write(pieces: Iterable[bytes], path: Path | None) -> None:
    try:
        if path is None:
            sys.stdout.buffer.writelines(pieces)
            sys.stdout.buffer.flush()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.writelines(pieces)
    except OSError as error:
        _fail(f"cannot write {path or 'the recording'}: {error.strerror}")


def _rendered(found: dict[str, Any], form: str) -> str:
    from gateway.records.exports import as_text, as_vtt

    if form == "json":
        return json.dumps(found, indent=2, ensure_ascii=False) + "\n"
    return as_vtt(found) if form == "vtt" else as_text(found)


def _keep(text: str, path: Path | None) -> None:
    if path is None:
        typer.echo(text, nl=False)
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    except OSError as error:
        _fail(f"cannot write {path}: {error.strerror}")


def _run(settings: Settings, work: Callable[[Database, Settings], Coroutine[Any, Any, _T]]) -> _T:
    from gateway.recording.bucket import BucketError
    from gateway.records.api_tokens import TokenInvalid
    from gateway.records.calls import QueryInvalid
    from gateway.records.database import Database, DatabaseInvalid, DatabaseUnavailable, configured_url
    from gateway.records.files import RecordsError
    from gateway.records.sound import SoundUnavailable

    async def opened() -> _T:
        async with Database.open(configured_url(settings)) as database:
            return await work(database, settings)

    try:
        return asyncio.run(opened())
    except (BucketError, DatabaseInvalid, DatabaseUnavailable, RecordsError, SoundUnavailable) as error:
        _fail(str(error))
    except (QueryInvalid, TokenInvalid) as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"cannot delete {error.filename or 'a file'}: {error.strerror or error}")


def _who() -> str:
    """Whoever runs the command, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):
        return "cli"


def _fail(message: str) -> NoReturn:
    typer.echo(f"callplex: {message}", err=True)
    raise typer.Exit(1)
