"""`callplex call`: places one call from the terminal and prints what came of it.

Owns the words on the screen and the exit status; the call itself is `call.place_call`.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.phone.call import CallFailed, CallOptions, CallReport, Happening, is_local, place_call
from gateway.phone.caller import Voice
from gateway.phone.metrics import Metrics
from gateway.phone.microphone import MicrophoneMissing, open_microphone
from gateway.phone.script import load_caller
from gateway.phone.sip import SipAccount, SipCallOptions, place_sip_call
from gateway.phone.sound import SoundUnreadable

_T = TypeVar("_T")
USAGE = 2
FAILED = 1


def call_command(
    *,
    url: str,
    wav: Path | None = None,
    mic: bool = False,
    to_number: str = "+18005550100",
    from_number: str = "+13055550142",
    auth_token: str = "",
    account_sid: str = "",
    sign_as: str = "",
    out: Path | None = None,
    json_output: bool = False,
    sip: SipAccount | None = None,
) -> int:
    """Place one call and print its report; returns the exit status. With `sip` it goes over SIP, not to `url`.

    `wav`: any WAV, or a caller script (`.json`, see `script`). `sign_as`: the gateway's public URL,
    used when it is called on this machine. With `json_output` one JSON object goes to standard output:
    the report, or `{"error": sentence}`.
    """
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    if (wav is None) == (not mic):
        return _fail("Give either --wav FILE or --mic.", json_output, errors, USAGE)
    try:
        voice: Voice = open_microphone() if wav is None else load_caller(wav)
        sign_as = sign_as if is_local(url) else ""
        on_event = None if json_output else _Printer(Console(soft_wrap=True, highlight=False)).show
        if sip is not None:
            over_sip = SipCallOptions(sip.target, voice, from_number, sip.credentials, sip.tls_ca, sip.encrypted, out)
            report = run_until_interrupt(place_sip_call(over_sip, on_event), over_sip.hangup.set)
        else:
            options = CallOptions(url, voice, from_number, to_number, auth_token, account_sid, sign_as, out)
            report = run_until_interrupt(place_call(options, on_event), options.hangup.set)
    except (CallFailed, SoundUnreadable, MicrophoneMissing) as error:
        return _fail(str(error), json_output, errors, FAILED)
    if json_output:
        print(json.dumps(asdict(report)))  # noqa: T201
    else:
        print_report(report, Console(soft_wrap=True, highlight=False))
    if report.ended_by in ("gateway", "caller", "transfer"):
        return 0
    if not json_output:
        errors.print(f"[red]{escape(report.detail)}[/red]")
    return FAILED


def run_until_interrupt(work: Coroutine[object, object, _T], hang_up: Callable[[], None]) -> _T:
    """Run to the end; the first Ctrl-C or SIGTERM asks politely, the second one cancels (KeyboardInterrupt)."""

    async def supervised() -> _T:
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            hang_up()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
        return await work

    return asyncio.run(supervised())


def metrics_table(metrics: Metrics) -> Table:
    """The figures of a call, for the screen."""
    table = Table(show_header=False)
    table.add_row("time to answer", _ms(metrics.answer_ms))
    table.add_row("response latency, median", _ms(metrics.response_median_ms))
    table.add_row("response latency, worst", _ms(metrics.response_worst_ms))
    table.add_row("interruption to silence", ", ".join(_ms(value) for value in metrics.interruption_ms) or "none")
    frames = f"{metrics.frames_sent} / {metrics.frames_received} / {metrics.frames_lost}"
    table.add_row("frames sent / received / lost", frames)
    return table


def print_report(report: CallReport, console: Console) -> None:
    ended = report.detail or f"ended by the {report.ended_by}" + (f" to {report.transfer}" if report.transfer else "")
    console.print(f"{report.duration:.1f} s on the line, {escape(ended)}")
    console.print(metrics_table(report.metrics))
    if report.call_wav:
        console.print(f"both sides: {escape(report.call_wav)}   agent as heard: {escape(report.agent_wav)}")


class _Printer:
    """One line for each happening worth a line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, happening: Happening) -> None:
        if happening.kind != "mark":
            text = escape(happening.text)
            self._console.print(f"[dim]{happening.at:7.2f}[/dim]  {happening.kind:<10} {text}")


def _ms(value: float | None) -> str:
    return "none" if value is None else f"{value:.0f} ms"


def _fail(message: str, json_output: bool, errors: Console, status: int) -> int:
    if json_output:
        print(json.dumps({"error": message}))  # noqa: T201
    else:
        errors.print(f"[red]{escape(message)}[/red]")
    return status
