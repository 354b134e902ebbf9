"""`callplex demo`: one whole call on this machine, with real processes, sockets, signatures and sound.

Starts the gateway as an operator would, calls it as Twilio would, receives the webhook as a CRM would,
and judges from what arrived there. Nothing in here reaches into the gateway.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import secrets
import signal
import socket
import sys
import time
import wave
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import numpy as np
from rich.console import Console
from rich.markup import escape

from gateway.demo_screen import Conversation, print_result
from gateway.phone.call import CallFailed, CallOptions, CallReport, place_call
from gateway.phone.metrics import SOUND_LEVEL
from gateway.phone.script import CALLERS, load_caller
from gateway.phone.sound import SoundUnreadable
from gateway.recording.opus import OpusMissing
from gateway.recording.reading import Unreadable, open_recording
from gateway.webhook_receiver import WebhookReceiver

START_TIMEOUT = 180.0
"""Seconds gateway and worker have until they can take a call; the first start loads the weights from disk."""
STOP_TIMEOUT = 15.0
WEBHOOK_TIMEOUT = 20.0
"""Seconds after the call's end within which the webhook must arrive."""
TURNS_NEEDED = 3
"""Caller turns that must be recognised, of the four the recorded caller speaks."""
PERSONAS = Path(__file__).parent.parent / "personas"


class DemoFailed(Exception):
    """The demo could not take place; the message says why."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What came of the call, from outside the gateway."""

    report: CallReport
    document: Mapping[str, Any]
    """`data` of the verified `call.ended` webhook; empty when none came."""
    refused_webhooks: int
    recording: str
    """Path of the stereo recording, empty when there is none."""
    sound: tuple[bool, bool]
    """Whether the recording has sound of the caller and of the agent."""
    unsigned_refused: bool


def run_demo(*, json_output: bool = False, data_dir: Path = Path("data")) -> int:
    """Run the demo; 0 only if all of it happened, 1 with a sentence for each thing that did not, 130 on Ctrl-C."""
    console = Console(quiet=json_output, highlight=False)
    folder = data_dir / "demo" / time.strftime("%Y%m%d-%H%M%S")
    try:
        evidence = asyncio.run(_until_interrupted(_demo(folder, console)))
    except (DemoFailed, CallFailed, SoundUnreadable) as error:
        if json_output:
            print(json.dumps({"ok": False, "missing": [str(error)]}))  # noqa: T201
        else:
            Console(stderr=True, highlight=False).print(f"[red]{escape(str(error))}[/red]", soft_wrap=True)
        return 1
    except asyncio.CancelledError:
        return 130
    lacking = missing(evidence)
    if json_output:
        print(json.dumps(summary(evidence, lacking)))  # noqa: T201
    else:
        files = {"stereo recording": evidence.recording or "none", "agent as heard": evidence.report.agent_wav}
        print_result(console, evidence.report.metrics, evidence.document, files, lacking)
    return 1 if lacking else 0


def missing(evidence: Evidence) -> list[str]:
    """One sentence for each thing that was to happen and did not."""
    report, document = evidence.report, evidence.document
    utterances = document.get("utterances", [])
    recognised = [one for one in utterances if one["speaker"] == "caller" and one["text"].strip()]
    cut_short = [one for one in utterances if one["speaker"] == "agent" and one["interrupted"]]
    log = "see the gateway's log"
    checks: list[tuple[bool, str]] = [
        (evidence.unsigned_refused, "A request without a signature was not refused."),
        (report.metrics.answer_ms is not None, f"The call was not answered: the caller heard no sound; {log}."),
        (not report.detail, report.detail),
        (
            bool(document),
            f"No verified webhook arrived within {WEBHOOK_TIMEOUT:.0f} s ({evidence.refused_webhooks} refused).",
        ),
        (
            len(recognised) >= TURNS_NEEDED,
            f"Of the caller's {len(report.turns)} turns {len(recognised)} were recognised; {TURNS_NEEDED} were to be.",
        ),
        (
            bool(report.metrics.interruption_ms and cut_short),
            "The agent was not interrupted: it did not stop when the caller spoke over it.",
        ),
        (
            report.ended_by == "gateway" and document.get("end_reason") == "agent_goodbye",
            f"The agent did not end the call with a goodbye (ended by the {report.ended_by},"
            f" reason {document.get('end_reason', 'unknown')}).",
        ),
        (bool(evidence.recording), "There is no stereo recording of the call."),
        (all(evidence.sound) or not evidence.recording, "The recording lacks the sound of one side."),
    ]
    return [sentence for happened, sentence in checks if not happened]


