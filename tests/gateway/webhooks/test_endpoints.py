"""webhooks.yaml: every mistake is told with file, line and field, and never replaces what is in force."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

from gateway.personas import check_personas, persona_paths
from gateway.webhooks.endpoint_model import HUBSPOT_URL, schema_text
from gateway.webhooks.endpoints import EndpointStore, WebhookInvalid, read_webhooks, shown_url
from gateway.webhooks.events import ENDED, FAILED, KINDS, OPT_IN, Event
from gateway.webhooks.signature import signing_key
from gateway.yaml_lines import Problem
from tests.gateway.webhooks.receiver import OTHER_SECRET, SECRET, settings

ROOT = Path(__file__).parents[3]

WHOLE = """
endpoints:
  - name: crm
    url: https://crm.example.com/hooks?token=private
    secrets: [CRM_SECRET, CRM_SECRET_OLD]
    events: [call.ended, call.failed]
    personas: [bank, clinic]
    headers:
      x-tenant: acme
      authorization: {secret: CRM_KEY, prefix: "Bearer "}
    concurrency: 3
    timeout_seconds: 5
    allow: [10.20.0.0/16, "fd00::/8"]
  - name: ticketing
    url: https://tickets.example.com/api
    oauth: {token_url: "https://login.example.com/token", client_id: us, client_secret: TICKETS_SECRET, scope: write}
    events: [call.ended]
    template: |
      {"title": {{ data.call_id | tojson }}}
  - name: hubspot
    kind: hubspot
    token: HUBSPOT_TOKEN
lookup:
  url: https://crm.example.com/callers
  secrets: [CRM_SECRET]
  budget_ms: 300
