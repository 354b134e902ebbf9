"""One finding of the doctor's, and how findings are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import typer


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    """A command, where something is wrong."""
    warning: bool = False
    """Worth knowing, but calls are answered all the same."""

    @property
    def fails(self) -> bool:
        return not self.ok and not self.warning


def report(findings: Sequence[Finding], as_json: bool = False) -> int:
    """Print the findings; returns the exit status, 1 if anything but a warning is wrong."""
    healthy = not any(finding.fails for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}))
        return 0 if healthy else 1
    for finding in findings:
        mark, colour = ("ok", "green") if finding.ok else ("note", "yellow") if finding.warning else ("WRONG", "red")
        typer.echo(f"{typer.style(f'{mark:5}', fg=colour)}  {finding.name:13} {finding.detail}")
        if finding.fix:
            typer.echo(f"{'':21}fix: {finding.fix}")
    wrong = sum(finding.fails for finding in findings)
    typer.echo("Nothing is wrong." if healthy else f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong.")
    return 0 if healthy else 1
