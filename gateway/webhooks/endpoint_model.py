"""The fields of `webhooks.yaml`, and what each may be.

Owns the file's JSON Schema too: `python -m gateway.webhooks.endpoint_model` prints it. Reads no files,
resolves no names and knows no secrets: a secret is named by the variable that holds it.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import httpx
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from gateway.persona_fields import Id
from gateway.persona_model import Strict
from gateway.webhooks.events import ENDED, KINDS, OPT_IN
from gateway.webhooks.guard import Network, literal_address, may_connect
from gateway.yaml_lines import FieldProblems, Loc

HUBSPOT_URL = "https://api.hubapi.com"
LONGEST_TEMPLATE = 20_000

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
_OURS = frozenset({"content-length", "host", "transfer-encoding", "connection", "content-type", "accept-encoding"})


def check_host(url: str, allowed: Sequence[Network], how: str = "`allow`") -> None:
    """Raises ValueError, in words that follow the field's name, unless `url` can be posted to."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("must be like https://example.com/hooks")
    address = literal_address(parsed.raw_host.decode())
    if address is not None and not may_connect(address, allowed):
        raise ValueError(f"has the address {address}, which is not public; if that is meant, name it in {how}")


def _url(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError("must be like https://example.com/hooks")
    if parsed.userinfo:
        raise ValueError("must not hold a user or password; name the variable that does under `headers`")
    return url


def _network(text: object) -> object:
    if not isinstance(text, str):
        return text
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("must be an address or a network, such as 127.0.0.1 or 10.20.0.0/16") from None


def _event(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"there is no event {kind}; known: {', '.join(KINDS)}")
    return kind


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,99}", name):
        # Not repeated here: it may be the secret itself.
        raise ValueError("must be the name of a variable that holds the secret, such as CRM_WEBHOOK_SECRET")
    return name


def _header_name(name: str) -> str:
    if not _TOKEN.fullmatch(name):
        raise ValueError("is no name of a header")
    if name.lower() in _OURS or name.lower().startswith("webhook-"):
        raise ValueError("is a header that Callplex sets itself")
    return name


def _header_value(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("must be plain ASCII")
    return value


Url = Annotated[str, StringConstraints(max_length=2_000), AfterValidator(_url)]
Variable = Annotated[str, AfterValidator(_variable), Field(json_schema_extra={"pattern": "^[A-Z][A-Z0-9_]{0,99}$"})]
EventKind = Annotated[str, AfterValidator(_event), Field(json_schema_extra={"enum": list(KINDS)})]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, StringConstraints(max_length=4_000), AfterValidator(_header_value)]
Allowed = Annotated[
    Network, BeforeValidator(_network), WithJsonSchema({"type": "string", "examples": ["10.20.0.0/16"]})
]


class SecretHeader(Strict):
    """A header whose value is a secret."""

    secret: Variable
    prefix: HeaderValue = Field("", description="Goes before it, such as `Bearer `.")


class OAuthSpec(Strict):
    """OAuth 2.0 client credentials: a token is fetched, kept, and renewed when it is refused."""

    token_url: Url
    client_id: Annotated[str, StringConstraints(min_length=1, max_length=400)]
    client_secret: Variable
    scope: str = ""
    audience: str = ""
    in_body: bool = Field(False, description="Send id and secret as form fields, not by HTTP Basic.")


class _Target(Strict):
    """What an endpoint and the look-up have in common."""

    url: Url
    secrets: tuple[Variable, ...] = Field(
        (), max_length=4, description="Variables with Standard Webhooks secrets; with several, each signs."
    )
    headers: dict[HeaderName, HeaderValue | SecretHeader] = Field({}, max_length=20)
    personas: tuple[Id, ...] = Field((), description="Only calls of these personas; empty: of all.")
    allow: tuple[Allowed, ...] = Field((), max_length=20, description="Addresses it may have that are not public.")

    def target_problems(self) -> Iterator[tuple[Loc, str]]:
        urls: list[tuple[Loc, str]] = [(("url",), self.url)]
        oauth = getattr(self, "oauth", None)
        if isinstance(oauth, OAuthSpec):
            urls.append((("oauth", "token_url"), oauth.token_url))
        for loc, url in urls:
            try:
                check_host(url, self.allow)
            except ValueError as error:
                yield loc, str(error)
            if url.lower().startswith("http:") and not self.allow:
                yield (
                    loc,
                    "must be https: what callers say would travel in the clear; http is only for what `allow` names",
                )