def summary(evidence: Evidence, lacking: list[str]) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "ok": not lacking,
        "missing": lacking,
        "metrics": asdict(evidence.report.metrics),
        "end_reason": evidence.document.get("end_reason", ""),
        "utterances": evidence.document.get("utterances", []),
        "gateway_metrics": evidence.document.get("metrics", {}),
        "recording": evidence.recording,
        "call_wav": evidence.report.call_wav,
        "agent_wav": evidence.report.agent_wav,
        "verbs": evidence.report.verbs,
    }


async def _until_interrupted(work: Coroutine[Any, Any, Evidence]) -> Evidence:
    """Ctrl-C and SIGTERM cancel, so that children are ended on the way out."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupted() -> None:
        task.cancel()
        for number in signals:
            # A second Ctrl-C must not leave the children behind; ending them takes seconds at most.
            loop.add_signal_handler(number, lambda: None)

    for number in signals:
        loop.add_signal_handler(number, interrupted)
    return await task


async def _demo(folder: Path, console: Console) -> Evidence:
    token = secrets.token_hex(16)
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    caller = load_caller(CALLERS / "demo.json")
    receiver = WebhookReceiver(secret)
    with receiver.listening():
        listen, admin = (f"127.0.0.1:{port}" for port in _free_ports())
        environment = _environment(folder, listen, admin, token, receiver.url, secret)
        console.print("Starting the gateway and its worker ...")
        async with _gateway(folder, environment, f"http://{listen}") as log:
            console.print(
                f"The gateway is ready on http://{listen}; its log is {escape(str(log))}.\nCalling it:\n",
                soft_wrap=True,
            )
            unsigned_refused = await _refuses_unsigned(f"http://{listen}")
            options = CallOptions(f"http://{listen}", caller, auth_token=token, out=folder)
            report = await _call(options, f"http://{admin}/api/calls/live", console)
            document = await _webhook(receiver)
    recording, sound = find_recording(folder, str(document.get("call_id", "-")))
    return Evidence(report, document, receiver.refused, recording, sound, unsigned_refused)


async def _call(options: CallOptions, live_url: str, console: Console) -> CallReport:
    """Place the call with the gateway's live feed on the screen."""
    with Conversation(console) as conversation:
        watching = asyncio.Event()
        feed = asyncio.create_task(_watch(live_url, conversation.show, watching))
        try:
            await asyncio.wait((feed, asyncio.create_task(watching.wait())), return_when=asyncio.FIRST_COMPLETED)
            return await place_call(options)
        finally:
            feed.cancel()
            await asyncio.gather(feed, return_exceptions=True)


async def _watch(url: str, show: Callable[[Mapping[str, Any], float], None], watching: asyncio.Event) -> None:
    """Follow the live feed (server-sent events) until cancelled; without it the call goes on unseen."""
    try:
        async with (
            httpx.AsyncClient(trust_env=False, timeout=None) as client,
            client.stream("GET", url) as response,
        ):
            watching.set()
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    show(json.loads(line.removeprefix("data:")), time.monotonic())
    except (httpx.HTTPError, ValueError):
        return


