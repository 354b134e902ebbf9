"""Which requests are really Twilio's, and under which URL they reached us.

With an auth token a request must carry Twilio's signature over the public URL. Without one nothing
can be checked, so only this machine is served, and only directly: a tunnel or a reverse proxy ends
on loopback too, which is why its traces in the headers count as coming from outside. The gateway's
server must not rewrite addresses from headers itself (uvicorn: proxy_headers=False).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from gateway.settings import Settings
from gateway.twilio import signature

_HOST = re.compile(r"[A-Za-z0-9._-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?")
_FORWARDED = ("x-forwarded", "x-real-", "x-original-", "x-client-ip", "x-cluster-", "x-envoy-", "x-amz", "x-proxy")
_TUNNELS = ("cf-", "ngrok-", "fly-", "fastly-", "tailscale-", "true-client-ip", "x-tunnel-", "x-ms-tunnel")
_TRACES = (*_FORWARDED, *_TUNNELS)
_EXACT_TRACES = frozenset({"forwarded", "via"})
_HTTP = {"ws": "http", "wss": "https"}
_WS = {"http": "ws", "https": "wss"}

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Refused(Exception):
    """The request is not served; the message says why in one sentence. HTTP status 403."""


class Guard:
    """Decides about each request and each WebSocket handshake."""

    def __init__(self, settings: Settings) -> None:
        self._auth_token = settings.twilio_auth_token.get_secret_value()
        self._loopback_only = settings.loopback_only
        self._public_url = as_http(settings.public_url.strip().rstrip("/"))
        self._proxies = _networks(settings.trusted_proxies)

    def admit(self, connection: HTTPConnection, parameters: Iterable[tuple[str, str]] = ()) -> str:
        """The base URL (http or https) under which the carrier reaches us. Raises Refused.

        `parameters` are the form's, empty for a WebSocket handshake.
        """
        if self._loopback_only:
            _check_local(connection)
        base = self._public_url or self._base(connection)
        if self._auth_token:
            self._check_signature(connection, base, parameters)
        return base

    def _check_signature(self, connection: HTTPConnection, base: str, parameters: Iterable[tuple[str, str]]) -> None:
        given = connection.headers.getlist(signature.HEADER)
        if len(given) != 1:
            raise Refused("the request must carry one X-Twilio-Signature")
        url = as_ws(base) if connection.scope["type"] == "websocket" else base
        path = connection.scope.get("raw_path") or connection.scope["path"].encode()
        query = connection.scope["query_string"]
        url += path.decode("latin-1") + ("?" + query.decode("latin-1") if query else "")
        if not signature.verify(self._auth_token, url, parameters, given[0]):
            raise Refused(
                f"X-Twilio-Signature does not match {url.partition('?')[0]}: check the auth token and the URL"
            )

    def _base(self, connection: HTTPConnection) -> str:
        """The URL as the peer used it, or as a trusted proxy says the carrier did."""
        headers = connection.headers
        scheme: str = connection.scope["scheme"]
        host = headers.get("host", "")
        if self._proxies and self._trusted(connection):
            # The last entry is the one our own proxy wrote.
            scheme = _last(headers.get("x-forwarded-proto"), scheme).lower()
            host = _last(headers.get("x-forwarded-host"), host)
        scheme = _HTTP.get(scheme, scheme)
        if scheme not in _WS or not _HOST.fullmatch(host):
            raise Refused("the request names no usable host")
        return f"{scheme}://{host}"

    def _trusted(self, connection: HTTPConnection) -> bool:
        address = _address(connection)
        return address is not None and any(address in network for network in self._proxies)


def as_ws(url: str) -> str:
    """http -> ws, https -> wss, as the Stream verb and the handshake's signature need it."""
    scheme, separator, rest = url.partition("://")
    return _WS.get(scheme, scheme) + separator + rest


def _last(value: str | None, default: str) -> str:
    return default if value is None else value.rpartition(",")[2].strip()


def as_http(url: str) -> str:
    """ws -> http, wss -> https, as webhooks need it."""
    scheme, separator, rest = url.partition("://")
    return _HTTP.get(scheme, scheme) + separator + rest


def _check_local(connection: HTTPConnection) -> None:
    """Only this machine, directly, and not a web page that this machine's browser shows."""
    address = _address(connection)
    advice = "set CALLPLEX_TWILIO_AUTH_TOKEN to serve others"
    if address is None or not address.is_loopback:
        raise Refused(f"without an auth token only this machine is served; {advice}")
    for name in map(str.lower, connection.headers):
        if name in _EXACT_TRACES or name.startswith(_TRACES):
            raise Refused(f"without an auth token nothing forwarded is served ({name}); {advice}")
    if not _is_local_host(connection.headers.get("host", "")):
        raise Refused(f"without an auth token only requests to localhost are served; {advice}")
    origin = connection.headers.get("origin")
    if origin is not None and not _is_local_host(urlsplit(origin).netloc):
        raise Refused(f"without an auth token no other site's pages are served; {advice}")


def _is_local_host(host: str) -> bool:
    if not _HOST.fullmatch(host):
        return False
    name = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _address(connection: HTTPConnection) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The socket's other end; None when it has no address (a Unix socket)."""
    if connection.client is None:
        return None
    try:
        address = ipaddress.ip_address(connection.client.host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _networks(text: str) -> tuple[_Network, ...]:
    """A comma list of addresses and networks. Raises ValueError naming the one that is neither."""
    return tuple(ipaddress.ip_network(item.strip(), strict=False) for item in text.split(",") if item.strip())
