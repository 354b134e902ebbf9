"""What the demo shows: both sides as they speak, then the table of what was measured.

Owns the words and their place on the screen. On a terminal utterances grow as they are spoken; into a
file or a pipe each is one line, written when it is complete.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from gateway.phone.command import metrics_table
from gateway.phone.metrics import Metrics

STILL = 1.5
"""Seconds without change after which an utterance counts as complete where lines cannot grow."""
STYLES = {"caller": "cyan", "agent": "green"}


class Conversation:
    """The utterances of one call, shown as they come in. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._utterances: dict[object, Mapping[str, Any]] = {}
        self._changed: dict[object, float] = {}
        self._growing = console.is_terminal and not console.quiet
        self._live = Live(console=console, refresh_per_second=10, vertical_overflow="visible")

    def __enter__(self) -> Conversation:
        if self._growing:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._growing:
            self._live.stop()
        self._print(list(self._changed))

    def show(self, utterance: Mapping[str, Any], now: float) -> None:
        """One utterance as the gateway's live feed tells it at `now` seconds.

        The same number again replaces it, and with an empty text takes it back.
        """
        number = utterance.get("number")
        self._utterances[number] = utterance
        if self._growing:
            spoken = [one for one in self._utterances.values() if one.get("text")]
            self._live.update(Text("\n").join(map(line, sorted(spoken, key=lambda one: float(one.get("at", 0.0))))))
            return
        self._changed[number] = now
        # Both sides may speak at once: an utterance is complete when the same side says the next, or after a while.
        self._print([one for one in self._changed if one != number and self._complete(one, utterance, now)])

    def _complete(self, number: object, latest: Mapping[str, Any], now: float) -> bool:
        same_side = self._utterances[number].get("speaker") == latest.get("speaker")
        return same_side or now - self._changed[number] >= STILL

    def _print(self, numbers: Sequence[object]) -> None:
        for number in numbers:
            del self._changed[number]
            if self._utterances[number].get("text"):
                self._console.print(line(self._utterances[number]), soft_wrap=True)


def line(utterance: Mapping[str, Any]) -> Text:
    """`  3.2 s  agent   Hello ...`"""
    speaker = str(utterance.get("speaker", ""))
    at = utterance.get("at", utterance.get("start", 0.0))
    text = Text()
    text.append(f"{at:6.1f} s  ", style="dim")
    text.append(f"{speaker:<7} ", style="bold " + STYLES.get(speaker, ""))
    text.append(str(utterance.get("text", "")).strip(), style=STYLES.get(speaker, ""))
    if utterance.get("interrupted"):
        text.append("  (interrupted)", style="yellow")
    return text


def print_result(
    console: Console, metrics: Metrics, document: Mapping[str, Any], files: Mapping[str, str], missing: Sequence[str]
) -> None:
    """The table at the end, and what did not happen."""
    table = metrics_table(metrics)
    for name, value in files.items():
        table.add_row(name, escape(value))
    console.print("\nThe transcript, from the verified webhook:")
    for utterance in document.get("utterances", []):
        console.print(line(utterance), soft_wrap=True)
    console.print()
    console.print(table, soft_wrap=True)
    for sentence in missing:
        console.print(f"[red]{escape(sentence)}[/red]", soft_wrap=True)
    if not missing:
        console.print("[bold green]All of it happened: answered, interrupted, goodbye, webhook verified, recorded.")
