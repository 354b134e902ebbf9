"""Who is told of calls: `webhooks.yaml` in the persona folder, and the endpoint of the settings.

Owns the file's fields, which endpoint wants which event, and the set in force, which an invalid file
never replaces. Secrets are not in the file: it names the variables that hold them. The settings
CALLPLEX_WEBHOOK_URL and CALLPLEX_WEBHOOK_SECRET make one more endpoint, `default`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gateway.settings import Settings, named_secret
from gateway.webhooks.endpoint_model import EndpointSpec, LookupSpec, SecretHeader, WebhooksSpec, check_host
from gateway.webhooks.events import ENDED, KINDS, OPT_IN, Event
from gateway.webhooks.guard import LOOPBACK, Network
from gateway.webhooks.oauth import Credentials
from gateway.webhooks.signature import SecretInvalid, signing_key
from gateway.webhooks.template import BodyTemplate, TemplateInvalid
from gateway.yaml_lines import Document, Loc, Problem, read_document

WEBHOOKS_FILE = "webhooks.yaml"
DEFAULT = "default"
"""The name of the endpoint that the settings make."""

Secrets = Callable[[str], str]
"""The value of a named variable; empty if it is not set."""


class WebhookInvalid(Exception):
    """Endpoints cannot be used: one line for each problem, never with a secret in it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint, ready to be posted to."""

    name: str
    url: str
    keys: tuple[bytes, ...] = field(default=(), repr=False)
    """Of its secrets: each signs."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    kind: str = "webhook"
    events: frozenset[str] = frozenset(KINDS) - OPT_IN
    personas: frozenset[str] = frozenset()
    """Ids whose calls it wants; empty: everybody's."""
    template: BodyTemplate | None = None
    content_type: str = "application/json"
    oauth: Credentials | None = field(default=None, repr=False)
    concurrency: int = 8
    timeout: float = 10.0
    """Seconds for one attempt."""
    allowed: tuple[Network, ...] = ()

    def wants(self, event: Event) -> bool:
        """Whether it is told of an event."""
        return event.kind in self.events and (not self.personas or event.persona in self.personas)


@dataclass(frozen=True, slots=True)
class Lookup:
    """Whom to ask about a caller before the call."""

    endpoint: Endpoint
    budget: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All endpoints in force, by name, and the look-up."""

    by_name: Mapping[str, Endpoint] = field(default_factory=dict)
    lookup: Lookup | None = None

    def for_event(self, event: Event) -> list[str]:
        """The names of those that are told of an event."""
        return [name for name, endpoint in self.by_name.items() if endpoint.wants(event)]


class EndpointStore:
    """The endpoints in force. A reload that finds a problem changes nothing."""

    def __init__(self, settings: Settings) -> None:
        """Raises WebhookInvalid: at the start there is no valid set to keep."""
        self._settings = settings
        self._path = settings.personas / WEBHOOKS_FILE
        self._seen = _stamp(self._path)
        problems: list[Problem] = []
        self.current = load_endpoints(settings, problems)
        if problems:
            raise WebhookInvalid([str(problem) for problem in problems])

    def reload(self) -> list[str]:
        """Read the file again if it has changed. Returns what is wrong; the set changes only if that is nothing."""
        stamp = _stamp(self._path)
        if stamp == self._seen:
            return []
        self._seen = stamp
        problems: list[Problem] = []
        try:
            endpoints = load_endpoints(self._settings, problems)
        except WebhookInvalid as error:
            return error.problems
        if not problems:
            self.current = endpoints
        return [str(problem) for problem in problems]


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)


def load_endpoints(settings: Settings, problems: list[Problem]) -> Endpoints:
    """Settings and file together; what is wrong with the file is added to `problems`.

    Raises WebhookInvalid if the settings' own endpoint cannot be used.
    """
    found: dict[str, Endpoint] = {}
    if settings.webhook_url:
        found[DEFAULT] = default_endpoint(settings)
    path, lookup = settings.personas / WEBHOOKS_FILE, None
    if path.exists():
        built = read_webhooks(path, problems, lambda name: named_secret(settings, name))
        found |= built.by_name
        lookup = built.lookup
    return Endpoints(found, lookup)


def default_endpoint(settings: Settings) -> Endpoint:
    """The endpoint of CALLPLEX_WEBHOOK_URL, which gets `call.ended` of every call.

    Whoever sets it starts the gateway, and so may name this very machine. Raises WebhookInvalid.
    """
    url = settings.webhook_url
    try:
        allowed = (*LOOPBACK, *networks(settings.webhook_allow))
        check_host(url, allowed, "CALLPLEX_WEBHOOK_ALLOW")
    except ValueError as error:
        raise WebhookInvalid([f"CALLPLEX_WEBHOOK_URL {error}"]) from None
    secrets = settings.webhook_secret.get_secret_value().split() or [""]
    try:
        keys = tuple(signing_key(secret) for secret in secrets)
    except SecretInvalid as error:
        raise WebhookInvalid([f"CALLPLEX_WEBHOOK_SECRET {error}"]) from None
    return Endpoint(DEFAULT, url, keys, events=frozenset({ENDED}), allowed=allowed)


def networks(comma_list: str) -> tuple[Network, ...]:
    """Addresses and networks, as a setting names them. Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in comma_list.split(",") if part.strip())


