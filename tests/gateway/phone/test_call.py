"""The terminal phone against a real gateway over loopback: signatures, order, sound, and every way to end."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import wave
from pathlib import Path

import numpy as np
import pytest
from starlette.responses import PlainTextResponse, Response

from gateway import audio
from gateway.phone.call import CallFailed, CallOptions, CallReport, Happening, place_call
from gateway.phone.caller import Clip, ScriptedCaller
from gateway.phone.metrics import Turn
from tests.gateway.phone.scripted_gateway import TOKEN, Line, ScriptedGateway

pytestmark = pytest.mark.anyio


def tone(seconds: float, amplitude: int = 8_000) -> bytes:
    wave_form = amplitude * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 8_000)) / 8_000)
    return wave_form.astype(np.int16).tobytes()


def payload(pcm: bytes) -> dict[str, str]:
    return {"payload": base64.b64encode(audio.encode_ulaw(pcm)).decode()}


def caller(seconds: float = 0.3, linger: float = 0.1) -> ScriptedCaller:
    return ScriptedCaller([Clip(tone(seconds), turns=(Turn(0.0, seconds, "hello"),))], quiet=0.1, linger=linger)


def patient() -> ScriptedCaller:
    """Stays on the line until the gateway ends the call."""
    return ScriptedCaller([Clip(tone(0.1))], quiet=20.0, linger=20.0)


async def call(gateway: ScriptedGateway, who: ScriptedCaller | None = None, **options: object) -> CallReport:
    chosen = CallOptions(gateway.url, who or patient(), auth_token=TOKEN)
    for name, value in options.items():
        setattr(chosen, name, value)
    async with asyncio.timeout(20):
        return await place_call(chosen)


async def echo(line: Line) -> None:
    while True:
        message = await line.next("media")
        await line.send("media", media={"payload": message["media"]["payload"]})


async def test_caller_hangs_up_on_an_echo(tmp_path: Path) -> None:
    async with ScriptedGateway(echo).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response><Hangup/></Response>"
        report = await call(gateway, caller(linger=0.5), out=tmp_path)
    assert report.ended_by == "caller"
    assert report.parameters == {"token": "a & b"}
    paths = [path for path, _ in gateway.requests]
    assert paths == ["/twilio/voice", "/twilio/after", "/twilio/status"]
    statuses = [form["CallStatus"] for _, form in gateway.requests]
    assert statuses == ["ringing", "completed", "completed"]
    assert {form["CallSid"] for _, form in gateway.requests} == {report.call_sid}
    line = gateway.lines[0]
    assert [m["event"] for m in line.received[:3]] == ["connected", "start", "media"]
    assert line.received[-1]["event"] == "stop"
    assert line.start["customParameters"] == {"token": "a & b"}
    assert line.start["callSid"] == report.call_sid
    assert [int(m["sequenceNumber"]) for m in line.received[1:]] == list(range(1, len(line.received)))
    media = [m["media"] for m in line.received if m["event"] == "media"]
    assert [int(m["chunk"]) for m in media] == list(range(1, len(media) + 1))
    assert all(len(base64.b64decode(m["payload"])) == 160 for m in media)
    assert report.metrics.frames_sent == len(media)
    assert report.metrics.frames_received >= len(media) - 25
    with wave.open(report.call_wav) as both, wave.open(report.agent_wav) as agent:
        assert (both.getnchannels(), both.getframerate(), both.getnframes()) == (2, 8_000, agent.getnframes())
        sides = np.frombuffer(both.readframes(both.getnframes()), np.int16).reshape(-1, 2)
    assert abs(sides[:, 0]).max() > 7_000
    assert abs(sides[:, 1]).max() > 7_000
    assert 0 <= agent_delay(sides) < 0.5


def agent_delay(sides: np.ndarray[tuple[int, ...], np.dtype[np.int16]]) -> float:
    first = [int(np.flatnonzero(abs(sides[:, side]) > 1_000)[0]) for side in (0, 1)]
    return (first[1] - first[0]) / 8_000


async def test_agent_ends_the_call_and_marks_return_when_played() -> None:
    played_after: list[float] = []

    async def talk(line: Line) -> None:
        clock = asyncio.get_running_loop().time
        begun = clock()
        await line.send("media", media=payload(tone(0.4)))
        await line.send("mark", mark={"name": "end"})
        assert (await line.next("mark"))["mark"] == {"name": "end"}
        played_after.append(clock() - begun)
        await line.socket.close()

    async with ScriptedGateway(talk).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response><Say>Bye now.</Say><Hangup/></Response>"
        report = await call(gateway)
    assert report.ended_by == "gateway"
    assert report.verbs == [f"Connect {gateway.stream_url}", "Say Bye now.", "Hangup"]
    assert gateway.requests[1][1]["CallStatus"] == "in-progress"
    assert 0.38 <= played_after[0] < 3.0
    assert (report.marks, report.metrics.unheard_ms, report.metrics.frames_received) == (1, 0.0, 20)
    assert report.metrics.answer_ms is not None
    assert report.metrics.connect_ms is not None
    assert report.metrics.answer_ms >= report.metrics.connect_ms


async def test_clear_returns_marks_and_silences_what_is_queued() -> None:
    async def talk(line: Line) -> None:
        for _ in range(20):
            await line.send("media", media=payload(tone(1.0)))
        await line.send("mark", mark={"name": "late"})
        for _ in range(10):
            await line.next("media")
        await line.send("clear")
        await line.next("mark")
        await line.socket.close()

    async with ScriptedGateway(talk).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response><Hangup/></Response>"
        report = await call(gateway)
    assert report.marks == 1
    assert report.duration < 10
    assert report.metrics.frames_cleared > 700
    assert report.metrics.frames_received == 1_000


async def test_what_is_queued_when_the_gateway_closes_is_not_heard() -> None:
    async def talk(line: Line) -> None:
        await line.send("media", media=payload(tone(2.0)))
        await line.next("media")
        await line.socket.close()

    async with ScriptedGateway(talk).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response/>"
        report = await call(gateway)
    assert 1_500 < report.metrics.unheard_ms <= 2_000


async def test_transfer_is_reported_not_dialled() -> None:
    async def talk(line: Line) -> None:
        await line.next("media")

    async with ScriptedGateway(talk).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response><Dial><Number>+15550123</Number></Dial></Response>"
        report = await call(gateway)
    assert (report.ended_by, report.transfer) == ("transfer", "+15550123")


async def test_connect_without_action_goes_on_with_the_next_verb() -> None:
    async def talk(line: Line) -> None:
        await line.next("media")

    async with ScriptedGateway(talk).serving() as gateway:
        document = gateway.connect(action="").replace("</Response>", "<Dial>sip:desk@example.org</Dial></Response>")
        gateway.documents["/twilio/voice"] = document
        report = await call(gateway)
    assert report.transfer == "sip:desk@example.org"


async def test_redirects_are_followed_and_end() -> None:
    async with ScriptedGateway().serving() as gateway:
        gateway.documents["/twilio/voice"] = '<Response><Redirect method="GET">next?a=1</Redirect></Response>'
        gateway.documents["/twilio/next"] = "<Response><Reject reason='busy'/></Response>"
        report = await call(gateway)
        assert (report.ended_by, report.detail) == ("rejected", "The gateway rejected the call (busy).")
        assert gateway.requests[1][1]["a"] == "1"
        assert gateway.requests[1][1]["CallSid"] == report.call_sid
        gateway.documents["/twilio/voice"] = "<Response><Redirect>/twilio/voice</Redirect></Response>"
        with pytest.raises(CallFailed, match="circle"):
            await call(gateway)


@pytest.mark.parametrize(
    "message",
    [
        "not json",
        "[1]",
        json.dumps({"event": "media", "media": {"payload": "AAAA"}}),
        json.dumps({"event": "media", "streamSid": "SID", "media": {"payload": "!!!"}}),
        json.dumps({"event": "media", "streamSid": "SID"}),
        json.dumps({"event": "mark", "streamSid": "SID", "mark": {}}),
        json.dumps({"event": "sing", "streamSid": "SID"}),
    ],
)
async def test_garbage_from_the_gateway_is_told_in_a_sentence(message: str) -> None:
    async def talk(line: Line) -> None:
        await line.socket.send_text(message.replace("SID", line.sid))
        await line.next("stop")

    async with ScriptedGateway(talk).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response><Hangup/></Response>"
        report = await call(gateway)
    assert report.ended_by == "protocol_error"
    assert report.detail.startswith("The gateway broke the Media Streams protocol: ")


async def test_binary_and_dropped_streams_are_told() -> None:
    async def binary(line: Line) -> None:
        await line.socket.send_bytes(b"\0" * 320)
        await line.next("stop")

    async def drop(line: Line) -> None:
        await line.socket.close(1011, "engine lost")

    for talk, ended_by, words in ((binary, "protocol_error", "binary"), (drop, "lost", "1011: engine lost")):
        async with ScriptedGateway(talk).serving() as gateway:
            gateway.documents["/twilio/voice"] = gateway.connect()
            gateway.documents["/twilio/after"] = "<Response><Hangup/></Response>"
            report = await call(gateway)
        assert report.ended_by == ended_by
        assert words in report.detail


async def test_a_call_whose_end_fails_keeps_what_was_measured(tmp_path: Path) -> None:
    async def talk(line: Line) -> None:
        await line.next("media")

    async with ScriptedGateway(talk).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = PlainTextResponse("", 500)
        report = await call(gateway, out=tmp_path)
    assert (report.ended_by, report.metrics.frames_sent > 0) == ("lost", True)
    assert "HTTP 500" in report.detail
    assert (tmp_path / "call.wav").is_file()


async def test_an_apology_instead_of_an_agent_is_no_answered_call() -> None:
    async with ScriptedGateway().serving() as gateway:
        gateway.documents["/twilio/voice"] = "<Response><Say>Nobody is here.</Say><Hangup/></Response>"
        report = await call(gateway)
    assert report.ended_by == "rejected"
    assert report.detail == "The gateway connected the call to no agent; it answered with Say Nobody is here., Hangup."


async def test_hanging_up_from_outside() -> None:
    async with ScriptedGateway(echo).serving() as gateway:
        gateway.documents["/twilio/voice"] = gateway.connect()
        gateway.documents["/twilio/after"] = "<Response><Hangup/></Response>"
        options = CallOptions(gateway.url, patient(), auth_token=TOKEN)

        def on_event(happening: Happening) -> None:
            if happening.kind == "stream":
                options.hangup.set()

        async with asyncio.timeout(10):
            report = await place_call(options, on_event)
        assert report.ended_by == "caller"
        assert gateway.lines[0].received[-1]["event"] == "stop"


async def test_a_public_gateway_called_here_is_signed_under_its_public_name() -> None:
    async with ScriptedGateway(echo).serving() as gateway:
        gateway.public = "https://calls.example.org"
        stream = gateway.stream_url.replace(f"ws://127.0.0.1:{gateway.port}", "wss://calls.example.org")
        gateway.documents["/twilio/voice"] = gateway.connect(f'action="{gateway.public}/twilio/after"').replace(
            gateway.stream_url, stream
        )
        gateway.documents["/twilio/after"] = "<Response><Hangup/></Response>"
        with pytest.raises(CallFailed, match="refused the request"):
            await call(gateway)
        report = await call(gateway, caller(), sign_as="https://calls.example.org/")
    assert report.ended_by == "caller"
    assert [path for path, _ in gateway.requests] == ["/twilio/voice", "/twilio/after", "/twilio/status"]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("hello", "not XML"),
        ("<html></html>", "begins with <html>"),
        (Response("<Response><Connect/></Response>"), "must hold a <Stream>"),
        (PlainTextResponse("", 503), "busy"),
        (PlainTextResponse("", 500), "HTTP 500"),
        (PlainTextResponse("", 404), "does not exist"),
        (Response("<Response><Redirect>http://[::1</Redirect></Response>"), "is no address"),
        (Response('<Response><Connect><Stream url="wss://[::1"/></Connect></Response>'), "is no address"),
    ],
)
async def test_useless_answers_are_one_sentence(document: str | Response, words: str) -> None:
    async with ScriptedGateway().serving() as gateway:
        gateway.documents["/twilio/voice"] = document
        with pytest.raises(CallFailed, match=words) as failed:
            await call(gateway)
    assert "\n" not in str(failed.value)


async def test_a_wrong_token_is_refused_and_told() -> None:
    async with ScriptedGateway().serving() as gateway:
        with pytest.raises(CallFailed, match="CALLPLEX_TWILIO_AUTH_TOKEN"):
            await call(gateway, auth_token="wrong")
        gateway.documents["/twilio/voice"] = gateway.connect().replace("/twilio/stream", "/nowhere")
        with pytest.raises(CallFailed, match="refused the stream"):
            await call(gateway)


async def test_no_gateway_at_all() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(CallFailed, match=r"start one with `callplex serve`"):
            await place_call(CallOptions(url, patient()))
    with pytest.raises(CallFailed, match="no gateway's address"):
        await place_call(CallOptions("localhost:8080", patient()))
