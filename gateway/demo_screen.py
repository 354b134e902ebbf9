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
from rich.table import Table
from rich.text import Text

from gateway.phone.command import metrics_table
from gateway.phone.metrics import Metrics

STYLES = {"caller": "cyan", "agent": "green"}


class Conversation:
    """The utterances of one call, shown as they come in. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._utterances: dict[object, Mapping[str, Any]] = {}
        self._printed: set[object] = set()
        self._live = Live(console=console, refresh_per_second=10, vertical_overflow="visible")

    def __enter__(self) -> Conversation:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._print_up_to(None)

    def show(self, utterance: Mapping[str, Any]) -> None:
        """One utterance as the gateway's live feed tells it; the same number again replaces it."""
        number = utterance.get("number")
        self._utterances[number] = utterance
        if self._console.is_terminal:
            lines = [line(one) for _, one in sorted(self._utterances.items(), key=lambda item: item[1].get("at", 0.0))]
            self._live.update(Text("\n").join(lines))
        else:
            self._print_up_to(number)

    def _print_up_to(self, current: object) -> None:
        """Print what is complete: said to be final, or followed by another utterance of the same side."""
        speaking = self._utterances.get(current, {}).get("speaker")
        for number, one in self._utterances.items():
            over = one.get("final") or current is None or (number != current and one.get("speaker") == speaking)
            if over and number not in self._printed:
                self._printed.add(number)
                self._console.print(line(one), soft_wrap=True)


def line(utterance: Mapping[str, Any]) -> Text:
    """`  3.2 s  agent   Hello ...`"""
    speaker = str(utterance.get("speaker", ""))
    at = utterance.get("at", utterance.get("start", 0.0))
    text = Text(f"{at:6.1f} s  ", style="dim")
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
    console.print(transcript_table(document))
    console.print(table, soft_wrap=True)
    for sentence in missing:
        console.print(f"[red]{escape(sentence)}[/red]", soft_wrap=True)
    if not missing:
        console.print("[bold green]All of it happened: answered, interrupted, goodbye, webhook verified, recorded.")


def transcript_table(document: Mapping[str, Any]) -> Table:
    """Both sides as the verified webhook told them."""
    table = Table(title="Transcript, from the verified webhook", show_header=False, box=None, title_justify="left")
    for utterance in document.get("utterances", []):
        table.add_row(line(utterance))
    return table
