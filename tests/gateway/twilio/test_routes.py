"""The webhooks and the stream over real HTTP and WebSocket connections, with a scripted call."""

from __future__ import annotations

import asyncio
from urllib.parse import urlencode

import pytest
from twilio.request_validator import RequestValidator  # type: ignore[import-untyped]
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.leg import Outcome
from gateway.twilio import routes
from gateway.twilio.leg import TwilioLeg
from gateway.twilio.protocol import PeerError
from gateway.twilio.rest import TwilioRest
from tests.gateway.twilio.serving import (
    FORM,
    TIMEOUT,
    Desk,
    Routed,
    app_for,
    carrier,
    closed,
    gateway,
    listen,
    post,
    settings,
    stream_of,
    verbs,
)

pytestmark = pytest.mark.anyio

AUTH = "secret-auth-token"


async def test_a_call_from_voice_request_to_what_comes_next() -> None:
    desk = Desk(settings())
    async with gateway(desk) as (client, host):
        action, url, parameters = stream_of(await post(client, "/twilio/voice"))
        assert action == f"http://{host}/twilio/after"
        assert url == f"ws://{host}/twilio/stream"
        assert parameters.keys() == {"persona", "token"}
        async with connect(url) as socket:
            line = carrier()
            for text in (line.connected(), line.start({**parameters, "vip": "yes"}), line.media(bytes(160))):
                await socket.send(text)
            await socket.send(line.stop())
            assert await closed(socket) == (1000, "caller_hangup")
        [leg] = desk.legs
        info = leg.info
        assert desk.personas == ["bank"]
        assert (info.from_number, info.to_number, info.carrier_call_id) == ("+15550001", "+15550002", "CA1")
        assert info.parameters == {"persona": "bank", "vip": "yes"}
        assert info.call_id != info.carrier_call_id
        assert leg.counters.media == 1
        desk.outcomes["CA1"] = Outcome("caller_hangup")
        assert verbs(await post(client, action, {**FORM, "CallStatus": "completed"})) == [("Hangup", None)]
        assert (await post(client, "/twilio/status")).status_code == 204


@pytest.mark.parametrize(
    ("outcome", "status", "expected"),
    [
        (Outcome("agent_goodbye", fallback="+1"), "in-progress", [("Hangup", None)]),
        (Outcome("caller_hangup", fallback="+1"), "completed", [("Hangup", None)]),
        (Outcome("caller_hangup"), "in-progress", [("Dial", "+15559"), ("Hangup", None)]),
        (Outcome("no_media", fallback="+1"), "in-progress", [("Hangup", None)]),
        (Outcome("time_limit", fallback="+1"), "in-progress", [("Hangup", None)]),
        (Outcome("transfer", "+15557"), "in-progress", [("Dial", "+15557"), ("Hangup", None)]),
        (Outcome("transfer", "", "+15558"), "in-progress", [("Dial", "+15558"), ("Hangup", None)]),
        (Outcome("worker_lost", "", "+15558"), "in-progress", [("Dial", "+15558"), ("Hangup", None)]),
        (Outcome("busy", "", "+15558"), "in-progress", [("Dial", "+15558"), ("Hangup", None)]),
        (Outcome("failed"), "in-progress", [("Dial", "+15559"), ("Hangup", None)]),
        (Outcome("protocol_error"), "in-progress", [("Dial", "+15559"), ("Hangup", None)]),
        (None, "in-progress", [("Dial", "+15559"), ("Hangup", None)]),
    ],
)
async def test_what_comes_next(outcome: Outcome | None, status: str, expected: list[tuple[str, str | None]]) -> None:
    desk = Desk(settings(), route_to=Routed(fallback="+15559"))
    if outcome is not None:
        desk.outcomes["CA1"] = outcome
    async with gateway(desk) as (client, _):
        assert verbs(await post(client, "/twilio/after", {**FORM, "CallStatus": status})) == expected


async def test_who_cannot_be_served_and_has_no_fallback_is_told_so() -> None:
    desk = Desk(settings(), outcomes={"CA1": Outcome("worker_lost")})
    async with gateway(desk) as (client, _):
        assert verbs(await post(client, "/twilio/after")) == [("Say", routes.SORRY), ("Hangup", None)]
        desk.is_ready = False
        assert verbs(await post(client, "/twilio/voice")) == [("Say", routes.SORRY), ("Hangup", None)]
        desk.route_to.fallback = "+15559"
        assert verbs(await post(client, "/twilio/voice")) == [("Dial", "+15559"), ("Hangup", None)]
        desk.is_ready, desk.route_to.open = True, False
        assert verbs(await post(client, "/twilio/voice")) == [("Dial", "+15559"), ("Hangup", None)]
        assert desk.numbers[-1] == "+15550002"
        assert desk.turned == ["busy", "busy", "closed"]


