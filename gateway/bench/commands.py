"""`callplex bench ...`: one command for each thing that can be measured.

Parts are imported when their command runs, as everywhere in the command line.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gateway.command import Json, fail, read_settings

bench_app = typer.Typer(no_args_is_help=True, help="Measure, with figures you can compare.")


@bench_app.command("gateway")
def bench_gateway_command(
    calls: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 100,
    seconds: Annotated[float, typer.Option(min=1, help="How long each speaks.")] = 20.0,
    find_max: Annotated[bool, typer.Option("--max", help="Find the most calls one core holds.")] = False,
    worker_process: Annotated[bool, typer.Option(help="Echo in a worker of its own, not in the gateway.")] = False,
    recorded: Annotated[Literal["none", "wav", "opus"], typer.Option(help="How calls are recorded.")] = "wav",
    sealed: Annotated[bool, typer.Option("--sealed", help="Encrypt the recordings.")] = False,
    words: Annotated[bool, typer.Option("--words", help="Both sides talk, and what they say is written down.")] = False,
    json_output: Json = False,
) -> None:
    """Real Twilio-protocol calls from another process against a gateway that echoes."""
    read_settings()
    if words and worker_process:
        fail("--words are made up by the echo engine inside the gateway: leave out --worker-process")
    from gateway.bench.gateway import bench_gateway

    raise typer.Exit(
        bench_gateway(
            calls=calls,
            seconds=seconds,
            find_max=find_max,
            worker_process=worker_process,
            recorded=recorded,
            sealed=sealed,
            words=words,
            json_output=json_output,
        )
    )


@bench_app.command("sip")
def bench_sip_command(
    calls: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="How long they are measured.")] = 20.0,
    json_output: Json = False,
) -> None:
    """Real SIP calls with RTP from another process against a gateway that echoes."""
    read_settings()
    from gateway.bench.sip import bench_sip

    raise typer.Exit(bench_sip(calls=calls, seconds=seconds, json_output=json_output))


@bench_app.command("webhooks")
def bench_webhooks_command(
    deliveries: Annotated[int, typer.Option(min=1, help="For the healthy endpoint, and for the dead one.")] = 1000,
    database: Annotated[str, typer.Option(help="URL of an empty database; by default a new SQLite file.")] = "",
    json_output: Json = False,
) -> None:
    """Deliver to a healthy endpoint while a dead one has as many waiting."""
    read_settings()
    from gateway.bench.webhooks import bench_webhooks
    from gateway.records.database import DatabaseInvalid, DatabaseUnavailable

    try:
        status = bench_webhooks(deliveries, database, json_output)
    except (DatabaseInvalid, DatabaseUnavailable) as error:
        fail(str(error))
    raise typer.Exit(status)


@bench_app.command("records")
def bench_records_command(
    calls: Annotated[int, typer.Option(min=1, help="Calls that are made up.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often each page is asked for.")] = 50,
    url: Annotated[str, typer.Option(help="An empty database; else SQLite in a folder that is deleted.")] = "",
    json_output: Json = False,
) -> None:
    """Fill a database with a month of calls and time its pages."""
    read_settings()
    from gateway.bench.records import bench_records

    raise typer.Exit(bench_records(count=calls, rounds=rounds, url=url, json_output=json_output))


@bench_app.command("rehearsal")
def bench_rehearsal_command(
    calls: Annotated[int, typer.Option(min=1, help="Calls at once.")] = 4,
    rounds: Annotated[int, typer.Option(min=0, help="How often; 0: until every recorded caller has called.")] = 0,
    json_output: Json = False,
) -> None:
    """Recorded callers talk to the rehearsal engine; how fast it answers and falls silent, and what it costs."""
    read_settings()
    from gateway.bench.rehearsal import bench_rehearsal

    raise typer.Exit(bench_rehearsal(calls, rounds=rounds, json_output=json_output))


@bench_app.command("redaction")
def bench_redaction_command(
    calls: Annotated[int, typer.Option(min=2, help="Callers who say a card number.")] = 60,
    at_once: Annotated[int, typer.Option(min=1, help="So many at a time, at the pace of a call.")] = 4,
    verbose: Annotated[bool, typer.Option(help="Tell of each call on standard error.")] = False,
    json_output: Json = False,
) -> None:
    """Synthesised callers say card numbers; how much of them is gone from text and sound, and false alarms."""
    settings = read_settings()
    from gateway.bench.redaction import bench_redaction

    raise typer.Exit(bench_redaction(calls, at_once, settings, verbose=verbose, json_output=json_output))
