"""What all of `callplex`'s commands share: how settings are read, how one fails, and `--json`."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, NoReturn

import typer

from gateway.settings import Settings, SettingsInvalid, load_settings, misspelt_variables

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]

RENAMED = {"worker_listen": "--listen", "worker_capacity": "--capacity"}
"""Options of the command line that are not named as the setting they stand for."""

CHATTY = ("aiosqlite", "alembic", "asyncio", "httpcore", "httpx", "urllib3", "uvicorn.error")
"""Libraries whose debugging is not for our logs: it holds what callers said, and where webhooks go."""


def fail(message: str) -> NoReturn:
    """End with status 1 and one sentence."""
    typer.echo(f"callplex: {message}", err=True)
    raise typer.Exit(1)


def read_settings(**options: object) -> Settings:
    """The effective settings, and logging as they say. Ends the command if they cannot be used.

    `options`: what was typed, by setting; None where nothing was. Raises BadParameter, naming the option, for those.
    """
    typed = {name: value for name, value in options.items() if value is not None}
    try:
        settings = load_settings(**typed)
    except SettingsInvalid as error:
        if error.setting in typed:
            option = RENAMED.get(error.setting, f"--{error.setting.replace('_', '-')}")
            raise typer.BadParameter(error.fault, param_hint=option) from None
        fail(str(error))
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # Each attempt at a bucket that is away; what became of them all is said by `gateway.recording`.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    for sentence in misspelt_variables():
        logging.getLogger(__name__).warning(sentence)
    return settings
