"""Ports, descriptors and disks that will not do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.doctor import machine
from gateway.doctor.examine import examine
from tests.gateway.doctor.examined import PERSONAS, of, settings, wrong

pytestmark = pytest.mark.anyio


def test_too_few_descriptors_for_the_calls_are_worth_a_note() -> None:
    code = "from gateway.doctor.machine import *; [it] = descriptors(Settings(max_calls=100)); print(it.ok, it.fix)"
    command = ["sh", "-c", f"ulimit -n 399 && exec {sys.executable} -c '{code}'"]
    said = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(PERSONAS.parent)})
    assert said.stdout == "False export CALLPLEX_MAX_CALLS=99    # or LimitNOFILE=800 where the service is started\n"
    assert of(examine(lambda: settings(max_calls=100)), "descriptors").ok


def test_a_port_another_program_uses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        doctor_found = wrong(listen=f"127.0.0.1:{port}")
    (found,) = doctor_found
    assert found.name == "listen"
    assert "in use by another program" in found.detail
    assert f"sport = :{port}" in found.fix


@pytest.mark.parametrize(
    ("name", "body"), [("listen", b'{"status":"ready","calls":0}'), ("admin_listen", b"callplex_calls_active 0.0\n")]
)
async def test_a_port_callplex_itself_uses(name: str, body: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        findings = await asyncio.to_thread(examine, lambda: settings(**{name: address}))
    assert of(findings, name).ok
    assert "already running" in of(findings, name).detail


def test_an_address_that_is_not_ours() -> None:
    (found,) = wrong(listen="192.0.2.1:8080")
    assert "cannot listen on 192.0.2.1:8080" in found.detail


def test_an_admin_listener_open_to_the_world() -> None:
    (found,) = wrong(admin_listen="0.0.0.0:8081")
    assert (found.name, found.fails) == ("admin_listen", True)


def test_a_data_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    (found,) = wrong(data_dir=tmp_path / "taken" / "data")
    assert found.name == "data_dir"
    assert str(tmp_path / "taken") in found.fix


def test_a_disk_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "DISK_WANTED", 1 << 60)
    (low,) = wrong()
    assert (low.name, low.warning) == ("data_dir", True)
    monkeypatch.setattr(machine, "DISK_NEEDED", 1 << 60)
    (full,) = wrong()
    assert (full.name, full.fails) == ("data_dir", True)
