"""Workers elsewhere, and their certificates."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.doctor.examined import wrong

TLS = Path(__file__).parents[2] / "model" / "tls"


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_workers_elsewhere(open_port: int) -> None:
    assert wrong(workers=f"ws://127.0.0.1:{open_port}") == []
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        (down,) = wrong(workers=f"ws://127.0.0.1:{open_port},ws://127.0.0.1:{unused.getsockname()[1]}")
    assert "cannot be reached" in down.detail
    assert "callplex worker" in down.fix


@pytest.mark.parametrize(
    ("workers", "says"),
    [
        ("http://127.0.0.1:1", "is not a ws:// or wss:// URL"),
        ("ws://gpu.example.com:8090", "clear text"),
        ("wss://gpu.example.com:8090", "shared token"),
        ("ws://[::1", "is not a ws:// or wss:// URL"),
    ],
)
def test_workers_that_would_be_unsafe(workers: str, says: str) -> None:
    (found,) = wrong(workers=workers)
    assert says in found.detail


def test_tls_files_of_the_worker(tmp_path: Path) -> None:
    assert wrong(worker_tls_cert=TLS / "cert.pem", worker_tls_key=TLS / "key.pem") == []
    (half,) = wrong(worker_tls_cert=TLS / "cert.pem")
    assert "CALLPLEX_WORKER_TLS_KEY is missing" in half.detail
    (absent,) = wrong(worker_tls_cert=tmp_path / "absent.pem", worker_tls_key=TLS / "key.pem")
    assert "No such file" in absent.detail
    broken = tmp_path / "cert.pem"
    broken.write_text("no certificate")
    (unreadable,) = wrong(worker_tls_cert=broken, worker_tls_key=TLS / "key.pem")
    assert unreadable.fix.startswith("openssl x509")
