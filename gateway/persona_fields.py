"""What single fields of our YAML files may hold: text that can be spoken, numbers, names, voices, languages.

Owns what is right about a field by itself; what must agree between fields is `persona_model.py`'s.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints

from gateway.redaction.rules import LONGEST_PATTERN, PatternInvalid, compiled

VOICES = (
    *(f"NATF{n}" for n in range(4)),
    *(f"NATM{n}" for n in range(4)),
    *(f"VARF{n}" for n in range(5)),
    *(f"VARM{n}" for n in range(5)),
)
"""PersonaPlex's own: natural and varied, female and male."""
RECORDING = r"[a-z][a-z0-9-]{0,39}"
"""The name of a recorded voice, which `callplex voices add` keeps together with the consent to use it."""

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
LANGUAGES = ("en", "en-AU", "en-CA", "en-GB", "en-IE", "en-IN", "en-NZ", "en-US", "en-ZA")
"""The engines speak and understand English only; the region is for dates and spelling."""
LONGEST_PROMPT = 3_000
"""Characters, about four a frame. Of the 3,000 frames that PersonaPlex remembers a prompt may take 1,200
(`model.prompt.longest_prompt`), and a recorded voice takes up to 375 of those."""


def _speakable(text: str) -> str:
    """Text with its white space made single; refuses what nobody can say or what could end a prompt."""
    text = " ".join(text.split())
    if bad := re.search(r"[\x00-\x1f\x7f<>]", text):
        raise ValueError(f"must not contain {bad.group()!r}")
    if re.search(r"[{}]", PLACEHOLDER.sub("", text)):
        raise ValueError("has a brace without its partner; a variable is written {like_this}")
    return text


def _phone(number: Any) -> Any:
    if isinstance(number, int) and not isinstance(number, bool):
        raise ValueError(f'must be in quotes: "+{number}"')
    if isinstance(number, str) and not re.fullmatch(r"\+[1-9]\d{6,14}", number, re.ASCII):
        raise ValueError('must be a full number with its country code, digits only, such as "+12065550123"')
    return number


def _voice(name: str) -> str:
    if name not in VOICES and not re.fullmatch(RECORDING, name):
        raise ValueError(f"no such voice; choose one of {', '.join(VOICES)}")
    return name


def _language(tag: str) -> str:
    if tag not in LANGUAGES:
        raise ValueError(f"the agent speaks English only; choose one of {', '.join(LANGUAGES)}")
    return tag


def _pattern(pattern: str) -> str:
    try:
        compiled(pattern)
    except PatternInvalid as error:
        raise ValueError(str(error)) from None
    return pattern


Phone = Annotated[str, BeforeValidator(_phone), Field(json_schema_extra={"pattern": r"^\+[1-9]\d{6,14}$"})]
PhoneOrNothing = Annotated[
    str,
    BeforeValidator(lambda number: number if number == "" else _phone(number)),
    Field(json_schema_extra={"pattern": r"^(\+[1-9]\d{6,14})?$"}),
]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,59}$")]
Label = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=120), AfterValidator(_speakable)
]
LabelOrNothing = Annotated[str, StringConstraints(strip_whitespace=True, max_length=120), AfterValidator(_speakable)]
Phrase = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=2, max_length=200), AfterValidator(_speakable)
]
Fact = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=2, max_length=500), AfterValidator(_speakable)
]
Spoken = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=800), AfterValidator(_speakable)
]
SpokenOrNothing = Annotated[str, StringConstraints(strip_whitespace=True, max_length=800), AfterValidator(_speakable)]
Instructions = Annotated[str, StringConstraints(strip_whitespace=True, max_length=2_000), AfterValidator(_speakable)]
Language = Annotated[str, AfterValidator(_language), Field(json_schema_extra={"enum": list(LANGUAGES)})]
Voice = Annotated[
    str,
    AfterValidator(_voice),
    Field(json_schema_extra={"anyOf": [{"enum": list(VOICES)}, {"pattern": f"^{RECORDING}$"}]}),
]
Pattern = Annotated[str, StringConstraints(max_length=LONGEST_PATTERN), AfterValidator(_pattern)]
