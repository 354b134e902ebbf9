"""A worker's URL, and whether it can be used. Pure."""

from __future__ import annotations

import ipaddress

from websockets.exceptions import InvalidURI
from websockets.uri import WebSocketURI, parse_uri

from model import wire


def parse(url: str, token: str) -> WebSocketURI:
    """The protocol's own path where it names none. Raises ValueError, with a sentence, if it cannot be used."""
    try:
        uri = parse_uri(url)
    except (InvalidURI, ValueError) as error:
        raise ValueError(f"{url!r} is not a worker's URL, for example ws://127.0.0.1:8090{wire.PATH}") from error
    if token and not uri.secure and not _is_loopback(uri.host):
        raise ValueError(f"{url} would carry the worker's token unencrypted; use wss://")
    if uri.path in ("", "/"):
        return WebSocketURI(uri.secure, uri.host, uri.port, wire.PATH, uri.query)
    return uri


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
