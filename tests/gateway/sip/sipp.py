"""sipp as a caller: scenarios written in Python, run against a gateway, with what went over the line."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.audio import encode_ulaw
from gateway.bench.ports import free_ports

needs_sipp = pytest.mark.skipif(
    shutil.which("sipp") is None, reason="sipp is not installed: apt-get install sip-tester"
)

DIGIT_PCAP = "/usr/share/sip-tester/dtmf_2833_5.pcap"
"""A 5, pressed as a telephone-event of payload type 101; part of sipp."""

SDP = """\
v=0
o=sipp 1 {version} IN IP[local_ip_type] [local_ip]
s=-
c=IN IP[media_ip_type] [media_ip]
t=0 0
m=audio [rtpstream_audio_port] RTP/AVP {formats}
a=x-captured:audio [media_port]
a=rtpmap:101 telephone-event/8000
a=fmtp:101 0-15
a={direction}"""


"""The line of our own makes sipp send captured packets from the port that its other sound comes from."""


def sdp(direction: str = "sendrecv", version: int = 1, formats: str = "0 101") -> str:
    return SDP.format(direction=direction, version=version, formats=formats)


def send(
    method: str, cseq: int, *, branch: str = "", body: str = "", kind: str = "application/sdp", uri: str = ""
) -> str:
    """A request of the caller's: outside the dialog while `branch` is `invite`, else inside it."""
    first = branch == "invite"
    target = uri or ("sip:[service]@[remote_ip]:[remote_port]" if first else "[next_url]")
    lines = [
        f"{method} {target} SIP/2.0",
        f"Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=z9hG4bK-[call_id]-{branch or f'{method}-{cseq}'}",
        *([] if first else ["[routes]"]),
        'From: "Caller" <sip:+12065550142@[local_ip]:[local_port]>;tag=[pid]-[call_number]',
        f"To: <sip:[service]@[remote_ip]:[remote_port]>{'' if first else '[peer_tag_param]'}",
        "Call-ID: [call_id]",
        f"CSeq: {cseq} {method}",
        "Contact: <sip:caller@[local_ip]:[local_port];transport=[transport]>",
        "Max-Forwards: 70",
        "X-Account-Id: 4711",
        *([f"Content-Type: {kind}"] if body else []),
        "Content-Length: [len]",
        "",
        body,
    ]
    retrans = "" if method == "ACK" else ' retrans="500"'
    return f"<send{retrans}><![CDATA[\n" + "\n".join(lines) + "\n]]></send>"


def invite(body: str | None = None) -> str:
    return send("INVITE", 1, branch="invite", body=sdp() if body is None else body)


def recv(code: int, *, optional: bool = False, check: str = "") -> str:
    """A response; `check` is a pattern that its message must match."""
    attributes = ' optional="true"' if optional else ' rrs="true"'
    if not check:
        return f'<recv response="{code}"{attributes}/>'
    found = f'<ereg regexp="{check}" search_in="msg" check_it="true" assign_to="found"/>'
    return f'<recv response="{code}"{attributes}><action>{found}</action></recv><Reference variables="found"/>'


def answered(check: str = "") -> list[str]:
    """From the INVITE to the ACK."""
    return [invite(), recv(100, optional=True), recv(180, optional=True), recv(200, check=check), send("ACK", 1)]


def hang_up(cseq: int = 2) -> list[str]:
    return [send("BYE", cseq), recv(200)]


def respond(status: str) -> str:
    """An answer to the request received last."""
    lines = [f"SIP/2.0 {status}", *(f"[last_{name}:]" for name in ("Via", "From", "To", "Call-ID", "CSeq"))]
    return "<send><![CDATA[\n" + "\n".join([*lines, "Content-Length: 0", "", ""]) + "\n]]></send>"


def pause(milliseconds: int) -> str:
    return f'<pause milliseconds="{milliseconds}"/>'


def play(file: Path, seconds: float) -> list[str]:
    stream = f'<nop><action><exec rtp_stream="{file},-1,0,PCMU/8000"/></action></nop>'
    return [stream, pause(int(1000 * seconds))]


def press_five() -> list[str]:
    """A telephone sends either its sound or the key."""
    keys = f'<nop><action><exec rtp_stream="pause"/><exec play_pcap_audio="{DIGIT_PCAP}"/></action></nop>'
    return [keys, pause(500), '<nop><action><exec rtp_stream="resume"/></action></nop>']


def tone(folder: Path, seconds: float = 2.0) -> Path:
    """440 Hz as mu-law."""
    samples = (int(8000 * math.sin(2 * math.pi * 440 * n / 8000)) for n in range(int(8000 * seconds)))
    path = folder / "tone.ulaw"
    path.write_bytes(encode_ulaw(b"".join(struct.pack("<h", sample) for sample in samples)))
    return path


@dataclass
class SippRun:
    status: int
    said: str
    messages: str
    """Every message sent and received."""

    @property
    def ok(self) -> bool:
        return self.status == 0

    def __str__(self) -> str:
        return f"sipp ended with {self.status}\n{self.messages[-6000:]}\n{self.said[-1500:]}"


def run_sipp(
    folder: Path, address: str, steps: list[str], *options: str, number: str = "+12065550198", timeout: int = 30
) -> SippRun:
    """One scenario against host:port; `options` are sipp's."""
    folder.mkdir(exist_ok=True)
    scenario, log = folder / "scenario.xml", folder / "messages.log"
    head = '<?xml version="1.0" encoding="us-ascii"?>\n<scenario name="caller">\n'
    scenario.write_text(head + "\n".join(steps) + "\n</scenario>\n")
    port, media = free_ports(2)
    # Sound from a file and keys from a capture are to come from one port, like a telephone's.
    options = ("-mp", str(media), *options)
    command = ["sipp", address, "-sf", str(scenario), "-m", "1", "-i", "127.0.0.1", "-mi", "127.0.0.1", "-p", str(port)]
    command += ["-nostdin", "-timeout", str(timeout), "-s", number, "-trace_msg", "-message_file", str(log)]
    done = subprocess.run(
        [*command, *options], cwd=folder, capture_output=True, text=True, errors="replace", timeout=timeout + 15
    )
    messages = log.read_text(errors="replace") if log.exists() else ""
    return SippRun(done.returncode, done.stdout + done.stderr, messages)
