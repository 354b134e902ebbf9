"""Two user agents wired together under explicit time, over a line that loses, doubles and reorders."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from gateway.sip.agent import UserAgentCore
from gateway.sip.call import SipCall
from gateway.sip.events import AgentConfig, Event, IncomingCall
from gateway.sip.uri import Addr, Transport, Uri, parse_uri

E = TypeVar("E")

SDP = (
    b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nc=IN IP4 192.0.2.1\r\nt=0 0\r\n"
    b"m=audio 4000 RTP/AVP 0 101\r\na=rtpmap:101 telephone-event/8000\r\n"
)
ANSWER = SDP.replace(b"192.0.2.1", b"192.0.2.2")
HOLD = SDP + b"a=sendonly\r\n"


def config(host: str, **changes: Any) -> AgentConfig:
    """An agent at `host`, reachable over everything."""
    plain = AgentConfig({"udp": (host, 5060), "tcp": (host, 5060), "tls": (host, 5061)})
    return replace(plain, **changes)


def agent(host: str = "192.0.2.1", seed: int = 1, **changes: Any) -> UserAgentCore:
    return UserAgentCore(config(host, **changes), random.Random(seed).randbytes)


@dataclass
class Line:
    """How bad the way between the two is; probabilities of each message."""

    loss: float = 0.0
    doubled: float = 0.0
    shuffled: float = 0.0
    delay: float = 0.01


@dataclass
class Pair:
    """Two agents; `left` calls `right`."""

    seed: int = 1
    line: Line = field(default_factory=Line)
    transport: Transport = "udp"
    left_config: dict[str, object] = field(default_factory=dict)
    right_config: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.chance = random.Random(self.seed)
        self.left = agent("192.0.2.1", self.seed * 2, **self.left_config)
        self.right = agent("192.0.2.2", self.seed * 2 + 1, **self.right_config)
        self.sent: list[tuple[float, bytes, Addr]] = []
        self.events: dict[UserAgentCore, list[Event]] = {self.left: [], self.right: []}
        self.drop: Callable[[bytes], bool] = lambda data: False
        """A test's own loss: which messages vanish."""
        self._flying: list[tuple[float, int, bytes, UserAgentCore, Addr]] = []
        self._count = 0
        self.lost = self.doubled = self.shuffled = 0

    def target(self) -> Uri:
        suffix = "" if self.transport == "udp" else f";transport={self.transport}"
        return parse_uri(f"sip:agent@192.0.2.2:{5061 if self.transport == 'tls' else 5060}{suffix}")

    def call(self, sdp: bytes = SDP) -> SipCall:
        return self.left.invite(self.target(), sdp, self.now)

    def host(self, core: UserAgentCore) -> Addr:
        host, port = core.config.addresses[self.transport]
        return Addr(host, port, self.transport)

    def flush(self) -> None:
        """Collect events, and put what wants to leave on the line."""
        for core in (self.left, self.right):
            while (event := core.next_event()) is not None:
                self.events[core].append(event)
            for data, addr in core.datagrams_to_send(self.now):
                self.sent.append((self.now, data, addr))
                self._fly(core, data, addr)

    def _fly(self, core: UserAgentCore, data: bytes, addr: Addr) -> None:
        other = next((one for one in (self.left, self.right) if self.host(one).host == addr.host), None)
        if other is None or self.drop(data) or self.chance.random() < self.line.loss:
            self.lost += 1
            return
        twice = self.chance.random() < self.line.doubled
        self.doubled += twice
        for _ in range(2 if twice else 1):
            wait = self.line.delay
            if self.chance.random() < self.line.shuffled:
                self.shuffled += 1
                wait += self.chance.uniform(0, 1.5)
            self._count += 1
            heapq.heappush(self._flying, (self.now + wait, self._count, data, other, self.host(core)))

    def next_time(self) -> float | None:
        times = [time for core in (self.left, self.right) if (time := core.get_timer()) is not None]
        if self._flying:
            times.append(self._flying[0][0])
        return min(times, default=None)

    def step(self, until: float) -> bool:
        """The next thing that happens, if it happens before `until`."""
        self.flush()
        when = self.next_time()
        if when is None or when > until:
            self.now = max(self.now, until)
            return False
        self.now = max(self.now, when)
        while self._flying and self._flying[0][0] <= self.now:
            _, _, data, core, addr = heapq.heappop(self._flying)
            core.receive(data, addr, self.now)
        for core in (self.left, self.right):
            core.handle_timer(self.now)
        self.flush()
        return True

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.step(until):
            pass

    def take(self, core: UserAgentCore, kind: type[E]) -> E:
        """The oldest event of a kind, which is then forgotten."""
        self.flush()
        for event in self.events[core]:
            if isinstance(event, kind):
                self.events[core].remove(event)
                return event
        raise AssertionError(f"no {kind.__name__} among {self.events[core]}")

    def incoming(self) -> SipCall:
        return self.take(self.right, IncomingCall).call

    def established(self) -> tuple[SipCall, SipCall]:
        """A call that is up: the caller's handle and the callee's."""
        ours = self.call()
        self.run(0.1)
        theirs = self.incoming()
        self.right.answer(theirs, ANSWER, self.now)
        self.run(0.1)
        return ours, theirs

    def starts(self, since: int = 0) -> list[str]:
        """First lines of what was sent."""
        return [data.split(b"\r\n")[0].decode() for _, data, _ in self.sent[since:]]

    def at_rest(self) -> bool:
        """Whether nothing is left of any call."""
        return not any((core.calls, core.transactions, core.timers) != (0, 0, 0) for core in (self.left, self.right))
