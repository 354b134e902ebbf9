"""The endpoint with its real sockets, and a peer that asks over UDP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.sip.endpoint import SipEndpoint
from gateway.sip.settings import SipSettings

HEAD = (
    "{method} sip:agent@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/{transport} 127.0.0.1:9;branch=z9hG4bK{branch};rport\r\n"
    "From: <sip:caller@127.0.0.1>;tag=1\r\nTo: <sip:agent@127.0.0.1>\r\nCall-ID: {branch}\r\nCSeq: 1 {method}\r\n"
    "Max-Forwards: 70\r\n{more}Content-Length: 0\r\n\r\n"
)


def options(branch: str = "1", transport: str = "UDP", more: str = "", method: str = "OPTIONS") -> bytes:
    return HEAD.format(method=method, transport=transport, branch=branch, more=more).encode()


@asynccontextmanager
async def endpoint(**values: object) -> AsyncIterator[SipEndpoint]:
    opened = SipEndpoint(SipSettings.model_validate({"listen": "127.0.0.1:0", **values}))
    await opened.open()
    try:
        yield opened
    finally:
        await opened.close()


class Peer:
    """A UDP socket that asks, and takes what comes back."""

    def __init__(self, opened: SipEndpoint) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(("127.0.0.1", opened.addresses["udp"][1]))
        self.port = self._socket.getsockname()[1]

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    async def receive(self) -> str:
        async with asyncio.timeout(5):
            return (await asyncio.get_running_loop().sock_recv(self._socket, 65_536)).decode()

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def peer(opened: SipEndpoint) -> AsyncIterator[Peer]:
    one = Peer(opened)
    try:
        yield one
    finally:
        one.close()
