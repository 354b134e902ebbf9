"""Jinja templates that turn an event into the body a CRM's own API expects.

Owns the sandbox and what a template may see: `type`, `version`, `timestamp`, `data` and `webhook_id`.
A template is tried with made-up events when its file is loaded, so that a mistake is found then, with
its line, and not when the first call ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2
import orjson
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gateway.webhooks import events

JSON = "application/json"


class TemplateInvalid(Exception):
    """A template cannot be used for an event; carries its own line, from 1, and what is wrong there."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without the operator that makes a small template never end."""

    intercepted_binops = frozenset(["**"])

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        raise SecurityError(f"the operator {operator} is not allowed")


def transcript_text(utterances: Iterable[Mapping[str, Any]]) -> str:
    """The filter `transcript`: who said what, a line each."""
    return "\n".join(f"{str(one['speaker']).capitalize()}: {one['text']}" for one in utterances)


def _dumps(value: object, **options: Any) -> str:
    """JSON of a value; one that is not there is named, as everywhere else in a template."""

    def refuse(inner: object) -> str:
        if isinstance(inner, jinja2.Undefined):
            return str(inner)  # Raises: it is a StrictUndefined.
        raise TypeError(f"a {type(inner).__name__} cannot be JSON")

    return json.dumps(value, default=refuse, **options)


def _environment() -> _Environment:
    environment = _Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    environment.policies["json.dumps_function"] = _dumps
    environment.filters["transcript"] = transcript_text
    for endless in ("range", "lipsum"):
        del environment.globals[endless]
    return environment


_ENVIRONMENT = _environment()


class BodyTemplate:
    """One endpoint's template. Raises TemplateInvalid if its syntax is wrong."""

    def __init__(self, source: str, content_type: str = JSON) -> None:
        self._json = content_type.partition(";")[0].strip() == JSON
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateInvalid(error.lineno, str(error.message)) from None

    def render(self, body: str, webhook_id: str) -> str:
        """The body to post for a stored event. Raises TemplateInvalid, EventUnreadable."""
        event = events.stored(body)
        try:
            rendered = self._template.render({**event, "webhook_id": webhook_id})
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            # What a filter or an operator does with the wrong kind of value is the template's fault too.
            raise TemplateInvalid(_line(error), str(error) or type(error).__name__) from None
        if self._json:
            try:
                orjson.loads(rendered)
            except orjson.JSONDecodeError as error:
                text = f"makes no valid JSON: {error}; put every value through `tojson`"
                raise TemplateInvalid(error.lineno, text) from None
        return rendered

    def check(self, kinds: Iterable[str]) -> None:
        """Try it with a made-up event of each kind. Raises TemplateInvalid."""
        for kind in kinds:
            try:
                self.render(events.sample(kind, 0.0).body(), "msg_0")
            except TemplateInvalid as error:
                raise TemplateInvalid(error.line, f"fails for {kind}: {error}") from None


def _line(error: Exception) -> int:
    """The template's line at which rendering failed: Jinja gives its frames the template's own lines."""
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
