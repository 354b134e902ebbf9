"""`callplex doctor`: what is missing or wrong on this machine, each with the command that fixes it.

Owns the order of the checks, one file of this folder for each area. Looks only: it creates, changes and downloads
nothing. What is checked belongs to other files, whose own validation it calls, so that both can never disagree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from gateway.doctor.carriers import carrier, sip, webhook
from gateway.doctor.content import persona_files, recordings
from gateway.doctor.engines import chat, engine
from gateway.doctor.finding import Finding
from gateway.doctor.machine import data_folder, descriptors, listeners
from gateway.doctor.packages import packages, python_version
from gateway.doctor.swap import swap
from gateway.doctor.workers import worker_tls, workers
from gateway.settings import Settings, SettingsInvalid


def examine(load: Callable[[], Settings]) -> list[Finding]:
    """Every check, in the order in which problems are best mended. `load` reads the settings."""
    findings = [python_version(sys.version_info[:2]), *packages("")]
    try:
        settings = load()
    except SettingsInvalid as error:
        variable = str(error).partition(":")[0]
        fix = f"unset {variable}    # then look in .env and callplex.toml, and at: callplex config"
        if not variable.startswith("CALLPLEX_"):
            fix = "file .env callplex.toml    # then mend what is named above"
        return [*findings, Finding("settings", False, str(error), fix)]
    findings.append(Finding("settings", True, "valid"))
    for check in (
        listeners,
        descriptors,
        data_folder,
        swap,
        persona_files,
        carrier,
        sip,
        recordings,
        webhook,
        workers,
        engine,
        worker_tls,
        chat,
    ):
        findings.extend(check(settings))
    return findings
