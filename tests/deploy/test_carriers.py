"""The carriers' page: what it tells an operator to paste is taken by Callplex and by Kamailio."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from gateway.settings import Settings
from gateway.sip.settings import SipSettings

from .dockerfile import REPOSITORY

PAGE = (REPOSITORY / "deploy/carriers.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    found = [text for name, text in BLOCKS if name == language]
    assert found
    return found


@pytest.mark.parametrize("text", blocks("toml"))
def test_callplex_takes_its_settings(text: str) -> None:
    given = tomllib.loads(text)
    sip = given.pop("sip", {})
    SipSettings.model_validate(sip)
    assert given.keys() <= Settings.model_fields.keys()
    Settings(**given)


def test_kamailio_takes_its_configuration(tmp_path: Path) -> None:
    kamailio = shutil.which("kamailio") or shutil.which("kamailio", path="/usr/sbin")
    if kamailio is None:
        pytest.skip("kamailio is not installed")
    [configuration] = blocks("kamailio")
    [gateways] = blocks("text")
    gateway_list = tmp_path / "dispatcher.list"
    gateway_list.write_text(gateways)
    file = tmp_path / "kamailio.cfg"
    body = configuration[configuration.index("#!KAMAILIO") :]
    file.write_text(body.replace("/etc/kamailio/dispatcher.list", str(gateway_list)))
    checked = subprocess.run([kamailio, "-c", "-f", str(file)], capture_output=True, text=True, timeout=30, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_way_in_the_table_is_on_the_page() -> None:
    for anchor in re.findall(r"\(#([a-z-]+)\)", PAGE):
        headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^##+ (.+)$", PAGE, re.MULTILINE)}
        assert anchor in headings
