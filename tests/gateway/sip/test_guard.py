"""Whom the guard trusts, how often peers may speak, and what is logged of the rest."""

from __future__ import annotations

import ipaddress

import pytest

from gateway.sip.guard import LOG_EVERY, LONGEST_PAUSE, MAX_PEERS, DropLog, Peers, RateLimit
from gateway.sip.uri import Addr

NETWORKS = (ipaddress.ip_network("192.0.2.0/24"), ipaddress.ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("host", "trusted"),
    [
        ("192.0.2.7", True),
        ("::ffff:192.0.2.7", True),
        ("2001:db8::1", True),
        ("198.51.100.1", False),
        ("127.0.0.1", False),
        ("trunk.example.com", False),
    ],
)
def test_networks_are_trusted(host: str, trusted: bool) -> None:
    assert Peers(NETWORKS, loopback=False).trusts(Addr(host, 5060)) is trusted


def test_this_machine_is_trusted_where_nobody_has_a_password() -> None:
    assert Peers((), loopback=True).trusts(Addr("127.0.0.1", 5060))
    assert Peers((), loopback=True).trusts(Addr("::1", 5060))


def test_a_trunk_is_trusted_at_the_addresses_its_name_stands_for() -> None:
    peers = Peers((), loopback=False)
    peers.know_trunk("one", ["198.51.100.1"])
    assert peers.trusts(Addr("198.51.100.1", 5061, "tls"))
    assert peers.trunk_of(Addr("198.51.100.1", 1)) == "one"
    peers.know_trunk("one", ["198.51.100.2"])
    assert not peers.trusts(Addr("198.51.100.1", 5061))


def test_a_peer_has_its_rate_and_a_burst_and_others_have_theirs() -> None:
    rate = RateLimit(10.0)
    assert sum(rate.admit("a", 0.0) for _ in range(100)) == 20
    assert rate.admit("b", 0.0)
    assert sum(rate.admit("a", 1.0) for _ in range(100)) == 10
    assert sum(rate.admit("a", 1000.0) for _ in range(100)) == 20


def test_strangers_without_number_cost_no_memory_without_bound() -> None:
    rate = RateLimit(0.5)
    assert rate.admit("first", 0.0)
    assert not rate.admit("first", 0.0)
    for number in range(MAX_PEERS):
        rate.admit(str(number), 0.0)
    assert rate.admit("first", 0.0), "the longest unheard is forgotten"


def test_a_flood_makes_a_line_now_and_then() -> None:
    drops = DropLog()
    lines = [drops.note("a scanner", "198.51.100.1", 1, tenth / 10) for tenth in range(1000)]
    told = [line for line in lines if line]
    assert len(told) == 100 / LOG_EVERY
    assert told[0] == "a SIP message was dropped (a scanner), the last from 198.51.100.1"
    assert told[1] == "100 SIP messages were dropped (a scanner), the last from 198.51.100.1"
    assert drops.dropped == 1000


def test_causes_are_told_apart() -> None:
    drops = DropLog()
    assert drops.note("one", "a", 1, 0.0)
    assert drops.note("other", "a", 1, 0.0)
    assert not drops.note("one", "a", 1, 1.0)


def test_what_cannot_be_dropped_is_charged_for() -> None:
    limit = RateLimit(10)
    assert [limit.charge("192.0.2.1", 0.0) for _ in range(20)] == [0.0] * 20
    assert limit.charge("192.0.2.1", 0.0) == pytest.approx(0.1)
    assert limit.charge("192.0.2.1", 0.0) == pytest.approx(0.2)
    assert limit.charge("192.0.2.1", 1.0) == 0.0
    assert max(limit.charge("192.0.2.1", 1.0) for _ in range(1_000)) == LONGEST_PAUSE