@pytest.mark.parametrize("path", ["/twilio/voice", "/twilio/after", "/twilio/status"])
async def test_bad_forms_get_a_sentence(path: str) -> None:
    kind = {"content-type": "application/x-www-form-urlencoded"}
    many = urlencode([("CallSid", "CA1")] + [("a", "b")] * routes.MAX_FIELDS)
    async with gateway(Desk(settings())) as (client, _):
        for content, status in (
            (b"", 400),
            (b"CallSid=", 400),
            (b"CallSid=CA%201", 400),
            (b"CallSid=" + b"a" * 65, 400),
            (b"CallSid=CA1&To=%ff", 400),
            (b"CallSid=CA1&To=\xff", 400),
            (many.encode(), 400),
            (b"CallSid=CA1&x=" + b"a" * routes.MAX_FORM, 413),
        ):
            response = await client.post(path, content=content, headers=kind)
            assert response.status_code == status
            assert response.text.startswith("The form ")
        response = await client.post(path, json={"CallSid": "CA1"})
        assert (response.status_code, response.text[:26]) == (400, "The request must be a form")
        assert (await client.get(path)).status_code == 405


async def test_with_an_auth_token_only_signed_requests_are_served() -> None:
    desk = Desk(settings(twilio_auth_token=AUTH, public_url="https://phone.example/"))
    sign = RequestValidator(AUTH).compute_signature
    async with gateway(desk) as (client, host):
        good = sign("https://phone.example/twilio/voice", FORM)
        action, url, parameters = stream_of(await post(client, "/twilio/voice", X_Twilio_Signature=good))
        assert (action, url) == ("https://phone.example/twilio/after", "wss://phone.example/twilio/stream")
        for path, form, signature in (
            ("/twilio/voice", {**FORM, "To": "+1999"}, good),
            ("/twilio/after", FORM, good),
            ("/twilio/status", FORM, good),
            ("/twilio/voice?x=1", FORM, good),
            ("/twilio/voice", FORM, sign(f"http://{host}/twilio/voice", FORM)),
            ("/twilio/voice", FORM, "é"),
            ("/twilio/voice", FORM, ""),
        ):
            response = await client.post(path, data=form, headers={b"x-twilio-signature": signature.encode()})
            assert response.status_code == 403
            assert "X-Twilio-Signature" in response.text
        assert (await post(client, "/twilio/voice")).status_code == 403
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{host}/twilio/stream")
        assert refused.value.response.status_code == 403
        assert refused.value.response.body == b"The request must carry one X-Twilio-Signature.\n"
        headers = {"x-twilio-signature": sign(url, {})}
        async with connect(f"ws://{host}/twilio/stream", additional_headers=headers) as socket:
            line = carrier()
            for text in (line.connected(), line.start(parameters), line.stop()):
                await socket.send(text)
            assert await closed(socket) == (1000, "caller_hangup")


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Forwarded-For": "1.2.3.4"},
        {"X-Forwarded-Proto": "https"},
        {"Forwarded": "for=1.2.3.4"},
        {"X-Real-IP": "1.2.3.4"},
        {"CF-Connecting-IP": "1.2.3.4"},
        {"Ngrok-Trace-Id": "x"},
        {"Via": "1.1 proxy"},
        {"Host": "phone.example"},
        {"Host": "127.0.0.1.phone.example"},
        {"Host": "localhost.example:80"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ],
)
async def test_without_an_auth_token_nothing_from_outside_is_served(headers: dict[str, str]) -> None:
    async with gateway(Desk(settings())) as (client, host):
        response = await client.post("/twilio/voice", data=FORM, headers=headers)
        assert response.status_code == 403
        assert "without an auth token" in response.text.lower()
        assert response.text.count(".\n") == 1
        with pytest.raises(InvalidStatus) as refused:
            await stream_with(host, headers)
        assert refused.value.response.status_code == 403
    async with gateway(Desk(settings(allow_unsigned=True))) as (client, _):
        response = await client.post("/twilio/voice", data=FORM, headers=headers)
        assert response.status_code == 200


