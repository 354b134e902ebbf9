"""Who may connect to a worker: tokens, TLS, web pages, addresses."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin, Subprotocol

from model import server as server_module
from model import wire
from model.echo import EchoEngine
from model.server import ListenRefused, WorkerServer
from tests.model.worker_connections import connected, opened, serving

pytestmark = pytest.mark.anyio


TLS = Path(__file__).parent / "tls"


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}])
async def test_a_wrong_token_is_refused(headers: dict[str, str]) -> None:
    async with serving(token="secret") as server:
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(server, additional_headers=headers):
                pass
        assert refusal.value.response.status_code == 401


async def test_the_right_token_is_accepted() -> None:
    bearer = {"Authorization": "Bearer secret"}
    async with serving(token="secret") as server, connected(server, additional_headers=bearer) as connection:
        assert isinstance(await opened(connection), wire.Ready)


async def test_a_web_page_on_this_machine_cannot_open_a_session() -> None:
    async with serving() as server:
        with pytest.raises(InvalidStatus) as refusal:
            async with connected(server, origin=Origin("https://evil.example")):
                pass
        assert refusal.value.response.status_code == 403


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "worker.example:8090"])
@pytest.mark.parametrize("token", ["", "secret"])
def test_off_loopback_a_token_and_tls_are_required(listen: str, token: str) -> None:
    with pytest.raises(ListenRefused, match="needs a token and TLS"):
        WorkerServer(EchoEngine(), listen, token=token)


def certified() -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(TLS / "cert.pem", TLS / "key.pem")
    return tls


async def test_off_loopback_with_a_token_and_tls() -> None:
    tls = certified()
    trust = ssl.create_default_context(cafile=str(TLS / "cert.pem"))
    async with serving(listen="0.0.0.0:0", token="secret", tls=tls) as server:
        url = f"wss://127.0.0.1:{server.port}{wire.PATH}"
        headers = {"Authorization": "Bearer secret"}
        async with connect(
            url, subprotocols=[Subprotocol(wire.SUBPROTOCOL)], ssl=trust, additional_headers=headers
        ) as connection:
            assert isinstance(await opened(connection), wire.Ready)


@pytest.mark.parametrize("listen", ["8090", "127.0.0.1:", "127.0.0.1:99999", ":1"])
def test_an_address_that_is_none(listen: str) -> None:
    with pytest.raises(ListenRefused, match="is not host:port"):
        WorkerServer(EchoEngine(), listen)


async def test_a_port_in_use_is_said_in_a_sentence() -> None:
    async with serving() as server:
        with pytest.raises(ListenRefused, match="choose another port"):
            await WorkerServer(EchoEngine(), f"127.0.0.1:{server.port}").start()


async def test_stopping_does_not_wait_for_a_peer_that_begins_no_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_TIMEOUT", 0.05)
    async with serving(tls=certified()) as server:
        _, silent = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(1.5):
            await server.stop()
        silent.close()