class EndpointSpec(_Target):
    """One endpoint: who is told, of what, and how."""

    name: Id
    kind: Literal["webhook", "hubspot"] = "webhook"
    url: Url = Field("", description="Where to post; for hubspot its own address, if it is not HubSpot's.")
    events: tuple[EventKind, ...] = Field((), description="Empty: all but call.transcript.updated.")
    token: Variable | Literal[""] = Field("", description="hubspot: the variable with the private app's access token.")
    oauth: OAuthSpec | None = None
    template: Annotated[str, StringConstraints(max_length=LONGEST_TEMPLATE)] = Field(
        "", description="Jinja; makes the body from type, version, timestamp, data and webhook_id."
    )
    content_type: HeaderValue = Field("application/json", description="Of what the template makes.")
    concurrency: int = Field(8, ge=1, le=64, description="Deliveries under way at once, of all gateways together.")
    timeout_seconds: float = Field(10.0, ge=1, le=20, description="For one attempt.")

    @model_validator(mode="before")
    @classmethod
    def _known_address(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("kind") == "hubspot":
            return {"url": HUBSPOT_URL, **given}
        return given

    @model_validator(mode="after")
    def _agrees(self) -> EndpointSpec:
        if problems := [*self.target_problems(), *self._disagreements()]:
            raise FieldProblems(problems)
        return self

    def wanted(self) -> tuple[str, ...]:
        """The kinds of events it gets."""
        if self.kind == "hubspot":
            return (ENDED,)
        return self.events or tuple(kind for kind in KINDS if kind not in OPT_IN)

    def _disagreements(self) -> Iterator[tuple[Loc, str]]:
        if self.name == "default":
            yield ("name",), "is the endpoint of CALLPLEX_WEBHOOK_URL; take another name"
        if self.oauth is not None and "authorization" in {name.lower() for name in self.headers}:
            yield ("headers",), "cannot hold authorization where there is `oauth`, which sets it"
        if self.kind == "webhook":
            if self.token:
                yield ("token",), "is only for `kind: hubspot`; put it under `headers`"
            if not self.secrets and not self.template:
                yield ("secrets",), "needs one at least, so that the endpoint can tell our events from forgeries"
            return
        if not self.token:
            yield ("token",), "is needed for `kind: hubspot`: the variable with the private app's access token"
        for name in ("secrets", "headers", "oauth", "template", "events"):
            if getattr(self, name):
                yield (name,), "is not for `kind: hubspot`, which has its own way"


class LookupSpec(_Target):
    """Asked for a call's {variables} before the agent answers."""

    budget_ms: int = Field(400, ge=50, le=2_000, description="After this the persona's defaults are used.")

    @model_validator(mode="after")
    def _agrees(self) -> LookupSpec:
        problems = list(self.target_problems())
        if not self.secrets and not self.headers:
            problems.append((("secrets",), "needs one at least, so that nobody else can ask about callers"))
        if problems:
            raise FieldProblems(problems)
        return self


class WebhooksSpec(Strict):
    """The file."""

    endpoints: tuple[EndpointSpec, ...] = Field((), max_length=50)
    lookup: LookupSpec | None = None

    @model_validator(mode="after")
    def _agrees(self) -> WebhooksSpec:
        seen: dict[str, int] = {}
        problems: list[tuple[Loc, str]] = []
        for place, endpoint in enumerate(self.endpoints):
            if endpoint.name in seen:
                problems.append(
                    (("endpoints", place, "name"), f"is given twice; endpoint {seen[endpoint.name]} has it")
                )
            seen.setdefault(endpoint.name, place + 1)
        if problems:
            raise FieldProblems(problems)
        return self


def schema_text() -> str:
    """The JSON Schema of webhooks.yaml, as personas/webhooks.schema.json holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **WebhooksSpec.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
