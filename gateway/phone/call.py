"""One telephone call placed against a gateway: TwiML requests, verbs, streams, the report.

Owns the HTTP side and the order of things. The sound is `stream`'s, the caller's words `caller`'s.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI

from gateway.phone.caller import Voice
from gateway.phone.metrics import Metrics, Turn, caller_turns, measure
from gateway.phone.playout import FRAME_BYTES, FRAME_SECONDS
from gateway.phone.sound import write_wav
from gateway.phone.stream import MAX_MESSAGE, MediaStream, StreamCall, StreamResult
from gateway.phone.twiml import MAX_BYTES, Stream, TwimlInvalid, Verb, parse
from gateway.twilio.signature import HEADER, sign

VOICE_PATH = "/twilio/voice"
STATUS_PATH = "/twilio/status"
HTTP_TIMEOUT = 15.0
"""Seconds the carrier waits for TwiML (Twilio error 11200)."""
MAX_DOCUMENTS = 20
"""TwiML documents one call may fetch, so that two that redirect to each other end."""
LOOPBACK = {"127.0.0.1", "::1", "localhost"}

EndedBy = Literal["gateway", "caller", "transfer", "rejected", "protocol_error", "lost"]


class CallFailed(Exception):
    """The call did not come about or broke off; the message says why and what to do, in one sentence."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something worth showing while the call is on."""

    at: float
    """Seconds since the request for TwiML."""
    kind: Literal["request", "verb", "stream", "caller", "clear", "mark", "stream_end"]
    text: str = ""


@dataclass(slots=True)
class CallOptions:
    url: str
    """The gateway, `http://host:port` (then `/twilio/voice` is asked), or the full address of its voice webhook."""
    caller: Voice
    from_number: str = "+13055550142"
    to_number: str = "+18005550100"
    auth_token: str = ""
    """Signs requests and handshake; empty: nothing is signed."""
    account_sid: str = ""
    sign_as: str = ""
    """The gateway's public URL, when it is called here under another address: signatures are made over it."""
    out: Path | None = None
    """Folder for agent.wav and call.wav."""
    hangup: asyncio.Event = field(default_factory=asyncio.Event)
    """Set it to put the phone down."""


@dataclass(slots=True)
class CallReport:
    call_sid: str
    url: str
    ended_by: EndedBy
    detail: str = ""
    """Why the call broke off, or was rejected; empty when it went well."""
    transfer: str = ""
    """Number or address the gateway asked to dial."""
    verbs: list[str] = field(default_factory=list)
    """TwiML verbs in the order they were carried out, with what they say."""
    parameters: dict[str, str] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    """What the caller said, in seconds of the stream."""
    duration: float = 0.0
    """Seconds of stream."""
    marks: int = 0
    metrics: Metrics = field(default_factory=Metrics)
    agent_wav: str = ""
    call_wav: str = ""


async def place_call(options: CallOptions, on_event: Callable[[Happening], None] | None = None) -> CallReport:
    """Place one call and hold it to its end. Raises CallFailed when no conversation came about.

    Set `options.hangup` to end it early; cancelling drops the line like a dead phone.
    """
    # A proxy from the environment cannot reach this machine's loopback.
    async with httpx.AsyncClient(timeout=HTTP_TIMEOUT, trust_env=not is_local(options.url)) as client:
        phone = _Phone(options, client, on_event or (lambda happening: None))
        return await phone.run()


def is_local(url: str) -> bool:
    """Whether the address is on this machine's loopback. Raises CallFailed if it is none."""
    return (_split(url).hostname or "") in LOOPBACK