"""
SECRETS = {
    "CRM_SECRET": SECRET,
    "CRM_SECRET_OLD": OTHER_SECRET,
    "CRM_KEY": "k3y",
    "TICKETS_SECRET": "s3cret",
    "HUBSPOT_TOKEN": "pat-1",
}


def event(kind: str, persona: str = "bank") -> Event:
    return Event(kind, "call_1", persona, 0.0, {"number": 1})


def problems_of(folder: Path, text: str, secrets: dict[str, str] | None = None) -> list[str]:
    path = folder / "webhooks.yaml"
    path.write_text(text)
    problems: list[Problem] = []
    read_webhooks(path, problems, None if secrets is None else lambda name: secrets.get(name, ""))
    return [str(problem).removeprefix(f"{path}:") for problem in problems]


def test_a_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    endpoints = EndpointStore(settings(tmp_path, WHOLE)).current
    crm, ticketing, hubspot = endpoints.by_name.values()
    assert crm.keys == (signing_key(SECRET), signing_key(OTHER_SECRET))
    assert crm.headers == {"x-tenant": "acme", "authorization": "Bearer k3y"}
    assert (crm.concurrency, crm.timeout, len(crm.allowed)) == (3, 5.0, 2)
    assert ticketing.oauth is not None
    assert ticketing.oauth.client_secret == "s3cret"
    assert (hubspot.url, hubspot.headers, hubspot.events) == (
        HUBSPOT_URL,
        {"authorization": "Bearer pat-1"},
        frozenset({ENDED}),
    )
    assert endpoints.lookup is not None
    assert endpoints.lookup.budget == 0.3
    assert endpoints.for_event(event(ENDED)) == ["crm", "ticketing", "hubspot"]
    assert endpoints.for_event(event(ENDED, "school")) == ["ticketing", "hubspot"]
    assert endpoints.for_event(event(FAILED)) == ["crm"]
    shown = repr(endpoints)
    assert not [value for value in (*SECRETS.values(), "k3y") if value in shown]


def test_without_a_list_an_endpoint_gets_all_but_what_must_be_asked_for(tmp_path: Path) -> None:
    file = "endpoints: [{name: crm, url: 'https://crm.example.com', secrets: [CALLPLEX_WEBHOOK_SECRET]}]"
    endpoints = EndpointStore(settings(tmp_path, file)).current
    assert [kind for kind in KINDS if endpoints.for_event(event(kind))] == [k for k in KINDS if k not in OPT_IN]


def test_the_settings_make_one_more(tmp_path: Path) -> None:
    both = f"{SECRET} {OTHER_SECRET}"
    store = EndpointStore(settings(tmp_path, webhook_url="http://127.0.0.1:9/hook", webhook_secret=both))
    (default,) = store.current.by_name.values()
    assert (default.name, len(default.keys), default.events) == ("default", 2, frozenset({ENDED}))
    assert EndpointStore(settings(tmp_path)).current.by_name == {}


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("example.com/hook", "must be like https://example.com/hooks"),
        ("ftp://example.com", "must be like https://example.com/hooks"),
        ("https://", "must be like https://example.com/hooks"),
        ("http://[::1", "is not a URL"),
        ("http://10.0.0.1/", "has the address 10.0.0.1, which is not public; if that is meant, name it in CALLPLEX_"),
        ("http://169.254.169.254/latest", "not public"),
    ],
)
def test_a_setting_that_cannot_be_posted_to_is_refused(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(WebhookInvalid, match=f"CALLPLEX_WEBHOOK_URL .*{says}"):
        EndpointStore(settings(tmp_path, webhook_url=url))
    EndpointStore(settings(tmp_path, webhook_url="http://10.0.0.1/", webhook_allow="10.0.0.0/8, 192.168.0.1"))


def test_a_secret_that_cannot_sign_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(WebhookInvalid, match="CALLPLEX_WEBHOOK_SECRET must start with whsec_") as refused:
        EndpointStore(settings(tmp_path, webhook_url="https://example.com", webhook_secret="hunter2"))
    assert "hunter2" not in str(refused.value)


ONE = "endpoints:\n- name: crm\n  url: https://crm.example.com/\n  secrets: [CRM_SECRET]\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("endpoints: 5", "1: endpoints: must be a list"),
        ("endpoint: []", "1: endpoint: unknown field; known here: endpoints, lookup"),
        ("endpoints:\n- name: crm", "2: endpoints.1.secrets: needs one at least"),
        (ONE + "  colour: red", "5: endpoints.1.colour: unknown field; known here: url, secrets"),
        (ONE + ONE.removeprefix("endpoints:\n"), "5: endpoints.2.name: is given twice; endpoint 1 has it"),
        (ONE.replace("crm\n", "default\n"), "2: endpoints.1.name: is the endpoint of CALLPLEX_WEBHOOK_URL"),
        (ONE.replace("https", "http"), "3: endpoints.1.url: must be https"),
        (ONE.replace("https", "ftp"), "3: endpoints.1.url: must be like https://"),
        (ONE.replace("crm.ex", "a:b@crm.ex"), "3: endpoints.1.url: must not hold a user or password"),
        (ONE.replace("crm.example.com", "127.0.0.1:8081"), "3: endpoints.1.url: has the address 127.0.0.1, which is"),
        (ONE.replace("crm.example.com", "localhost"), "3: endpoints.1.url: has the address 127.0.0.1, which is"),
        (ONE.replace("crm.example.com", "[::ffff:a00:1]"), "3: endpoints.1.url: has the address ::ffff:a00:1"),
        (ONE.replace("CRM_SECRET", "whsec_abc"), "4: endpoints.1.secrets.1: must be the name of a variable"),
        (ONE + "  events: [call.begun]", "5: endpoints.1.events.1: there is no event call.begun; known: call.started"),
        (ONE + "  allow: [everything]", "5: endpoints.1.allow.1: must be an address or a network"),
        (ONE + "  headers: {'a b': c}", "5: endpoints.1.headers.a b: is no name of a header"),
        (ONE + "  headers: {Webhook-Id: c}", "5: endpoints.1.headers.Webhook-Id: is a header that Callplex sets"),
        (ONE + '  headers: {a: "b\\r\\nc"}', "5: endpoints.1.headers.a"),
        (ONE + "  concurrency: 0", "5: endpoints.1.concurrency: should be greater than or equal to 1"),
        (ONE + "  token: T", "5: endpoints.1.token: is only for `kind: hubspot`"),
        (ONE + "  kind: hubspot", "2: endpoints.1.token: is needed for `kind: hubspot`"),
        (
            ONE + "  oauth: {token_url: 'https://169.254.169.254/', client_id: a, client_secret: B}",
            "5: endpoints.1.oauth.token_url: has the address 169.254.169.254",
        ),
        (
            ONE + "  template: |\n    {\n      {{ data.nothing }}\n    }",
            "7: endpoints.1.template: fails for call.started",
        ),
        (ONE + "  template: '{{ nothing }}'", "5: endpoints.1.template: fails for call.started: 'nothing' is undef"),
        (ONE + "  template: |\n    {%\n", "6: endpoints.1.template: tag name expected"),
        ("lookup: {url: 'https://crm.example.com'}", "1: lookup.secrets: needs one at least"),
        ("lookup: {url: 'https://10.0.0.1', secrets: [A]}", "1: lookup.url: has the address 10.0.0.1"),
        ("lookup: {url: 'https://a.example', secrets: [A], budget_ms: 9000}", "1: lookup.budget_ms: should be less"),
    ],
)
def test_a_mistake_is_told_with_line_and_field(tmp_path: Path, text: str, says: str) -> None:
    assert any(problem.startswith(says) for problem in problems_of(tmp_path, text)), problems_of(tmp_path, text)


def test_variables_that_are_missing_or_unfit_are_told_when_they_are_needed(tmp_path: Path) -> None:
    headers = "  headers:\n    x-key: {secret: CRM_KEY}\n"
    assert problems_of(tmp_path, ONE + headers) == []
    assert problems_of(tmp_path, ONE + headers, {}) == [
        "6: endpoints.1.headers.x-key: CRM_KEY is not set: export it, or put it into .env",
        "4: endpoints.1.secrets.1: CRM_SECRET is not set: export it, or put it into .env",
    ]
    (header, secret) = problems_of(tmp_path, ONE + headers, {"CRM_SECRET": "hunter2", "CRM_KEY": "ö\n"})
    assert "the value of CRM_KEY cannot be a header" in header
    assert "the value of CRM_SECRET must start with whsec_" in secret
    assert "hunter2" not in secret


def test_a_file_that_is_wrong_replaces_nothing(tmp_path: Path) -> None:
    good = ONE.replace("CRM_SECRET", "CALLPLEX_WEBHOOK_SECRET")
    config = settings(tmp_path, good)
    store, file = EndpointStore(config), config.personas / "webhooks.yaml"
    before = store.current
    assert store.reload() == []
    file.write_text(good + "  colour: red")
    assert "unknown field" in store.reload()[0]
    assert store.reload() == []
    assert store.current is before
    file.write_text(good.replace("name: crm", "name: other"))
    assert store.reload() == []
    assert list(store.current.by_name) == ["other"]
    file.unlink()
    assert store.reload() == []
    assert store.current.by_name == {}


def test_it_is_no_persona_but_checked_with_them(tmp_path: Path) -> None:
    (tmp_path / "webhooks.yaml").write_text("endpoints: 5")
    assert persona_paths(tmp_path) == []
    assert any("endpoints: must be a list" in problem for problem in check_personas(tmp_path))
    (problem,) = check_personas(tmp_path / "webhooks.yaml")
    assert problem.endswith("webhooks.yaml:1: endpoints: must be a list")


def test_the_shipped_file_and_its_example_are_valid(tmp_path: Path) -> None:
    shipped = (ROOT / "personas" / "webhooks.yaml").read_text()
    assert problems_of(tmp_path, shipped) == []
    lines = shipped.split("endpoints: []\n")[1].splitlines()
    example = "endpoints:\n" + "\n".join(line.removeprefix("#") for line in lines)
    assert problems_of(tmp_path, example) == []
    endpoints = read_webhooks(tmp_path / "webhooks.yaml", [])
    assert list(endpoints.by_name) == ["crm", "hubspot"]
    assert endpoints.lookup is not None


def test_the_published_schema_is_the_models() -> None:
    text = (ROOT / "personas" / "webhooks.schema.json").read_text()
    assert text == schema_text()
    schema = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(YAML(typ="safe").load(WHOLE), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"endpoints": [{"name": "crm", "colour": "red"}]}, schema)


def test_what_people_see_of_an_address() -> None:
    assert shown_url("https://crm.example.com:8443/hooks?token=private") == "https://crm.example.com:8443"