async def stream_with(host: str, headers: dict[str, str]) -> None:
    """A handshake whose Host is what the test says: the address dialled is another thing than the URL."""
    name = headers.get("Host", host)
    others = {k: v for k, v in headers.items() if k != "Host"}
    address, _, port = host.partition(":")
    async with connect(f"ws://{name}/twilio/stream", additional_headers=others, host=address, port=int(port)):
        pass


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.9.9.9:80", "[::1]:8080"])
async def test_without_an_auth_token_every_name_of_this_machine_is_served(host: str) -> None:
    async with gateway(Desk(settings())) as (client, _):
        _, url, _ = stream_of(await client.post("/twilio/voice", data=FORM, headers={"Host": host}))
        assert url == f"ws://{host}/twilio/stream"


async def test_only_a_trusted_proxy_says_under_which_url_we_were_reached() -> None:
    sign = RequestValidator(AUTH).compute_signature
    headers = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "phone.example",
        "X-Twilio-Signature": sign("https://phone.example/twilio/voice", FORM),
    }
    desk = Desk(settings(twilio_auth_token=AUTH, trusted_proxies="10.0.0.0/8, 127.0.0.1"))
    async with gateway(desk) as (client, _):
        _, url, _ = stream_of(await client.post("/twilio/voice", data=FORM, headers=headers))
        assert url == "wss://phone.example/twilio/stream"
    desk = Desk(settings(twilio_auth_token=AUTH, trusted_proxies="10.0.0.0/8"))
    async with gateway(desk) as (client, host):
        assert (await client.post("/twilio/voice", data=FORM, headers=headers)).status_code == 403
        headers["X-Twilio-Signature"] = sign(f"http://{host}/twilio/voice", FORM)
        assert (await client.post("/twilio/voice", data=FORM, headers=headers)).status_code == 200


async def test_a_stream_without_a_good_token_is_refused() -> None:
    desk = Desk(settings())
    async with gateway(desk) as (client, _):
        _, url, parameters = stream_of(await post(client, "/twilio/voice"))
        for call_sid, given, why in (
            ("CA1", {}, "the call token is unknown, used or expired"),
            ("CA1", {"token": "x"}, "the call token is unknown, used or expired"),
            ("CA2", parameters, "the call token belongs to another call"),
        ):
            async with connect(url) as socket:
                line = carrier(call_sid)
                await socket.send(line.connected())
                await socket.send(line.start(given))
                assert await closed(socket) == (1008, why)
        assert desk.legs == []
        for expected in ((1000, "caller_hangup"), (1008, "the call token is unknown, used or expired")):
            async with connect(url) as socket:
                line = carrier()
                for text in (line.connected(), line.start(parameters), line.stop()):
                    await socket.send(text)
                assert await closed(socket) == expected
        assert len(desk.legs) == 1


async def test_a_wrong_opening_is_refused_with_its_reason() -> None:
    async with gateway(Desk(settings())) as (_, host):
        openings: list[tuple[str | bytes, str]] = [
            ("{", "the message is not JSON"),
            (b"\0", "the message is binary; Media Streams are JSON text"),
            (carrier().start({}), "start came where only connected may come"),
            (carrier().media(bytes(160)), "media came where only connected may come"),
        ]
        for first, why in openings:
            async with connect(f"ws://{host}/twilio/stream") as socket:
                await socket.send(first)
                assert await closed(socket) == (1008, why)


async def test_what_a_caller_writes_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gateway")
    desk = Desk(settings())
    forged = {
        **FORM,
        "From": "+1\r\n2026 ERROR the disk is full\x1b[2J\u202e",
        "To": "+" + "5" * 5000,
        "CallStatus": "in-progress\n2026 ERROR\x07",
    }
    async with gateway(desk) as (client, _):
        _, url, parameters = stream_of(await post(client, "/twilio/voice", forged))
        assert (await post(client, "/twilio/status", forged)).status_code == 204
        assert (await post(client, "/twilio/after", forged)).status_code == 200
        async with connect(url) as socket:
            line = carrier()
            for text in (line.connected(), line.start(parameters), line.stop()):
                await socket.send(text)
            assert await closed(socket) == (1000, "caller_hangup")
    [leg] = desk.legs
    assert leg.info.from_number == "+1??2026 ERROR the disk is full?[2J?"
    assert leg.info.to_number == "+" + "5" * 127
    assert set(desk.numbers) == {leg.info.to_number}
    own = [record.getMessage() for record in caplog.records if record.name.startswith("gateway")]
    assert "call CA1: the carrier says 'in-progress?2026 ERROR?'" in own
    assert all(message.isprintable() for message in own)


