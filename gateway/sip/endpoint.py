"""The only SIP socket: UDP, TCP and TLS around the user agent's core. Thin.

Owns the sockets, the one timer and the order of things: what was read goes into the core, what the core wants
sent goes out, and its events go to whoever asked for them. Decides nothing about calls.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from gateway.sip.agent import UserAgentCore
from gateway.sip.binding import OwnPlaces, SipUnavailable, bound_socket, refuse_open_door, server_tls
from gateway.sip.events import AgentConfig, Event, MessageDropped
from gateway.sip.guard import DropLog, Peers, RateLimit
from gateway.sip.names import Names
from gateway.sip.settings import ListenAddress, SipSettings
from gateway.sip.stream import Stream
from gateway.sip.timers import Timing
from gateway.sip.uri import Addr, Transport, canonical, other_family

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
PORT_TRIES = 20
BACKLOG = 512
"""Connections that may wait to be taken."""
MAX_STREAMS = 2_000
MAX_STREAMS_OF_PEER = 200
MAX_WAITING = 100
"""Messages that may wait for a connection to come up, or a name to be looked up."""


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, take: Callable[[bytes, Addr], None]) -> None:
        self._take = take

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._take(data, Addr(canonical(addr[0]), addr[1], "udp"))


class SipEndpoint:
    """Open it, set `on_event`, and use `core` followed by `pump`."""

    def __init__(self, settings: SipSettings, *, timing: Timing | None = None, user: str = "callplex") -> None:
        refuse_open_door(settings)
        self.settings = settings
        self.on_event: Callable[[Event], None] = lambda event: None
        self.addresses: Mapping[Transport, tuple[str, int]] = {}
        """As bound, the port chosen by the system included."""
        self.places = OwnPlaces({})
        """As peers are told them."""
        self.peers = Peers(settings.networks, loopback=not settings.users)
        self.drops = DropLog()
        self._timing = timing or Timing()
        self._user = user
        self._rate = RateLimit(settings.requests_per_second)
        self._loop = asyncio.get_running_loop()
        self._udp: asyncio.DatagramTransport | None = None
        self._servers: list[asyncio.Server] = []
        self._streams: dict[Addr, Stream] = {}
        self._waiting: dict[Addr, list[bytes]] = {}
        self._names = Names()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._pumping = False
        self._closed = False
        self._tls: ssl.SSLContext | None = None
        self.core: UserAgentCore
        self.ready = False
        """Open: `core` is there."""

    async def open(self) -> None:
        """Bind everything in `listen`. Raises SipUnavailable, and has bound nothing then."""
        try:
            self.addresses = await self._bind_all()
            self.places = OwnPlaces(self.addresses, self.settings.public_address)
        except SipUnavailable:
            self._unbind()
            raise
        self._names.reach_from(self.addresses, self.settings.public_address)
        config = AgentConfig(
            addresses=self.places.first,
            told=self.told,
            user=self._user,
            timing=self._timing,
            realm=self.settings.realm,
            users={name: secret.get_secret_value() for name, secret in self.settings.users.items()},
            trusted=self.peers.trusts,
        )
        self.core = UserAgentCore(config, os.urandom)
        self.ready = True

    async def _bind_all(self) -> dict[Transport, tuple[str, int]]:
        """Every listener. A port that the system chose for UDP may be taken over TCP: then it chooses again."""
        tries = PORT_TRIES if any(address.port == 0 for address in self.settings.addresses) else 1
        while True:
            bound: dict[Transport, tuple[str, int]] = {}
            try:
                for address in self.settings.addresses:
                    wanted = address
                    if address.port == 0 and address.transport == "tcp" and "udp" in bound:
                        wanted = address._replace(port=bound["udp"][1])
                    bound[address.transport] = await self._bind(wanted)
            except OSError as error:
                self._unbind()
                tries -= 1
                if tries and error.errno == errno.EADDRINUSE:
                    continue
                raise SipUnavailable(
                    f"cannot listen on {address.transport}:{address.host}:{address.port}: {error.strerror or error}; "
                    "stop what uses it, or set CALLPLEX_SIP_LISTEN"
                ) from None
            return bound

    def _unbind(self) -> None:
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _bind(self, address: ListenAddress) -> tuple[str, int]:
        # Bound by us: else where the port is taken uvloop would leave a transport of its own unclosed, and neither
        # loop would take IPv4 over TCP on [::].
        tls = server_tls(self.settings) if address.transport == "tls" else None
        door = bound_socket(address)
        host, port = door.getsockname()[:2]
        if address.transport == "udp":
            self._udp, _ = await self._loop.create_datagram_endpoint(lambda: _Datagrams(self.receive), sock=door)
        else:
            server = await self._loop.create_server(
                lambda: Stream(self, address.transport), sock=door, ssl=tls, backlog=BACKLOG
            )
            self._servers.append(server)
        return host, port

    async def close(self) -> None:
        """Give every socket back. Safe to call twice."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._unbind()
        for stream in tuple(self._streams.values()):
            stream.abort()

    def now(self) -> float:
        return self._loop.time()

    # In

    def receive(self, data: bytes, addr: Addr) -> None:
        """One whole message from the network."""
        if self._closed or not data.strip(b"\r\n\0 "):
            return
        now = self._loop.time()
        if addr.transport != "udp":
            # Nobody sends again what a stream has delivered: what follows is read later instead.
            self._slow_down(addr, self._rate.charge(addr.host, now))
        elif not self._rate.admit(addr.host, now):
            self.drop("too many messages from one address", addr)
            return
        self.core.receive(data, addr, now)
        self.pump()

    def _slow_down(self, addr: Addr, seconds: float) -> None:
        stream = self._streams.get(addr)
        if seconds and stream is not None and stream.hold_up(seconds):
            log.info("%s sends too many messages on its connection, which is read more slowly", addr.host)

    def knows(self, addr: Addr) -> bool:
        """Whether a peer is one of ours, or has a call with us."""
        return self.core.knows(addr)

    def drop(self, cause: str, addr: Addr, count: int = 1) -> None:
        """Count what gets no answer; now and then say so."""
        line = self.drops.note(cause, addr.host, count, self._loop.time())
        if line:
            log.warning("%s", line)

    def welcome(self, stream: Stream) -> bool:
        """Whether a new connection may stay."""
        of_peer = sum(addr.host == stream.addr.host for addr in self._streams)
        if self._closed or len(self._streams) >= MAX_STREAMS or of_peer >= MAX_STREAMS_OF_PEER:
            self.drop("too many connections", stream.addr)
            return False
        self._streams[stream.addr] = stream
        return True

    def farewell(self, stream: Stream) -> None:
        """A connection is gone."""
        if self._streams.get(stream.addr) is stream:
            del self._streams[stream.addr]

    # Out

    def pump(self) -> None:
        """Send what the core wants sent, hand on its events, and set the timer for what comes next."""
        if self._pumping or self._closed:
            return
        self._pumping = True
        try:
            while True:
                for data, addr in self.core.datagrams_to_send(self._loop.time()):
                    self._send(data, addr)
                event = self.core.next_event()
                if event is None:
                    break
                if isinstance(event, MessageDropped):
                    self.drop(event.cause, event.addr, event.count)
                else:
                    self.on_event(event)
        finally:
            self._pumping = False
            self._set_timer()

    def _set_timer(self) -> None:
        due = self.core.get_timer()
        if self._timer is not None:
            if due == self._due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._due = due
            self._timer = self._loop.call_at(due, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.core.handle_timer(self._loop.time())
        self.pump()

    def _send(self, data: bytes, addr: Addr) -> None:
        host = self._names.known(addr)
        if host is None:
            self._queue(data, addr, self._look_up)
            return
        reached = addr._replace(host=host)
        if addr.transport == "udp":
            place = self._on_udp(host)
            if self._udp is not None and place:
                self._udp.sendto(data, (place, addr.port))
            else:
                self._later_undeliverable(addr)
            return
        stream = self._streams.get(reached)
        if stream is not None:
            stream.write(data)
        else:
            self._queue(data, addr, self._connect)

    def _on_udp(self, host: str) -> str:
        """An address as our UDP socket knows it; "" when it leads nowhere from there."""
        own = self.addresses["udp"][0] if "udp" in self.addresses else host
        if not other_family(own, host):
            return host
        return f"::ffff:{host}" if own == "::" else ""

    def _queue(self, data: bytes, addr: Addr, work: Callable[[Addr], Awaitable[None]]) -> None:
        waiting = self._waiting.get(addr)
        if waiting is not None:
            if len(waiting) < MAX_WAITING:
                waiting.append(data)
            return
        self._waiting[addr] = [data]
        self._start(self._deliver(addr, work))

    async def _deliver(self, addr: Addr, work: Callable[[Addr], Awaitable[None]]) -> None:
        """Do what a destination needs first, then send what has waited for it."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await work(addr)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            why = str(error) or "no answer in time"
            log.info("nothing can be sent to %s:%d over %s: %s", addr.host, addr.port, addr.transport, why)
            self._waiting.pop(addr, None)
            self.core.undeliverable(addr, self._loop.time())
            self.pump()
            return
        for data in self._waiting.pop(addr, []):
            self._send(data, addr)

    async def _look_up(self, addr: Addr) -> None:
        await self.resolve(addr)

    async def resolve(self, peer: Addr) -> str:
        """The address of a name, to be known before anything is written for it. Raises OSError when none is found."""
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return await self._names.resolve(peer)

    async def resolve_all(self, host: str) -> set[str]:
        """Every address of a name, as it stands now. Raises OSError when there is none."""
        return await self._names.resolve_all(host)

    def told(self, peer: Addr) -> tuple[str, int]:
        """Host and port of ours as this peer is told them, of its kind of address if its name was looked up before."""
        return self.places.told(self._names.last(peer), peer.transport)

    async def _connect(self, addr: Addr) -> None:
        host = await self.resolve(addr)
        tls = self._client_tls() if addr.transport == "tls" else None
        name = addr.host if tls is not None else None
        await self._loop.create_connection(
            lambda: Stream(self, addr.transport, opened=True), host, addr.port, ssl=tls, server_hostname=name
        )
        if addr._replace(host=host) not in self._streams:
            raise OSError("the connection did not stay")

    def _later_undeliverable(self, addr: Addr) -> None:
        async def tell() -> None:
            self.core.undeliverable(addr, self._loop.time())
            self.pump()

        self._start(tell())

    def _start(self, work: Any) -> None:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _client_tls(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context(cafile=self.settings.tls_ca)
        return self._tls
