"""No request reaches an address that is not public, however its name or its redirects lead there."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Sequence

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.webhooks.guard import LOOPBACK, AddressRefused, GuardedTransport, Network, is_public, literal_address
from tests.gateway.webhooks.receiver import Receiver

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.0.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff0e::1",
    ],
)
async def test_what_is_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808"])
async def test_what_is_public(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_no_better_inside_an_ipv6_one(address: ipaddress.IPv4Address) -> None:
    for prefix in ("::ffff:0:0", "64:ff9b::"):
        inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(prefix)) | int(address))
        assert is_public(inside) == is_public(address)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "::1"])
async def test_hosts_that_are_addresses(host: str) -> None:
    address = literal_address(host)
    assert address is not None
    assert address.is_loopback


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1.nip.io", "local", ""])
async def test_hosts_that_are_names(host: str) -> None:
    assert literal_address(host) is None


class Names:
    """A DNS whose answers are given in turn; the last is repeated."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


def client(names: Names, allowed: Sequence[Network] = ()) -> httpx.AsyncClient:
    transport = GuardedTransport(httpx.AsyncHTTPTransport(trust_env=False), allowed, resolve=names)
    return httpx.AsyncClient(transport=transport, trust_env=False)


async def test_a_name_that_leads_to_this_machine_is_refused() -> None:
    async with Receiver().listening() as receiver, client(Names(["127.0.0.1"])) as http:
        with pytest.raises(AddressRefused, match=r"crm.example.com has the address 127.0.0.1, which is not public"):
            await http.post(f"http://crm.example.com:{receiver.port}/")
    assert receiver.connections == 0


async def test_one_bad_address_among_good_ones_is_refused() -> None:
    async with Receiver().listening() as receiver, client(Names(["8.8.8.8", "127.0.0.1"])) as http:
        with pytest.raises(AddressRefused):
            await http.post(f"http://crm.example.com:{receiver.port}/")
    assert receiver.connections == 0


async def test_an_allowed_name_is_reached_under_its_own_host() -> None:
    async with Receiver().listening() as receiver, client(Names(["127.0.0.1"]), LOOPBACK) as http:
        assert (await http.post(f"http://crm.example.com:{receiver.port}/x")).status_code == 204
    assert receiver.got[0].headers["host"] == f"crm.example.com:{receiver.port}"


async def test_the_checked_address_is_the_one_that_is_asked_whatever_dns_says_next() -> None:
    allowed = (ipaddress.ip_network("127.0.0.1/32"),)
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    transport = GuardedTransport(
        httpx.AsyncHTTPTransport(trust_env=False), allowed, resolve=names, clock=iter(range(0, 1000, 9)).__next__
    )
    async with Receiver().listening() as receiver, httpx.AsyncClient(transport=transport) as http:
        url = f"http://rebinding.example.com:{receiver.port}/"
        assert (await http.post(url)).status_code == 204
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.2"):
            await http.post(url)
    assert names.asked == 2


async def test_a_name_is_asked_for_once_in_a_while() -> None:
    names = Names(["127.0.0.1"])
    async with Receiver().listening() as receiver, client(names, LOOPBACK) as http:
        for _ in range(3):
            await http.post(f"http://crm.example.com:{receiver.port}/")
    assert names.asked == 1


async def test_the_next_address_is_tried_when_one_cannot_be_reached() -> None:
    async with Receiver().listening() as receiver, client(Names(["127.0.0.9", "127.0.0.1"]), LOOPBACK) as http:
        assert (await http.post(f"http://crm.example.com:{receiver.port}/")).status_code == 204


async def test_a_name_that_nobody_knows() -> None:
    async with client(Names([])) as http:
        with pytest.raises(httpx.ConnectError, match="has no address"):
            await http.post("http://crm.example.com/")

    def unknown(host: str, port: int) -> list[str]:
        raise OSError("Name or service not known")

    transport = GuardedTransport(httpx.AsyncHTTPTransport(trust_env=False), (), resolve=unknown)
    async with httpx.AsyncClient(transport=transport) as http:
        with pytest.raises(httpx.ConnectError, match=r"the name crm.example.com cannot be resolved"):
            await http.post("http://crm.example.com/")


async def test_a_dns_server_that_does_not_answer_holds_up_no_other_endpoint() -> None:
    silent = threading.Event()

    def wait(host: str, port: int) -> list[str]:
        silent.wait(10)
        return []

    stuck = httpx.AsyncClient(transport=GuardedTransport(httpx.AsyncHTTPTransport(trust_env=False), (), resolve=wait))
    import asyncio

    async with Receiver().listening() as receiver, client(Names(["127.0.0.1"]), LOOPBACK) as http:
        waiting = [asyncio.create_task(stuck.post("http://crm.example.com/")) for _ in range(40)]
        assert (await http.post(f"http://crm.example.com:{receiver.port}/")).status_code == 204
        silent.set()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await stuck.aclose()