async def test_a_form_that_does_not_arrive_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "FORM_TIMEOUT", 0.05)
    head = "POST /twilio/voice HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    kind = "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
    async with gateway(Desk(settings())) as (_, host):
        name, _, port = host.partition(":")
        reader, writer = await asyncio.open_connection(name, int(port))
        writer.write((head + kind + "CallSid=CA1").encode())
        assert (await asyncio.wait_for(reader.readline(), TIMEOUT)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_peers_that_vanish_leave_no_trace_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    form = b"POST /twilio/voice HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n"
    form += b"Content-Type: application/x-www-form-urlencoded\r\n\r\nCallSid=CA1"
    async with gateway(Desk(settings())) as (client, host):
        name, _, port = host.partition(":")
        for _ in range(10):
            async with connect(f"ws://{host}/twilio/stream") as socket:
                await socket.send("garbage")
                socket.transport.abort()
            _, writer = await asyncio.open_connection(name, int(port))
            writer.write(form)
            await writer.drain()
            writer.transport.abort()
        assert (await post(client, "/twilio/status")).status_code == 204
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    assert "a media stream was refused" in caplog.text


async def test_a_socket_that_never_starts_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "START_TIMEOUT", 0.05)
    async with gateway(Desk(settings())) as (_, host), connect(f"ws://{host}/twilio/stream") as socket:
        await socket.send(carrier().connected())
        assert await closed(socket) == (1008, "no start message within 0.05 s")


async def test_a_socket_that_leaves_before_its_start_disturbs_nobody() -> None:
    desk = Desk(settings())
    async with gateway(desk) as (client, host):
        async with connect(f"ws://{host}/twilio/stream") as socket:
            await socket.send(carrier().connected())
        assert stream_of(await post(client, "/twilio/voice"))[2]["persona"] == "bank"
    assert desk.legs == []


async def test_a_peers_fault_ends_its_own_call_only() -> None:
    desk = Desk(settings(), run=_listen_and_say_why)
    async with gateway(desk) as (client, _):
        _, url, first = stream_of(await post(client, "/twilio/voice"))
        _, _, second = stream_of(await post(client, "/twilio/voice", {**FORM, "CallSid": "CA2"}))
        async with connect(url) as good, connect(url) as bad:
            lines = carrier(), carrier("CA2")
            for line, socket, parameters in zip(lines, (good, bad), (first, second), strict=True):
                await socket.send(line.connected())
                await socket.send(line.start(parameters))
            await bad.send(lines[1].start(second))
            assert await closed(bad) == (1008, "start came where only media, dtmf, mark or stop may come")
            await good.send(lines[0].media(bytes(160)))
            await good.send(lines[0].stop())
            assert await closed(good) == (1000, "caller_hangup")
    assert [leg.counters.media for leg in desk.legs] == [1, 0]


async def _listen_and_say_why(leg: TwilioLeg) -> None:
    try:
        await listen(leg)
    except PeerError:
        await leg.hangup("protocol_error")


async def test_a_call_that_fails_still_lets_the_line_go() -> None:
    async def fail(leg: TwilioLeg) -> None:
        raise ConnectionResetError

    async with gateway(Desk(settings(), run=fail)) as (client, _):
        _, url, parameters = stream_of(await post(client, "/twilio/voice"))
        async with connect(url) as socket:
            line = carrier()
            await socket.send(line.connected())
            await socket.send(line.start(parameters))
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(socket.recv(), TIMEOUT)
            assert socket.close_reason == "failed"


async def test_proxies_that_are_no_addresses_are_named_at_start() -> None:
    with pytest.raises(ValueError, match="'loadbalancer' is not an address or network"):
        app_for(Desk(settings(trusted_proxies="10.0.0.1, loadbalancer")))


async def test_the_rest_client_is_closed_with_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = TwilioRest("http://127.0.0.1:1", "AC1", AUTH)
    monkeypatch.setattr(routes, "rest_from", lambda _: rest)
    async with gateway(Desk(settings())):
        pass
    with pytest.raises(RuntimeError, match="client has been closed"):
        await rest.end_call("CA1")