async def _webhook(receiver: WebhookReceiver) -> Mapping[str, Any]:
    """The call's document, from the verified webhook; empty when none comes in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(WEBHOOK_TIMEOUT):
            while True:
                event = await receiver.events.get()
                if event.get("type") == "call.ended" and isinstance(event.get("data"), dict):
                    data: Mapping[str, Any] = event["data"]
                    return data
    return {}


async def _refuses_unsigned(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False, timeout=10) as client:
        with suppress(httpx.HTTPError):
            return (await client.post(f"{url}/twilio/voice", data={"CallSid": "CA0"})).status_code == 403
    return False


@asynccontextmanager
async def _gateway(folder: Path, environment: Mapping[str, str], url: str) -> AsyncIterator[Path]:
    """`callplex serve` as a child while inside, ready to take a call; yields its log. Raises DemoFailed."""
    log = folder / "gateway.log"
    with _open_log(log) as output:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "gateway.cli", "serve"),
            env={**os.environ, **environment},
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        await _until_ready(child, url, log)
        yield log
    finally:
        await asyncio.shield(_stop(child))


async def _until_ready(child: Process, url: str, log: Path) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(START_TIMEOUT):
                while child.returncode is None:
                    with suppress(httpx.HTTPError):
                        if (await client.get(f"{url}/readyz")).status_code == 200:
                            return
                    await asyncio.sleep(0.2)
    if child.returncode is None:
        raise DemoFailed(f"The gateway was not ready within {START_TIMEOUT:.0f} s; its log is {log}.")
    raise DemoFailed(f"The gateway ended with status {child.returncode}: {_last_words(log)} (log: {log})")


async def _stop(child: Process) -> None:
    """End the gateway; it ends its worker. What is left of its process group is killed."""
    if child.returncode is None:
        with suppress(ProcessLookupError):
            child.terminate()
    ended = asyncio.ensure_future(child.wait())
    try:
        # Not asyncio.wait_for: in Python 3.11 it loses a cancellation that comes together with its result.
        await asyncio.wait([ended], timeout=STOP_TIMEOUT)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    await ended


def _open_log(log: Path) -> BinaryIO:
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("wb")
    except OSError as error:
        raise DemoFailed(f"{log.parent} cannot be written: {error.strerror or error}.") from None


def _last_words(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


def _environment(folder: Path, listen: str, admin: str, token: str, hook: str, secret: str) -> dict[str, str]:
    """Everything that decides what the demo shows, so that an operator's own settings cannot change it."""
    settings = {
        "LISTEN": listen,
        "ADMIN_LISTEN": admin,
        "PUBLIC_URL": "",
        "TRUSTED_PROXIES": "",
        "ALLOW_UNSIGNED": "false",
        "TWILIO_AUTH_TOKEN": token,
        "TWILIO_ACCOUNT_SID": "",
        "DATA_DIR": str(folder),
        "DATA_KEY": "",
        **dict.fromkeys(("S3_ENDPOINT", "S3_BUCKET", "S3_KEY_ID", "S3_SECRET"), ""),
        "WORKERS": "local",
        "ENGINE": "rehearsal",
        "EMBEDDED_ECHO": "false",
        "CHAT_URL": "",
        "WEBHOOK_URL": hook,
        "WEBHOOK_SECRET": secret,
        "LOG_LEVEL": "info",
    }
    if PERSONAS.is_dir():
        settings["PERSONAS"] = str(PERSONAS)
    return {f"CALLPLEX_{name}": value for name, value in settings.items()}


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def find_recording(folder: Path, call_id: str) -> tuple[str, tuple[bool, bool]]:
    """The call's stereo recording, and whether it has sound of the caller and of the agent; no path: there is none.

    The gateway's own where the persona keeps the sound of calls, as WAV or Opus, else the phone's.
    """
    ours = folder / "calls" / call_id
    for recording in (ours / "call.wav", ours / "call.opus", folder / "call.wav"):
        if (sound := _sound(recording)) is not None:
            return str(recording), sound
    return "", (False, False)


def _sound(recording: Path) -> tuple[bool, bool] | None:
    """Whether the caller (left) and the agent (right) can be heard; None without a stereo recording."""
    try:
        with recording.open("rb") as stored, wave.open(_as_wav(stored, recording.name), "rb") as file:
            if file.getnchannels() != 2 or file.getsampwidth() != 2:
                return None
            sides = np.frombuffer(file.readframes(file.getnframes()), np.int16).reshape(-1, 2)
    except (OSError, EOFError, wave.Error, Unreadable, OpusMissing):
        return None
    if not len(sides):
        return False, False
    loudest = np.abs(sides.astype(np.int32)).max(axis=0)
    return bool(loudest[0] > 10 * SOUND_LEVEL), bool(loudest[1] > 10 * SOUND_LEVEL)


def _as_wav(file: BinaryIO, name: str) -> BinaryIO:
    return io.BytesIO(b"".join(open_recording(file, name, ()).wav())) if name.endswith(".opus") else file
