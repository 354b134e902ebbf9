"""kamailio as a trunk: it asks for a password, keeps registrations, and relays calls to who registered."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.bench.ports import free_ports

needs_kamailio = pytest.mark.skipif(
    shutil.which("kamailio") is None, reason="kamailio is not installed: apt-get install kamailio"
)
WAIT = 20.0
USER, PASSWORD = "callplex", "correct horse"

CONFIG = """\
debug=1
log_stderror=yes
children=1
tcp_children=1
auto_aliases=no
listen=udp:127.0.0.1:{port}
listen=tcp:127.0.0.1:{port}
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "maxfwd.so"
loadmodule "textops.so"
loadmodule "siputils.so"
loadmodule "xlog.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
loadmodule "auth.so"
modparam("usrloc", "db_mode", 0)
modparam("registrar", "max_expires", {expires})
modparam("registrar", "min_expires", 1)
modparam("rr", "append_fromtag", 0)

request_route {{
    if (is_method("REGISTER")) {{
        if (!pv_www_authenticate("127.0.0.1", "{password}", "0")) {{
            www_challenge("127.0.0.1", "1");
            exit;
        }}
        save("location");
        xlog("L_NOTICE", "saved $tU $hdr(Expires)\\n");
        exit;
    }}
    if (has_totag()) {{
        if (loose_route()) {{ t_relay(); exit; }}
        if (is_method("ACK")) {{ if (t_check_trans()) t_relay(); exit; }}
        sl_send_reply("404", "Not here");
        exit;
    }}
    if (is_method("CANCEL")) {{ if (t_check_trans()) t_relay(); exit; }}
    record_route();
    $rU = "{user}";
    $rd = "127.0.0.1";
    if (!lookup("location")) {{ sl_send_reply("404", "Nobody registered"); exit; }}
    xlog("L_NOTICE", "relayed to $ru\\n");
    t_relay();
}}
"""


@dataclass
class Trunk:
    address: str
    _log: Path

    def wait_for(self, line: str, count: int = 1) -> None:
        """Until it has logged a line so often."""
        until = time.monotonic() + WAIT
        while self.log.count(line) < count:
            if time.monotonic() > until:
                raise AssertionError(f"kamailio never said {line!r} {count} times:\n{self.log}")
            time.sleep(0.02)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")


@contextmanager
def trunk(folder: Path, expires: int = 3600) -> Iterator[Trunk]:
    folder.mkdir(parents=True)
    (port,) = free_ports(1)
    config, log = folder / "kamailio.cfg", folder / "kamailio.log"
    config.write_text(CONFIG.format(port=port, password=PASSWORD, user=USER, expires=expires))
    command = ["kamailio", "-f", str(config), "-DD", "-E", "-m", "64", "-M", "8", "-Y", str(folder), "-n", "1"]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield Trunk(f"127.0.0.1:{port}", log)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
