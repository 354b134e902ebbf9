"""One attempt: whatever the endpoint does, it is an answer with a reason, in time and at little cost."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.webhooks.delivery import Answer, Sender
from gateway.webhooks.endpoints import Endpoint
from gateway.webhooks.events import ENDED, sample
from gateway.webhooks.guard import LOOPBACK
from gateway.webhooks.oauth import Credentials
from gateway.webhooks.signature import signing_key
from gateway.webhooks.template import BodyTemplate
from tests.gateway.webhooks.receiver import SECRET, Receiver, Reply, Request

pytestmark = pytest.mark.anyio

CONTEXT = httpx.create_ssl_context(trust_env=False)
BODY = sample(ENDED, 0.0).body()


@asynccontextmanager
async def sender(url: str, **more: Any) -> AsyncIterator[Sender]:
    fields: dict[str, Any] = {"keys": (signing_key(SECRET),), "allowed": LOOPBACK, "timeout": 5.0, **more}
    one = Sender(Endpoint("crm", url, **fields), CONTEXT)
    try:
        yield one
    finally:
        await one.close()


async def attempt(url: str, **more: Any) -> Answer:
    async with sender(url, **more) as one:
        return await one.attempt("msg_1", BODY)


async def test_what_is_posted() -> None:
    async with Receiver().listening() as receiver:
        answer = await attempt(receiver.url, headers={"x-tenant": "acme"})
    (request,) = receiver.got
    assert answer == Answer(204, "it answered 204")
    assert (request.method, request.path, request.body) == ("POST", "/hook?token=private", BODY.encode())
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-tenant"] == "acme"
    assert request.headers["webhook-id"] == "msg_1"


async def test_a_connection_is_used_again() -> None:
    receiver = Receiver(answer=lambda _: (200, {}, b"thank you"))
    async with receiver.listening(), sender(receiver.url) as one:
        for number in range(5):
            assert (await one.attempt(f"msg_{number}", BODY)).taken
    assert receiver.connections == 1


async def test_ten_megabytes_of_answer_cost_nothing() -> None:
    sent = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(160):
            writer.write(b"10000\r\n" + bytes(65_536) + b"\r\n")
            await writer.drain()
            sent += 65_536

    async with Receiver(stream=pour).listening() as receiver:
        assert (await attempt(receiver.url)).taken
    assert 0 < sent < 9 << 20


async def test_an_answer_that_says_it_is_long_is_not_read() -> None:
    async with Receiver(answer=lambda _: (500, {}, bytes(10 << 20))).listening() as receiver:
        began = time.perf_counter()
        assert await attempt(receiver.url) == Answer(500, "it answered 500")
        assert time.perf_counter() - began < 2


async def test_an_answer_that_drips_is_given_up_on() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"x: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with Receiver(stream=drip).listening() as receiver:
        assert await attempt(receiver.url, timeout=0.3) == Answer(0, "it did not answer within 0.3 s")


async def test_redirects_are_not_followed() -> None:
    elsewhere = Receiver()
    async with elsewhere.listening():
        first = Receiver([307], {"location": elsewhere.url})
        async with first.listening():
            answer = await attempt(first.url)
    assert answer.status == 307
    assert "redirects are not followed" in answer.reason
    assert elsewhere.got == []


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"},
        {"location": "http://[::1"},
        {"location": "http://example.com:99999999"},
        {"set-cookie": "a=b; expires=Mon, 01 Jan 99999999999999999999 00:00:00 GMT; max-age=" + "9" * 5000},
    ],
)
async def test_no_answer_whatever_it_holds_raises(headers: Mapping[str, str]) -> None:
    async with Receiver([302, 204], headers).listening() as receiver, sender(receiver.url) as one:
        assert not (await one.attempt("msg_1", BODY)).taken
        assert (await one.attempt("msg_1", BODY)).taken
    assert "cookie" not in receiver.got[1].headers


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the connection broke (RemoteProtocolError)"),
        (b"HTTP/1.1 999999 X\r\n\r\n", "the connection broke (RemoteProtocolError)"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n\r\n", "the connection broke (RemoteProtocolError)"),
        (b"\x00" * 100_000, "the connection broke (RemoteProtocolError)"),
    ],
)
async def test_garbage(raw: bytes, says: str) -> None:
    async with Receiver(raw=raw).listening() as receiver:
        assert await attempt(receiver.url) == Answer(0, says)


@given(st.binary(min_size=1, max_size=80))
@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes_are_an_answer(tail: bytes) -> None:
    async def answered() -> Answer:
        async with Receiver(raw=b"HTTP/1.1 " + tail).listening() as receiver:
            return await attempt(receiver.url, timeout=2.0)

    assert asyncio.run(answered()).reason


async def test_nobody_there() -> None:
    async with Receiver().listening() as receiver:
        pass
    answer = await attempt(receiver.url)
    assert answer.status == 0
    assert answer.reason.startswith("it cannot be reached")


async def test_an_address_that_is_not_allowed() -> None:
    async with Receiver().listening() as receiver:
        answer = await attempt(receiver.url, allowed=())
    assert "127.0.0.1, which is not public" in answer.reason
    assert receiver.connections == 0


def certificate(folder: Path, name: str) -> ssl.SSLContext:
    """A server's context with a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_a_certificate_that_nobody_vouches_for_is_one_sentence(tmp_path: Path) -> None:
    async with Receiver().listening(context=certificate(tmp_path, "localhost")) as receiver:
        answer = await attempt(receiver.url)
    assert answer == Answer(0, "its TLS certificate is not accepted: self-signed certificate")


