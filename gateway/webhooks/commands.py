"""`callplex webhooks ...`: the words, and what is printed. The work is `operator.py`'s, loaded when a command runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from gateway.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


def webhooks_app(load: Callable[[], Settings]) -> typer.Typer:
    """The commands; `load` reads the settings, and ends with a sentence if it cannot."""
    app = typer.Typer(no_args_is_help=True, help="Try endpoints, and see and repeat what was sent to them.")

    @app.command("test")
    def test(
        endpoint: Annotated[str, typer.Argument(help="Its name; `default` is that of CALLPLEX_WEBHOOK_URL.")],
        event: Annotated[str, typer.Option(help="A kind such as call.ended; by default callplex.test.")] = "",
        json_output: Json = False,
    ) -> None:
        """Send a made-up event to one endpoint now, and say what it answered."""
        with _told():
            from gateway.webhooks.operator import send_test

            result = send_test(load(), endpoint, event)
        _print(result, json_output, f"{endpoint}: {result['reason']} ({result['ms']} ms)")
        if not result["taken"]:
            raise typer.Exit(1)

    @app.command("list")
    def listing(
        state: Annotated[str, typer.Option(help="waiting, delivered or dead.")] = "",
        endpoint: Annotated[str, typer.Option(help="Only what goes to this one.")] = "",
        call: Annotated[str, typer.Option(help="Only what tells of this call.")] = "",
        limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 50,
        json_output: Json = False,
    ) -> None:
        """Show the endpoints, and deliveries, the newest first."""
        with _told():
            from gateway.webhooks.operator import listed

            found = listed(load(), state, endpoint, call, limit)
        _print(found, json_output, _table(found))

    @app.command("redeliver")
    def redeliver(
        ids: Annotated[list[str] | None, typer.Argument(help="webhook-ids, as `list` shows them.")] = None,
        endpoint: Annotated[str, typer.Option(help="All dead letters of this endpoint.")] = "",
        call: Annotated[str, typer.Option(help="All dead letters of this call.")] = "",
        every: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
        json_output: Json = False,
    ) -> None:
        """Send deliveries again, under the same ids: those named, or dead letters."""
        if not (ids or endpoint or call or every):
            raise typer.BadParameter("say what to send again: webhook-ids, --endpoint, --call or --all")
        with _told():
            from gateway.webhooks.operator import redeliver as send_again

            number = send_again(load(), ids or [], endpoint, call)
        _print({"redelivered": number}, json_output, f"{number} will be sent again at once")
        if ids and number < len(set(ids)):
            typer.echo("callplex: the others are unknown, erased, or just being delivered", err=True)
            raise typer.Exit(1)

    @app.command("enable")
    def enable(
        endpoint: Annotated[str, typer.Argument(help="Its name.")],
        json_output: Json = False,
    ) -> None:
        """Deliver again to an endpoint that was disabled because it answered 410."""
        with _told():
            from gateway.webhooks.operator import enable as enable_again

            was = enable_again(load(), endpoint)
        said = f"{endpoint} is enabled; for its dead letters: callplex webhooks redeliver --endpoint {endpoint}"
        _print({"enabled": endpoint, "was_disabled": was}, json_output, said if was else f"{endpoint} was not disabled")

    return app


@contextmanager
def _told() -> Iterator[None]:
    """What is refused ends with status 1 and its sentence."""
    from gateway.webhooks.operator import CommandRefused

    try:
        yield
    except CommandRefused as error:
        typer.echo(f"callplex: {error}", err=True)
        raise typer.Exit(1) from None


def _print(value: Mapping[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(value) if as_json else text)


def _table(found: Mapping[str, Any]) -> str:
    lines = [
        f"{one['name']}: {one['url']}, {one['waiting']} waiting, {one['delivered']} delivered, {one['dead']} dead"
        + (f"; {one['disabled']}" if one["disabled"] else "")
        for one in found["endpoints"]
    ]
    lines += [
        f"{one['created_at'][:19]}  {one['id']}  {one['state']:9}  {one['endpoint']:12}  {one['event']:16}"
        f"  {one['call_id']}  {one['attempts']} attempts{'  ' + one['reason'] if one['reason'] else ''}"
        for one in found["deliveries"]
    ]
    return "\n".join(lines) or "no endpoints and no deliveries"
