"""Workers elsewhere, and the certificate of one that listens here."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from gateway.doctor.addresses import is_loopback, split_url
from gateway.doctor.finding import Finding
from gateway.settings import Settings


def workers(settings: Settings) -> Iterator[Finding]:
    """Workers elsewhere: their addresses, whether they can be reached, and how they are protected."""
    if settings.workers.strip() == "local":
        return
    for url in filter(None, (part.strip() for part in settings.workers.split(","))):
        parts = split_url(url)
        host = parts.hostname if parts else None
        if parts is None or host is None or parts.scheme not in ("ws", "wss"):
            yield Finding("workers", False, f"{url} is not a ws:// or wss:// URL", "export CALLPLEX_WORKERS=local")
        elif not is_loopback(host) and parts.scheme == "ws":
            fix = f"export CALLPLEX_WORKERS={settings.workers.replace(url, 'wss' + url[2:])}"
            yield Finding("workers", False, f"{url} would carry calls in clear text", fix)
        elif not is_loopback(host) and not settings.worker_token.get_secret_value():
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
