"""What operations staff write: personas and routing, and what recordings need."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.doctor.finding import Finding
from gateway.personas import check_personas, read_personas
from gateway.recording.checks import recording_checks
from gateway.settings import Settings


def persona_files(settings: Settings) -> Iterator[Finding]:
    """One finding for each problem, or one that says all is well."""
    folder = settings.personas
    if not folder.is_dir():
        fix = "export CALLPLEX_PERSONAS=/path/to/personas"
        yield Finding("personas", False, f"{folder.absolute()} is not a folder", fix)
        return
    problems = check_personas(folder)
    for problem in problems:
        yield Finding("personas", False, problem, "callplex personas check    # after changing that line")
    if not problems:
        yield Finding("personas", True, f"all valid in {folder}, routing too")


def recordings(settings: Settings) -> Iterator[Finding]:
    """Data key, codec and bucket, as the personas that can be read need them."""
    personas = read_personas(settings.personas, []) if settings.personas.is_dir() else {}
    yield from (Finding(*check) for check in recording_checks(settings, personas.values()))
