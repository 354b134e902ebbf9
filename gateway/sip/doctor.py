"""What `callplex doctor` says about SIP: ports, certificate, and whether trunks know us.

Looks only: it binds what `serve` would bind and lets go of it. A trunk that we register with is asked, password and
all, to forget an address that it never knew; the others get an OPTIONS. A gateway that runs meanwhile keeps its calls.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.rtp.ports import PortRange, PortsExhausted
from gateway.sip.binding import SipUnavailable, bound_socket, refuse_open_door, server_tls
from gateway.sip.endpoint import SipEndpoint
from gateway.sip.errors import SipError
from gateway.sip.events import Event, Probed, RegistrationChanged
from gateway.sip.settings import ListenAddress, SipSettings, TrunkSettings, port_range
from gateway.sip.switchboard import trunk_from
from gateway.sip.timers import Timing
from gateway.sip.uri import bracketed, parse_uri

PROBE_SECONDS = 3.0
SOON = 14 * 86_400
"""Seconds before a certificate's end at which it is mentioned."""
_PORTS_A_CALL = 2


@dataclass(frozen=True, slots=True)
class SipFinding:
    """What one check found; `fix` is a command."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False


def examine_sip(settings: SipSettings, max_calls: int, chosen: bool) -> Iterator[SipFinding]:
    """`chosen`: SIP was configured; else a port in use is no reason to complain."""
    if not settings.addresses:
        yield SipFinding("sip", True, "off: CALLPLEX_SIP_LISTEN is empty")
        return
    try:
        refuse_open_door(settings)
    except SipUnavailable as error:
        yield SipFinding("sip", False, str(error), "export CALLPLEX_SIP_ALLOW=192.0.2.0/24    # the peers' addresses")
        return
    yield _ports(settings, chosen)
    yield _sound(settings, max_calls)
    if any(address.transport == "tls" for address in settings.addresses):
        yield _certificate(settings)
    for trunk in settings.trunks:
        yield _trunk(settings, trunk)


def _ports(settings: SipSettings, chosen: bool) -> SipFinding:
    for address in settings.addresses:
        where = f"{address.transport} {bracketed(address.host)}:{address.port}"
        error = _bind(address)
        if error is None:
            continue
        fix = f"ss -lnp 'sport = :{address.port}'    # stop what it shows, or: export CALLPLEX_SIP_LISTEN=..."
        if error.errno != errno.EADDRINUSE:
            return SipFinding("sip", False, f"cannot listen on {where}: {error.strerror or error}", fix)
        if not chosen:
            return SipFinding("sip", True, f"{where} is in use; without a setting of its own, serve does without SIP")
        return SipFinding("sip", False, f"{where} is in use: by callplex itself, if it is running", fix, warning=True)
    return SipFinding("sip", True, f"{settings.listen} is free")


def _bind(address: ListenAddress) -> OSError | None:
    """Why we could not listen there."""
    try:
        with bound_socket(address) as probe:
            if probe.type == socket.SOCK_STREAM:
                probe.listen(1)
    except OSError as error:
        return error
    return None


def _sound(settings: SipSettings, max_calls: int) -> SipFinding:
    low, high = port_range(settings.rtp_ports)
    ports = PortRange(settings.sound_host, low, high)
    if len(ports) < max_calls:
        detail = f"{settings.rtp_ports} has room for {len(ports)} calls, CALLPLEX_MAX_CALLS is {max_calls}"
        fix = f"export CALLPLEX_SIP_RTP_PORTS={low}-{min(65_535, low + _PORTS_A_CALL * max_calls - 1)}"
        return SipFinding("sip_rtp", False, detail, fix, warning=True)
    try:
        for one in ports.bind():
            one.close()
    except (PortsExhausted, OSError) as error:
        return SipFinding("sip_rtp", False, str(error), "export CALLPLEX_SIP_RTP_PORTS=20000-29999")
    return SipFinding("sip_rtp", True, f"UDP ports {settings.rtp_ports}: {len(ports)} calls")


def _certificate(settings: SipSettings) -> SipFinding:
    fix = f"openssl x509 -noout -subject -enddate -in {settings.tls_cert}"
    try:
        server_tls(settings)
        ends = _end_of(str(settings.tls_cert))
    except (SipUnavailable, OSError, ValueError) as error:
        return SipFinding("sip_tls", False, str(error), fix)
    left = ends - time.time()
    if left < SOON:
        detail = f"{settings.tls_cert} {'has expired' if left < 0 else f'expires in {left / 86_400:.0f} days'}"
        return SipFinding("sip_tls", False, detail, fix, warning=left >= 0)
    return SipFinding("sip_tls", True, f"{settings.tls_cert}, {left / 86_400:.0f} days left")


def _end_of(path: str) -> float:
    """Unix time at which the first certificate of a chain ends. Raises OSError or ValueError."""
    from cryptography import x509

    with open(path, "rb") as file:
        return x509.load_pem_x509_certificate(file.read()).not_valid_after_utc.timestamp()


def _trunk(settings: SipSettings, trunk: TrunkSettings) -> SipFinding:
    target = trunk.outbound_proxy or trunk.registrar
    try:
        code, reason = asyncio.run(_ask(settings, trunk))
    except (SipUnavailable, SipError, OSError, ssl.SSLError) as error:
        why, warning = str(error), True
    else:
        why, warning = _complaint(trunk, code, reason)
        if not why:
            known = f"lets {trunk.user or 'us'} register" if trunk.register_here else f"answers ({code})"
            return SipFinding("sip_trunk", True, f"{trunk.name} at {target} {known}")
    fix = f"getent hosts {trunk.host}    # and look at the firewall"
    if not warning:
        fix = "callplex config    # after changing that trunk's user and password in [[sip.trunks]] of callplex.toml"
    return SipFinding("sip_trunk", False, f"{trunk.name} at {target}: {why}", fix, warning=warning)


def _complaint(trunk: TrunkSettings, code: int, reason: str) -> tuple[str, bool]:
    """What an answer says against a trunk, "" if nothing, and whether it may mend by itself."""
    asked = "REGISTER" if trunk.register_here else "OPTIONS"
    if code in (0, 408):
        return f"no answer to {asked}", True
    if code == 503:
        return "cannot be reached, or is out of service (503)", True
    if not trunk.register_here or code < 300:
        return "", False
    user = trunk.auth_user or trunk.user
    if code in (401, 403, 407):
        if not trunk.password.get_secret_value():
            return f"wants a password ({code}), and none is set", False
        return f"the password is wrong, or not {user!r}'s ({code} {reason})", False
    if code == 404:
        return f"does not know the user {trunk.user!r} ({code} {reason})", False
    return f"does not let us register: {code} {reason}", False


async def _ask(settings: SipSettings, trunk: TrunkSettings) -> tuple[int, str]:
    """The answer to a REGISTER that changes nothing, or to an OPTIONS, from a port of its own; 0 when none came."""
    addr = trunk_from(trunk).addr
    # As serve does: from where its transport is listened on, or else from the first listener.
    own = settings.addresses
    host = next((one.host for one in own if one.transport == addr.transport), own[0].host)
    values = {"listen": f"{bracketed(host)}:0", "allow": "127.0.0.1", "tls_ca": settings.tls_ca}
    values["public_address"] = settings.public_address
    endpoint = SipEndpoint(SipSettings.model_validate(values), timing=Timing(t1=0.25))
    answered: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    def take(event: Event) -> None:
        if isinstance(event, (Probed, RegistrationChanged)) and not answered.done():
            answered.set_result((event.code, event.reason if isinstance(event, RegistrationChanged) else ""))

    endpoint.on_event = take
    await endpoint.open()
    try:
        await endpoint.resolve_all(addr.host)
        if trunk.register_here:
            endpoint.core.check_registration(trunk_from(trunk), endpoint.now())
        else:
            endpoint.core.probe(parse_uri(trunk.outbound_proxy or trunk.registrar), endpoint.now())
        endpoint.pump()
        done, _ = await asyncio.wait([answered], timeout=PROBE_SECONDS)
        return answered.result() if done else (0, "")
    finally:
        await endpoint.close()
