"""The gateway's process: two listeners, signals, and a stop that loses no call's record.

Owns sockets and signals. The applications are `app.py`'s, the calls are the desk's.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from gateway.app import admin_app, carrier_app
from gateway.descriptors import raise_descriptor_limit
from gateway.desk import Desk
from gateway.request_head import PromptHttp, prompt_http
from gateway.settings import Settings, split_address
from gateway.sip.binding import SipUnavailable, refuse_open_door
from gateway.sip.switchboard import Switchboard
from gateway.sip.uri import bracketed
from gateway.twilio.socket import CarrierSocket

log = logging.getLogger(__name__)

MAX_CARRIER_MESSAGE = 1 << 16
"""Bytes; a carrier's 20 ms message has under 400."""


class CannotListen(Exception):
    """A listener cannot be opened; the message says which and what to do."""


class _Listener(uvicorn.Server):
    """uvicorn without its signal handlers: the gateway stops its calls before its listeners."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(address: str, setting: str) -> socket.socket:
    """A listening socket. Raises CannotListen with what to do, for example when the port is in use."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
        listener.setblocking(False)
    except (OSError, UnicodeError) as error:
        listener.close()
        reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise CannotListen(f"cannot listen on {address}: {reason}; stop what uses it, or set {setting}") from error
    return listener


def address_of(listener: socket.socket) -> str:
    """host:port as bound, the port chosen by the system included."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a gateway is reached, as host:port; ports chosen by the system included."""

    public: str
    admin: str
    sip: Mapping[str, str]
    """By transport; empty when there is no SIP."""


async def serve(settings: Settings, on_ready: Callable[[Listening], None]) -> None:
    """Run until SIGINT or SIGTERM. `on_ready` is told the addresses once calls are taken.

    Raises CannotListen, PersonaInvalid, RoutingInvalid or EngineLost before the first call.
    """
    _refuse_open_admin(settings)
    _refuse_open_sip(settings)
    most_waiting = max(16, raise_descriptor_limit() // 4)
    desk = Desk(settings)
    with (
        bind(settings.listen, "CALLPLEX_LISTEN") as public,
        bind(settings.admin_listen, "CALLPLEX_ADMIN_LISTEN") as admin,
    ):
        stop = _Stop()
        listeners = [_listener(app, prompt_http(most_waiting)) for app in (carrier_app(desk), admin_app(desk))]
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(_take_calls(settings, desk, listeners, (public, admin), stop, on_ready))
            asked = tasks.create_task(stop.asked.wait())
            await asyncio.wait([taking, asked], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if not stop.in_order:
                taking.cancel()


async def _take_calls(
    settings: Settings,
    desk: Desk,
    listeners: Sequence[_Listener],
    sockets: tuple[socket.socket, socket.socket],
    stop: _Stop,
    on_ready: Callable[[Listening], None],
) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with _sip(settings, desk) as sip, desk.open():
            stop.in_order = True
            for listener, sock in zip(listeners, sockets, strict=True):
                tasks.create_task(listener.serve(sockets=[sock]))
            if sip is not None:
                sip.take_calls()
            _spare_the_collector()
            public, admin = map(address_of, sockets)
            on_ready(Listening(public, admin, _sip_addresses(sip)))
            await stop.asked.wait()
            log.info("stopping: %d calls on the line are ended", desk.active_calls)
        for listener in listeners:
            listener.should_exit = True


class _Stop:
    """What SIGINT and SIGTERM ask for: the first an end, the second one without delay."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.in_order = False
        """Calls are taken, so the end must wait for them; before that there is nothing to lose."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._ask, number)

    def _ask(self, number: signal.Signals) -> None:
        if self.asked.is_set():
            log.warning("asked to stop again: what is under way is given up")
            os._exit(128 + number)
        self.asked.set()


def _refuse_open_sip(settings: Settings) -> None:
    try:
        refuse_open_door(settings.sip)
    except SipUnavailable as error:
        raise CannotListen(str(error)) from None


@asynccontextmanager
async def _sip(settings: Settings, desk: Desk) -> AsyncIterator[Switchboard | None]:
    """The SIP side. Its sockets close after the desk has ended its calls, whose BYEs still have to leave.

    The default address is a convenience: another program that has it is no reason not to start.
    """
    if not settings.sip.addresses:
        yield None
        return
    board = Switchboard(settings.sip, desk)
    try:
        await board.bind()
    except SipUnavailable as error:
        await board.close()
        if "listen" in settings.sip.model_fields_set:
            raise CannotListen(str(error)) from None
        log.warning("no SIP: %s", error)
        yield None
        return
    try:
        yield board
    finally:
        await board.close()


def _sip_addresses(board: Switchboard | None) -> dict[str, str]:
    if board is None:
        return {}
    return {kind: f"{bracketed(host)}:{port}" for kind, (host, port) in board.endpoint.addresses.items()}


def _spare_the_collector() -> None:
    """Fewer and shorter garbage collections: every call stands still while one runs.

    A full one took 60 to 80 ms with what was loaded at start, which stays anyway, and 30 to 70 ms with
    what 300 calls hold. Reference counts free what calls leave; only rare cycles wait for the collector.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _listener(app: ASGIApp, http: type[PromptHttp]) -> _Listener:
    config = uvicorn.Config(
        app,
        http=http,
        ws=CarrierSocket,
        ws_max_size=MAX_CARRIER_MESSAGE,
        ws_per_message_deflate=False,
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    return _Listener(config)


def _refuse_open_admin(settings: Settings) -> None:
    if not _is_loopback(split_address(settings.admin_listen)[0]):
        raise CannotListen(
            f"CALLPLEX_ADMIN_LISTEN is {settings.admin_listen}, but the admin listener has no login: "
            "use a loopback address such as 127.0.0.1:8081 and reach it through ssh or your own proxy"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