class _Phone:
    def __init__(self, options: CallOptions, client: httpx.AsyncClient, on_event: Callable[[Happening], None]) -> None:
        self._options = options
        self._client = client
        self._on_event = on_event
        self._account = options.account_sid or "AC" + secrets.token_hex(16)
        self._sid = "CA" + secrets.token_hex(16)
        self._begun = time.monotonic()
        self._stream_after: float | None = None
        self._results: list[StreamResult] = []
        self._report = CallReport(self._sid, _voice_url(options.url), "gateway")

    async def run(self) -> CallReport:
        try:
            await self._follow()
        except CallFailed as error:
            if not self._results:
                raise
            # There was a conversation: what was heard and measured is worth keeping.
            self._report.ended_by, self._report.detail = "lost", str(error)
        await self._tell_status()
        self._measure()
        return self._report

    async def _follow(self) -> None:
        """Carry out one TwiML document after the other, until the call is over. Raises CallFailed."""
        url, method = self._report.url, "POST"
        for _ in range(MAX_DOCUMENTS):
            verbs = await self._fetch(url, method, "in-progress" if self._results else "ringing")
            follow = await self._execute(verbs, url)
            if follow is None:
                break
            url, method = follow
        else:
            raise CallFailed(
                f"The gateway's TwiML went on for more than {MAX_DOCUMENTS} documents; it redirects in a circle."
            )
        if not self._results and self._report.ended_by == "gateway":
            verbs_seen = ", ".join(self._report.verbs) or "an empty response"
            self._report.ended_by = "rejected"
            self._report.detail = f"The gateway connected the call to no agent; it answered with {verbs_seen}."

    def _tell(self, kind: str, text: str = "") -> None:
        self._on_event(Happening(time.monotonic() - self._begun, kind, text))  # type: ignore[arg-type]

    async def _execute(self, verbs: list[Verb], base: str) -> tuple[str, str] | None:
        """Carry out a document; returns the next one's (URL, method), None when the call is over."""
        for verb in verbs:
            self._report.verbs.append(f"{verb.name} {verb.detail}".strip())
            self._tell("verb", self._report.verbs[-1])
            method = verb.attributes.get("method", "POST").upper()
            if verb.name == "Hangup":
                return None
            if verb.name == "Reject":
                self._report.ended_by = "rejected"
                self._report.detail = f"The gateway rejected the call ({verb.detail})."
                return None
            if verb.name == "Dial":
                self._report.ended_by, self._report.transfer = "transfer", verb.detail
                return None
            if verb.name == "Redirect":
                return _join(base, verb.detail), method
            if verb.stream is None:
                continue
            on_line = await self._connect(verb.stream)
            if action := verb.attributes.get("action"):
                if on_line:
                    return _join(base, action), method
                # The caller is gone: the carrier asks all the same, and nobody is left to hear the answer.
                await self._fetch(_join(base, action), method, "completed")
            if not on_line:
                return None
        return None

    async def _connect(self, stream: Stream) -> bool:
        """Hold the stream to its end; true when the caller is still on the line."""
        self._report.parameters.update(stream.parameters)
        socket = await self._open(stream.url)
        if self._stream_after is None:
            self._stream_after = time.monotonic() - self._begun
        self._tell("stream", stream.url)
        call = StreamCall(self._account, self._sid, stream.parameters)
        line = MediaStream(socket, call, self._options.caller, self._options.hangup, self._tell)
        result = await line.run()
        self._results.append(result)
        self._tell("stream_end", result.detail or f"ended by the {result.ended_by}")
        self._report.ended_by, self._report.detail = result.ended_by, result.detail
        return result.ended_by != "caller"

    async def _open(self, url: str) -> ClientConnection:
        headers = {HEADER.lower(): sign(self._options.auth_token, url)} if self._options.auth_token else {}
        address = self._reachable(url)
        proxy: Literal[True] | None = None if is_local(address) else True
        try:
            return await connect(
                address,
                additional_headers=headers,
                user_agent_header="TwilioProxy/1.1",
                compression=None,
                max_size=MAX_MESSAGE,
                open_timeout=HTTP_TIMEOUT,
                close_timeout=3,
                ping_interval=None,
                proxy=proxy,
            )
        except InvalidStatus as error:
            raise CallFailed(_refusal(error.response.status_code, url, "the stream")) from None
        except TimeoutError:
            raise CallFailed(f"The gateway did not open the stream {url} within {HTTP_TIMEOUT:.0f} s.") from None
        except (OSError, InvalidHandshake, InvalidURI, EOFError) as error:
            raise CallFailed(f"The stream {url} cannot be opened: {error or type(error).__name__}.") from None

    async def _fetch(self, url: str, method: str, status: str) -> list[Verb]:
        """Ask for TwiML. Raises CallFailed."""
        self._tell("request", f"{method} {url}")
        code, body = await self._request(url, method, self._form(status))
        if code != 200:
            raise CallFailed(_refusal(code, url, "the request"))
        if not body.strip():
            return []
        try:
            return parse(body)
        except TwimlInvalid as error:
            raise CallFailed(f"{error} Is {url} a Twilio voice webhook?") from None

    async def _request(self, url: str, method: str, form: Mapping[str, str]) -> tuple[int, bytes]:
        url = self._reachable(url)
        if method == "GET":
            url, form = str(httpx.URL(url, params={**httpx.URL(url).params, **form})), {}
        signed = self._signed_url(url)
        headers = {"User-Agent": "TwilioProxy/1.1"}
        if self._options.auth_token:
            headers[HEADER] = sign(self._options.auth_token, signed, form.items())
        try:
            async with self._client.stream(method, url, data=dict(form) or None, headers=headers) as response:
                body = bytearray()
                async for piece in response.aiter_bytes():
                    body += piece
                    if len(body) > MAX_BYTES:
                        break
                return response.status_code, bytes(body)
        except httpx.ConnectError:
            raise CallFailed(f"No gateway answers at {_origin(url)}; start one with `callplex serve`.") from None
        except httpx.TimeoutException:
            raise CallFailed(f"The gateway at {_origin(url)} did not answer within {HTTP_TIMEOUT:.0f} s.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CallFailed(f"{url} cannot be asked for TwiML: {error or type(error).__name__}.") from None

    def _form(self, status: str) -> dict[str, str]:
        """The fields of a voice request (TwiML voice request reference)."""
        return {
            "AccountSid": self._account,
            "ApiVersion": "2010-04-01",
            "CallSid": self._sid,
            "CallStatus": status,
            "Called": self._options.to_number,
            "Caller": self._options.from_number,
            "Direction": "inbound",
            "From": self._options.from_number,
            "To": self._options.to_number,
        }

    def _signed_url(self, url: str) -> str:
        """The address the gateway believes it is asked under."""
        public, called = self._options.sign_as, _origin(self._report.url)
        return _origin(public) + url.removeprefix(called) if public and _origin(url) == called else url

    def _reachable(self, url: str) -> str:
        """Where to go for an address in TwiML: a gateway's public one is here the one that was called."""
        public, target = _split(self._options.sign_as), _split(url)
        if not public.netloc or target.netloc != public.netloc:
            return url
        called = _split(self._report.url)
        scheme = called.scheme.replace("http", "ws") if target.scheme.startswith("ws") else called.scheme
        return target._replace(scheme=scheme, netloc=called.netloc).geturl()

    async def _tell_status(self) -> None:
        """The number's status callback; a gateway without one answers as it likes."""
        voice = self._report.url
        if not voice.endswith(VOICE_PATH):
            return
        form = {**self._form("completed"), "CallDuration": str(round(time.monotonic() - self._begun))}
        try:
            await self._request(voice.removesuffix(VOICE_PATH) + STATUS_PATH, "POST", form)
        except CallFailed as error:
            self._report.detail = self._report.detail or f"The status callback failed: {error}"

    def _measure(self) -> None:
        report, options = self._report, self._options
        caller = b"".join(result.caller for result in self._results)
        agent = b"".join(result.agent for result in self._results)
        report.metrics = metrics = measure(caller, agent, options.caller.turns, self._stream_after)
        report.turns = caller_turns(caller, options.caller.turns)
        report.duration = round(len(agent) / FRAME_BYTES * FRAME_SECONDS, 2)
        for result in self._results:
            report.marks += result.marks
            metrics.frames_sent += result.frames_sent
            metrics.frames_received += result.counts.received
            metrics.frames_lost += result.counts.lost
            metrics.frames_cleared += result.counts.cleared
            metrics.underruns += result.counts.underruns
            metrics.unheard_ms += round(result.unheard * 1000, 1)
        if options.out is not None and self._results:
            report.agent_wav, report.call_wav = record(options.out, caller, agent)


def record(folder: Path, caller: bytes, agent: bytes) -> tuple[str, str]:
    """Keep the sound of a call: agent.wav and call.wav. Raises CallFailed."""
    agent_wav, call_wav = folder / "agent.wav", folder / "call.wav"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_wav(agent_wav, agent)
        write_wav(call_wav, caller, agent)
    except OSError as error:
        raise CallFailed(f"The recording cannot be written to {folder}: {error.strerror or error}.") from None
    return str(agent_wav), str(call_wav)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise CallFailed(f"{url!r} is no address; write it like http://127.0.0.1:8080.") from None


def _join(base: str, url: str) -> str:
    try:
        return urljoin(base, url)
    except ValueError:
        raise CallFailed(f"The gateway's TwiML goes on at {url[:100]!r}, which is no address.") from None


def _voice_url(url: str) -> str:
    parts = _split(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise CallFailed(f"{url!r} is no gateway's address; write it like http://127.0.0.1:8080.")
    return url if parts.path.strip("/") else _origin(url) + VOICE_PATH


def _origin(url: str) -> str:
    parts = _split(url)
    return f"{parts.scheme}://{parts.netloc}"


def _refusal(code: int, url: str, what: str) -> str:
    if code in (401, 403):
        return (
            f"The gateway refused {what} ({url}, HTTP {code}): set CALLPLEX_TWILIO_AUTH_TOKEN to the auth token "
            "the gateway checks signatures with, and call it under its public URL."
        )
    if code == 404:
        return f"{url} does not exist (HTTP 404); give the gateway's address or its voice webhook."
    if code in (429, 503):
        return f"The gateway cannot take {what} now (HTTP {code}): it is busy or still starting; try again shortly."
    return f"The gateway answered {what} ({url}) with HTTP {code}; its log says why."