async def test_the_certificate_must_be_of_the_name_in_the_url(tmp_path: Path) -> None:
    server = certificate(tmp_path, "other.example.com")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with Receiver().listening(context=server) as receiver:
        one = Sender(Endpoint("crm", receiver.url.replace("127.0.0.1", "localhost"), allowed=LOOPBACK), trusting)
        answer = await one.attempt("msg_1", BODY)
        await one.close()
    assert "Hostname mismatch, certificate is not valid for 'localhost'" in answer.reason


async def test_the_certificate_of_the_urls_name_is_accepted(tmp_path: Path) -> None:
    server = certificate(tmp_path, "localhost")
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    async with Receiver().listening(context=server) as receiver:
        one = Sender(Endpoint("crm", receiver.url.replace("127.0.0.1", "localhost"), allowed=LOOPBACK), trusting)
        assert (await one.attempt("msg_1", BODY)).taken
        await one.close()


async def test_a_peer_that_speaks_no_tls() -> None:
    def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        answered = await attempt(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert answered.reason.startswith("TLS fails: ")


async def test_a_template_makes_the_body_that_is_signed() -> None:
    from standardwebhooks import Webhook

    async with Receiver().listening() as receiver:
        await attempt(receiver.url, template=BodyTemplate('{"call": {{ data.call_id | tojson }}}'))
    (request,) = receiver.got
    assert Webhook(SECRET).verify(request.body, {**request.headers}) == {"call": "call_sample"}


async def test_a_template_that_fails_is_a_failed_attempt() -> None:
    async with Receiver().listening() as receiver:
        answer = await attempt(receiver.url, template=BodyTemplate("\n{{ data.nothing }}"))
    assert answer.status == 0
    assert answer.reason.startswith("its template, line 2: ")
    assert receiver.got == []


async def test_a_refused_token_is_renewed_once() -> None:
    def crm(request: Request) -> Reply:
        if request.path.startswith("/token"):
            number = sum(one.path.startswith("/token") for one in receiver.got)
            return 200, {}, b'{"access_token": "t%d"}' % number
        return (204 if request.headers["authorization"] == "Bearer t2" else 401), {}, b""

    receiver = Receiver(answer=crm)
    async with receiver.listening():
        oauth = Credentials(f"http://127.0.0.1:{receiver.port}/token", "id", "secret")
        async with sender(receiver.url, oauth=oauth) as one:
            assert (await one.attempt("msg_1", BODY)).taken
            assert (await one.attempt("msg_2", BODY)).taken
    paths = [request.path.partition("?")[0] for request in receiver.got]
    assert paths == ["/token", "/hook", "/token", "/hook", "/hook"]


async def test_without_a_token_nothing_is_posted() -> None:
    async with Receiver([403]).listening() as receiver:
        oauth = Credentials(f"http://127.0.0.1:{receiver.port}/token", "id", "secret")
        answer = await attempt(receiver.url, oauth=oauth)
    assert answer == Answer(0, "the token endpoint answered 403")
    assert [request.path for request in receiver.got] == ["/token"]
