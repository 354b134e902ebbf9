"""Who calls us and who is told: carriers, SIP trunks, webhooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict

import httpx

from gateway.doctor.addresses import is_loopback, split_url
from gateway.doctor.finding import Finding
from gateway.settings import Settings
from gateway.sip.doctor import examine_sip
from gateway.webhooks.endpoints import WebhookInvalid, load_endpoints, shown_url
from gateway.yaml_lines import Problem


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
    parts = split_url(url)
    if parts is None or not parts.hostname or parts.scheme not in ("http", "https"):
        detail, fix = f"{url} is no URL", "export CALLPLEX_PUBLIC_URL=https://calls.example.com"
    elif parts.scheme != "https" and not is_loopback(parts.hostname):
        detail, fix = (
            f"{url} must be https: Twilio streams over wss only",
            f"export CALLPLEX_PUBLIC_URL=https://{parts.netloc}",
        )
    elif parts.path not in ("", "/") or parts.query or parts.fragment:
        detail, fix = f"{url} must not have a path", f"export CALLPLEX_PUBLIC_URL={parts.scheme}://{parts.netloc}"
    else:
        return Finding("public_url", True, url)
    return Finding("public_url", False, detail, fix)


def sip(settings: Settings) -> Iterator[Finding]:
    for found in examine_sip(settings.sip, settings.max_calls, "listen" in settings.sip.model_fields_set):
        yield Finding(**asdict(found))


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
        clear = endpoint.url.lower().startswith("http:") and not is_loopback(_host(endpoint.url))
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
