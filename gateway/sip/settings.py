"""What can be set of SIP: `[sip]` in callplex.toml, or `CALLPLEX_SIP_*`.

Owns the fields and what makes them valid together. Reads nothing itself: `gateway.settings` does.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, NamedTuple, cast

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from gateway.sip.errors import SipError
from gateway.sip.uri import TRANSPORTS, Transport, address_of, bare_host, parse_uri

_HEADER = re.compile(r"[A-Za-z0-9-]{1,64}\Z")


class ListenAddress(NamedTuple):
    """Where one SIP socket is bound."""

    host: str
    port: int
    transport: Transport


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class TrunkSettings(_Strict):
    """A provider or PBX we register with, and place calls through."""

    name: str = Field(description="how it is called in logs")
    registrar: str = Field(description="its address, `sip:host:port;transport=udp`")
    user: str = Field("", description="our user part there")
    password: SecretStr = SecretStr("")
    auth_user: str = Field("", description="the name to authenticate with, if it is another than `user`")
    outbound_proxy: str = Field("", description="where requests go instead of the registrar's address")
    expires: int = Field(3600, ge=60, le=86_400, description="seconds a registration is asked to last")
    register_here: bool = Field(True, alias="register", description="false: it is told our address itself")

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, populate_by_name=True)

    @field_validator("registrar", "outbound_proxy")
    @classmethod
    def _sip_address(cls, value: str) -> str:
        if value:
            try:
                address_of(parse_uri(value))
            except SipError as error:
                raise ValueError(f"{value!r} is not an address such as sip:sip.example.com:5060 ({error})") from None
        return value

    @property
    def host(self) -> str:
        """The host of its registrar."""
        return bare_host(parse_uri(self.registrar).host)


class SipSettings(_Strict):
    """The SIP endpoint. Nothing listens when `listen` is empty."""

    listen: str = Field("127.0.0.1:5060", description="comma list of [udp:|tcp:|tls:]host:port; empty: no SIP")
    public_address: str = Field("", description="address by which peers reach us, when it is not that of `listen`")
    allow: str = Field("", description="comma list of peers' addresses or networks that need no password")
    users: dict[str, SecretStr] = Field({}, description="who may call with a password: user to password")
    realm: str = Field("callplex", min_length=1, description="realm those passwords belong to")
    tls_cert: Path | None = Field(None, description="certificate chain, PEM")
    tls_key: Path | None = Field(None, description="private key, PEM")
    tls_ca: Path | None = Field(None, description="authorities that trunks over TLS are checked against, PEM")
    srtp: Literal["offered", "required"] = Field(
        "offered", description="whether calls must be encrypted; one that is stays so"
    )
    rtp_ports: str = Field("10000-19999", description="UDP ports for sound, two for each call")
    number_from: str = Field("request-uri", description="who was dialled: request-uri, to, or a header field's name")
    max_calls_per_peer: int = Field(500, ge=1, description="calls one address may have at once")
    requests_per_second: float = Field(100.0, gt=0, description="messages a second that one address may send")
    ring_seconds: float = Field(0.0, ge=0, le=60, description="how long a call rings before it is answered")
    dial: str = Field("", description="where transfers go: `sip:{number}@host`; else the trunk or peer of the call")
    trunks: tuple[TrunkSettings, ...] = ()

    @field_validator("listen")
    @classmethod
    def _listeners(cls, value: str) -> str:
        parse_listen(value)
        return value

    @field_validator("rtp_ports")
    @classmethod
    def _range(cls, value: str) -> str:
        low, high = port_range(value)
        if not 1024 <= low < high <= 65_535:
            raise ValueError(f"{value!r} is not a range of UDP ports, for example 10000-19999")
        return value

    @field_validator("allow")
    @classmethod
    def _networks(cls, value: str) -> str:
        for item in split_list(value):
            try:
                ipaddress.ip_network(item, strict=False)
            except ValueError:
                raise ValueError(f"{item!r} is not an address or network, for example 192.0.2.0/24") from None
        return value

    @field_validator("dial")
    @classmethod
    def _pattern(cls, value: str) -> str:
        if value:
            try:
                address_of(parse_uri(value.replace("{number}", "+12065550100")))
            except SipError as error:
                raise ValueError(f"{value!r} is not like sip:{{number}}@sip.example.com ({error})") from None
            if "{number}" not in value:
                raise ValueError(f"{value!r} lacks {{number}}, in whose place the number is put")
        return value

    @field_validator("number_from")
    @classmethod
    def _field_name(cls, value: str) -> str:
        if not _HEADER.match(value):
            raise ValueError(f"{value!r} is not request-uri, to, or the name of a header field")
        return value.lower()

    @field_validator("public_address")
    @classmethod
    def _address(cls, value: str) -> str:
        if value:
            try:
                ipaddress.ip_address(value)
            except ValueError:
                raise ValueError(f"{value!r} is not an IP address") from None
        return value

    @model_validator(mode="after")
    def _agrees(self) -> SipSettings:
        if any(one.transport == "tls" for one in self.addresses) and not (self.tls_cert and self.tls_key):
            raise ValueError("listening with tls needs tls_cert and tls_key")
        names = [trunk.name for trunk in self.trunks]
        if len(set(names)) != len(names):
            raise ValueError("two trunks have the same name")
        return self

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """What `listen` says."""
        return parse_listen(self.listen)

    @property
    def sound_host(self) -> str:
        """Where sound is taken: the address that is listened on; all of this machine's when those are several."""
        hosts = {one.host for one in self.addresses} or {"127.0.0.1"}
        if len(hosts) == 1:
            return hosts.pop()
        return "::" if any(":" in host for host in hosts) else "0.0.0.0"

    @property
    def networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """What `allow` says."""
        return tuple(ipaddress.ip_network(item, strict=False) for item in split_list(self.allow))


def split_list(value: str) -> list[str]:
    """The items of a comma list."""
    return [item for part in value.split(",") if (item := part.strip())]


def port_range(value: str) -> tuple[int, int]:
    """`10000-19999` -> both ends. Raises ValueError with a sentence."""
    low, _, high = value.partition("-")
    if not (low.strip().isdecimal() and high.strip().isdecimal()):
        raise ValueError(f"{value!r} is not a range of UDP ports, for example 10000-19999")
    return int(low), int(high)


def parse_listen(value: str) -> tuple[ListenAddress, ...]:
    """`127.0.0.1:5060, tls:0.0.0.0:5061`: without a transport, UDP and TCP. Raises ValueError with a sentence."""
    found: list[ListenAddress] = []
    for item in split_list(value):
        transport, colon, rest = item.partition(":")
        named = colon and transport in TRANSPORTS
        host, separator, port = (rest if named else item).rpartition(":")
        try:
            ipaddress.ip_address(bare_host(host))
        except ValueError:
            separator = ""
        if not separator or not port.isdecimal() or int(port) > 65_535:
            raise ValueError(f"{item!r} is not an address and port, for example 127.0.0.1:5060 or tls:[::1]:5061")
        kinds = (cast("Transport", transport),) if named else ("udp", "tcp")
        found += [ListenAddress(bare_host(host), int(port), cast("Transport", kind)) for kind in kinds]
    kinds_used = [one.transport for one in found]
    if len(set(kinds_used)) != len(kinds_used):
        raise ValueError("each transport can listen on one address only; 0.0.0.0 or [::] stands for all")
    return tuple(found)
