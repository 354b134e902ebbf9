"""What the doctor finds where nothing is wrong but what a test makes so."""

from __future__ import annotations

import base64
from pathlib import Path

from gateway.doctor.examine import examine
from gateway.doctor.finding import Finding
from gateway.settings import Settings, load_settings

PERSONAS = Path(__file__).parents[3] / "personas"


def settings(**values: object) -> Settings:
    """Settings with which nothing is wrong, but for `values`."""
    good: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "admin_listen": "127.0.0.1:0",
        "engine": "echo",
        "personas": PERSONAS,
        "data_key": base64.b64encode(bytes(32)).decode(),
    }
    return load_settings(**{**good, **values})


def of(findings: list[Finding], name: str) -> Finding:
    (found,) = [finding for finding in findings if finding.name == name]
    return found


def wrong(**values: object) -> list[Finding]:
    return [finding for finding in examine(lambda: settings(**values)) if not finding.ok]