def read_webhooks(path: Path, problems: list[Problem], secrets: Secrets | None = None) -> Endpoints:
    """The endpoints of a file; what is wrong is added to `problems`.

    Without `secrets` only the file itself is checked, not whether the variables it names are set.
    """
    document = read_document(path, problems)
    spec = document.build(WebhooksSpec, problems) if document else None
    if document is None or spec is None:
        return Endpoints()
    reader = _Reader(document, problems, secrets)
    found = [reader.endpoint(one, ("endpoints", place)) for place, one in enumerate(spec.endpoints)]
    lookup = None
    if spec.lookup is not None:
        lookup = reader.lookup(spec.lookup, ("lookup",))
    return Endpoints({one.name: one for one in found}, lookup)


class _Reader:
    """Turns what a file says into endpoints, noting what is wrong where."""

    def __init__(self, document: Document, problems: list[Problem], secrets: Secrets | None) -> None:
        self._document = document
        self._problems = problems
        self._secrets = secrets

    def endpoint(self, spec: EndpointSpec, loc: Loc) -> Endpoint:
        headers = self._headers(spec.headers, loc)
        if spec.token:
            headers["authorization"] = f"Bearer {self._secret(spec.token, (*loc, 'token'))}"
        oauth = None
        if spec.oauth is not None:
            given = spec.oauth
            oauth = Credentials(
                given.token_url,
                given.client_id,
                self._secret(given.client_secret, (*loc, "oauth", "client_secret")),
                given.scope,
                given.audience,
                given.in_body,
            )
        return Endpoint(
            name=spec.name,
            url=spec.url,
            keys=self._keys(spec.secrets, loc),
            headers=headers,
            kind=spec.kind,
            events=frozenset(spec.wanted()),
            personas=frozenset(spec.personas),
            template=self._template(spec, loc),
            content_type=spec.content_type,
            oauth=oauth,
            concurrency=spec.concurrency,
            timeout=spec.timeout_seconds,
            allowed=spec.allow,
        )

    def lookup(self, spec: LookupSpec, loc: Loc) -> Lookup:
        endpoint = Endpoint(
            name="lookup",
            url=spec.url,
            keys=self._keys(spec.secrets, loc),
            headers=self._headers(spec.headers, loc),
            events=frozenset(),
            personas=frozenset(spec.personas),
            allowed=spec.allow,
        )
        return Lookup(endpoint, spec.budget_ms / 1000)

    def _headers(self, given: Mapping[str, str | SecretHeader], loc: Loc) -> dict[str, str]:
        headers = {}
        for name, value in given.items():
            if isinstance(value, str):
                headers[name] = value
                continue
            where = (*loc, "headers", name)
            headers[name] = value.prefix + self._secret(value.secret, where)
            if not headers[name].isprintable() or not headers[name].isascii():
                self._problem(where, f"the value of {value.secret} cannot be a header: it is not plain ASCII")
        return headers

    def _keys(self, names: tuple[str, ...], loc: Loc) -> tuple[bytes, ...]:
        keys = []
        for place, name in enumerate(names):
            where = (*loc, "secrets", place)
            secret = self._secret(name, where)
            if not secret:
                continue
            try:
                keys.append(signing_key(secret))
            except SecretInvalid as error:
                self._problem(where, f"the value of {name} {error}")
        return tuple(keys)

    def _secret(self, name: str, loc: Loc) -> str:
        value = self._secrets(name) if self._secrets is not None else ""
        if not value and self._secrets is not None:
            self._problem(loc, f"{name} is not set: export it, or put it into .env")
        return value

    def _template(self, spec: EndpointSpec, loc: Loc) -> BodyTemplate | None:
        if not spec.template:
            return None
        try:
            template = BodyTemplate(spec.template, spec.content_type)
            template.check(spec.wanted())
        except TemplateInvalid as error:
            where = self._document.problem((*loc, "template"), str(error))
            # A template of several lines is a block, which begins on the line after its name.
            line = where.line + (error.line if "\n" in spec.template else 0)
            self._problems.append(Problem(where.path, line, where.field, where.text))
            return None
        return template

    def _problem(self, loc: Loc, text: str) -> None:
        self._problems.append(self._document.problem(loc, text))


def shown_url(url: str) -> str:
    """An endpoint's address for people to see: what follows the host may hold a token."""
    parsed = httpx.URL(url)
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.scheme}://{parsed.host}{port}"
