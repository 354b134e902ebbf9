"""Templates: what they may see and do, and that their mistakes are found with their line."""

from __future__ import annotations

import orjson
import pytest

from gateway.webhooks.events import ENDED, KINDS, STARTED, TEST, sample
from gateway.webhooks.template import BodyTemplate, TemplateInvalid

CRM = """{
  "subject": {{ ("Call from " ~ data.from) | tojson }},
  "external_id": {{ webhook_id | tojson }},
  "notes": {{ data.utterances | transcript | tojson }},
  "seconds": {{ data.utterances[-1].end }},
  "when": {{ timestamp | tojson }}
}"""


def test_a_body_for_a_crm() -> None:
    body = orjson.loads(BodyTemplate(CRM).render(sample(ENDED, 0.0).body(), "msg_7"))
    assert body["subject"] == "Call from +15550199"
    assert body["external_id"] == "msg_7"
    assert body["notes"].splitlines()[1] == 'Caller: What are your "hours"?'
    assert body["seconds"] == 6.0


@pytest.mark.parametrize(
    ("source", "line", "says"),
    [
        ("{\n{% if %}", 2, "Expected an expression"),
        ("{{ data.call_id", 1, "unexpected end of template"),
        ('{\n"a": {{ data.nothing | tojson }}}', 2, "has no attribute 'nothing'"),
        ("{{ nothing }}", 1, "'nothing' is undefined"),
        ('{"a":\n{{ data.persona }}}', 2, "makes no valid JSON"),
        ("\n\n{{ data.call_id + 1 }}", 3, "can only concatenate str"),
        ("{{ 1 / 0 }}", 1, "division by zero"),
        ("{{ data.call_id | nofilter }}", 1, "No filter named 'nofilter'"),
        ("{{ ''.__class__.__mro__ }}", 1, "unsafe"),
        ("{{ data.update({}) }}", 1, "unsafe"),
        ("{{ 9 ** 9 ** 9 }}", 1, "not allowed"),
        ("{% for n in range(9) %}{% endfor %}", 1, "'range' is undefined"),
        ("{% include 'x' %}", 1, "no loader"),
    ],
)
def test_a_mistake_is_found_with_its_line(source: str, line: int, says: str) -> None:
    with pytest.raises(TemplateInvalid, match=says) as found:
        BodyTemplate(source).check([ENDED])
    assert found.value.line == line


def test_a_template_must_do_for_every_event_its_endpoint_gets() -> None:
    template = BodyTemplate("{{ data.end_reason | tojson }}")
    template.check([ENDED])
    with pytest.raises(TemplateInvalid, match=r"fails for call\.started"):
        template.check([ENDED, STARTED])
    BodyTemplate("{{ data | tojson }}").check([*KINDS, TEST])


def test_what_is_no_json_is_left_as_it_is() -> None:
    template = BodyTemplate("call={{ data.call_id | urlencode }}", "application/x-www-form-urlencoded")
    assert template.render(sample(ENDED, 0.0).body(), "msg_7") == "call=call_sample"
