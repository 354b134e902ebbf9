"""baresip as a telephone without a screen: plays a WAV file as its microphone, keeps what it heard and said."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

needs_baresip = pytest.mark.skipif(
    shutil.which("baresip") is None, reason="baresip is not installed: apt-get install baresip-core"
)
MODULES = Path("/usr/lib/baresip/modules")
WAIT = 20.0

CONFIG = """\
poll_method epoll
sip_listen {listen}
sip_cafile {ca}
net_interface 127.0.0.1
audio_player aubridge,nil
audio_source aufile,{microphone}
audio_alert aubridge,nil
audio_buffer 20-160
call_max_calls 4
snd_path {folder}
module_path {modules}
module g711.so
module aufile.so
module aubridge.so
module sndfile.so
module srtp.so
module_app account.so
module_app menu.so
module_app ctrl_tcp.so
ctrl_tcp_listen 127.0.0.1:{control}
"""


class TelephoneFailed(AssertionError):
    """What was waited for did not happen; the message says what did."""


@dataclass
class Telephone:
    """A running baresip."""

    folder: Path
    address: str
    """host:port of its SIP."""
    _control: socket.socket
    _buffer: bytes = b""
    events: list[dict[str, Any]] = field(default_factory=list)

    def command(self, name: str, params: str = "") -> None:
        message = json.dumps({"command": name, "params": params, "token": "t"})
        self._control.sendall(f"{len(message)}:{message},".encode())

    def wait_for(self, kind: str, count: int = 1, timeout: float = WAIT) -> dict[str, Any]:
        """The `count`th event of a type, such as CALL_ESTABLISHED."""
        until = time.monotonic() + timeout
        while True:
            found = [event for event in self.events if event.get("type") == kind]
            if len(found) >= count:
                return found[count - 1]
            self._read(kind, until)

    def _read(self, kind: str, until: float) -> None:
        self._control.settimeout(max(0.01, until - time.monotonic()))
        try:
            data = self._control.recv(65_536)
        except TimeoutError:
            raise TelephoneFailed(f"no {kind} came: {self.events}\n{self.log}") from None
        if not data:
            raise TelephoneFailed(f"baresip is gone\n{self.log}")
        self._buffer += data
        while (colon := self._buffer.find(b":")) >= 0:
            length = int(self._buffer[:colon])
            if len(self._buffer) < colon + length + 2:
                break
            self.events.append(json.loads(self._buffer[colon + 1 : colon + 1 + length]))
            self._buffer = self._buffer[colon + length + 2 :]

    @property
    def log(self) -> str:
        return (self.folder / "baresip.log").read_text(errors="replace")[-3000:]

    def listen(self, seconds: float) -> None:
        """Until so much sound has come from the line and is on disk."""
        until = time.monotonic() + seconds + WAIT
        while time.monotonic() < until:
            if any(path.stat().st_size >= 16_000 * seconds for path in self.folder.glob("dump-*-dec.wav")):
                return
            time.sleep(0.05)
        raise TelephoneFailed(f"{seconds} s of sound did not come\n{self.log}")

    def heard(self) -> Path:
        """The recording of what came from the line in the latest call."""
        return self._recording("dec")

    def _recording(self, kind: str) -> Path:
        files = sorted(self.folder.glob(f"dump-*-{kind}.wav"), key=lambda path: path.stat().st_mtime)
        if not files:
            raise TelephoneFailed(f"baresip recorded nothing\n{self.log}")
        return files[-1]


@contextmanager
def telephone(
    folder: Path, user: str, microphone: Path, *, options: str = "", ca: Path | None = None, tls: bool = False
) -> Iterator[Telephone]:
    """A telephone of `user`; `options` are its account's."""
    folder.mkdir(parents=True)
    sip, _, control = next(ports for ports in iter(_ports, None) if all(map(_is_free, ports)))
    (folder / "config").write_text(
        CONFIG.format(
            listen=f"127.0.0.1:{sip}",
            ca=ca or "/etc/ssl/certs/ca-certificates.crt",
            microphone=microphone,
            folder=folder,
            modules=MODULES,
            control=control,
        )
    )
    account = f"<sip:{user}@127.0.0.1{';transport=tls' if tls else ''}>;regint=0;answermode=auto;audio_codecs=PCMU"
    (folder / "accounts").write_text(account + (f";{options}" if options else "") + "\n")
    with (folder / "baresip.log").open("w") as log:
        process = subprocess.Popen(
            ["baresip", "-f", str(folder), "-v"], cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        connection = _connect(control, lambda: process.poll() is None, folder)
        with connection:
            yield Telephone(folder, f"127.0.0.1:{sip}", connection)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ports() -> tuple[int, int, int]:
    """For SIP, for TLS, which baresip takes at the next, and for control. Below those that the system gives to clients:
    connections of tests that run beside would take them meanwhile."""
    first = random.randrange(10_000, 32_000, 4)
    return first, first + 1, first + 2


def _is_free(port: int) -> bool:
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_INET, kind) as probe:
                probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _connect(port: int, alive: Callable[[], bool], folder: Path) -> socket.socket:
    until = time.monotonic() + WAIT
    while time.monotonic() < until and alive():
        try:
            return socket.create_connection(("127.0.0.1", port), 1)
        except OSError:
            time.sleep(0.02)
    raise TelephoneFailed("baresip did not start:\n" + (folder / "baresip.log").read_text(errors="replace"))
