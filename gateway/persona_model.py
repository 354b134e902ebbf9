"""What a persona is: the fields of its YAML file, their limits, and what must agree between them.

Owns the model only; what a single field may hold is `persona_fields.py`'s. Knows no files, no worker and
no prompt: `personas.py` reads files into it and makes a session's request of it.
`python -m gateway.persona_model > personas/schema.json` writes the JSON Schema that editors check the
files with.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator

from gateway.persona_fields import (
    PLACEHOLDER,
    Fact,
    Id,
    Instructions,
    Label,
    LabelOrNothing,
    Language,
    Name,
    Pattern,
    Phone,
    PhoneOrNothing,
    Phrase,
    Spoken,
    SpokenOrNothing,
    Voice,
)
from gateway.redaction.rules import Kind
from gateway.yaml_lines import FieldProblems, Loc


class PersonaInvalid(Exception):
    """Persona or routing files cannot be used; one line for each problem, `path:line: field: problem`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Strict(BaseModel):
    """Frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Organisation(Strict):
    """Whom the agent works for."""

    name: Label
    kind: Label = Field(description="What it is, without an article: `bank`, `dental clinic`.")


class AnswerSpec(Strict):
    """One scripted answer of the rehearsal engine."""

    id: Id
    when: tuple[Phrase, ...] = Field((), max_length=60, description="Examples of what a caller says.")
    say: Spoken = Field(description="Short spoken sentences. {names} of variables and of `needs` are filled in.")
    needs: tuple[Name, ...] = Field((), description="Questions whose answers must be known first.")
    after: tuple[Id, ...] = Field((), description="Answers this one directly replies to; empty: at any time.")
    then: Literal["", "hangup", "transfer"] = Field("", description="What happens once it is said.")
    target: str = Field("", description="Name under `transfers`, when `then` is `transfer`.")


class QuestionSpec(Strict):
    """Something the agent must learn from the caller."""

    name: Name
    kind: Literal["name", "digits", "date", "words"] = Field("words", description="How the reply is read.")
    ask: Spoken


class ScriptSpec(Strict):
    """What the rehearsal engine says; the duplex model works from the prompt alone."""

    answers: tuple[AnswerSpec, ...] = Field((), max_length=200)
    questions: tuple[QuestionSpec, ...] = Field((), max_length=40)
    unknown: SpokenOrNothing = Field("", description="Said when nothing fits; should offer `person`.")
    goodbye: SpokenOrNothing = Field("", description="Said when the caller says goodbye; then the call ends.")
    person: str = Field("", description="Name under `transfers` of those a caller gets who asks for a person.")
    transferring: SpokenOrNothing = Field("", description="Said before any transfer the caller asked for.")
    closed: SpokenOrNothing = Field("", description="Said when a person is asked for and there is none.")


class Emergency(Strict):
    """Words that mean an emergency, and what is said at once when any of them occurs."""

    id: Id = "emergency"
    phrases: tuple[Phrase, ...] = Field(min_length=1, max_length=100)
    say: Spoken
    then: Literal["", "hangup", "transfer"] = ""
    target: str = ""


class RedactPattern(Strict):
    """Something of the organisation's own that nobody should read afterwards."""

    label: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9 -]{0,39}$")] = Field(
        description="What stands in the text instead, in brackets: `member number`."
    )
    pattern: Pattern = Field(
        description="RE2 syntax, capitals and small letters alike. Tried on what was heard, and on that with its "
        "figures as digits: `AB\\d{6}` finds A B one two three four five six too."
    )


class Limits(Strict):
    """Seconds after which a call is ended, politely."""

    max_seconds: int = Field(900, ge=10, le=14_400, description="The longest call, from answer.")
    max_silence: int = Field(60, ge=5, le=600, description="Nobody said a word for this long.")


class RecordingSpec(Strict):
    """How a call's sound is kept, and what must be said before anything of it is."""

    format: Literal["wav", "opus"] = Field("wav", description="`opus` takes a thirtieth of the room.")
    consent: SpokenOrNothing = Field(
        "", description="Said first. Nothing is recorded or written down until it was heard to its end."
    )


class RetentionSpec(Strict):
    """Days after which parts of a call are deleted; what is not named is kept."""

    audio_days: int | None = Field(None, ge=1, le=36_500, description="The recording.")
    text_days: int | None = Field(None, ge=1, le=36_500, description="What was said, as text.")
    record_days: int | None = Field(None, ge=1, le=36_500, description="All of it: that there was a call, too.")


class SamplingSpec(Strict):
    """How the duplex model's tokens are drawn; a temperature of 0 is greedy."""

    temperature: float | None = Field(None, ge=0, le=2)
    text_temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=1, le=2_048)
    text_top_k: int | None = Field(None, ge=1, le=32_000)


class Persona(Strict):
    """Who answers a call, what they know, and what they may do."""

    name: LabelOrNothing = Field("", description="The agent's name; needed where there is an `organisation`.")
    organisation: Organisation | None = None
    language: Language = "en-US"
    voice: Voice
    role: Instructions = Field("", description="How the agent behaves. The same for every call: no {variables}.")
    facts: tuple[Fact, ...] = Field((), max_length=60, description="What the agent knows, one sentence each.")
    greeting: SpokenOrNothing = Field("", description="Said first, before the caller speaks.")
    disclosure: SpokenOrNothing = Field("", description="What the law wants said before anything else.")
    script: ScriptSpec = ScriptSpec.model_validate({})
    emergencies: tuple[Emergency, ...] = Field((), max_length=10)
    transfers: dict[Name, Phone] = Field({}, description="The only numbers the agent can connect a caller to.")
    fallback: PhoneOrNothing = Field("", description="Number that gets the call when the agent cannot serve it.")
    limits: Limits = Limits.model_validate({})
    keypad: Literal["kept", "masked"] = Field(
        "kept", description="What the transcript shows of keys the caller presses."
    )
    record: bool = Field(False, description="Keep the sound of the call.")
    recording: RecordingSpec = RecordingSpec.model_validate({})
    retention: RetentionSpec = RetentionSpec.model_validate({})
    redact: tuple[Kind, ...] = Field(
        (), description="What is masked in the text and muted in the recording, whoever says or types it."
    )
    redact_patterns: tuple[RedactPattern, ...] = Field((), max_length=20, description="The same, for data of your own.")
    variables: dict[Name, SpokenOrNothing] = Field({}, description="{name} -> value when the call brings none.")
    sampling: SamplingSpec = SamplingSpec.model_validate({})

    _id: str = PrivateAttr("")
    _version: str = PrivateAttr("")

    @property
    def id(self) -> str:
        """The file's name without its ending; what routing.yaml calls the persona."""
        return self._id

    @property
    def version(self) -> str:
        """The first 12 hex digits of the SHA-256 of the file."""
        return self._version

    def identified(self, persona_id: str, version: str) -> Persona:
        """The same persona, knowing which file it came from."""
        copy = self.model_copy()
        copy._id, copy._version = persona_id, version
        return copy

    @model_validator(mode="after")
    def _agrees(self) -> Persona:
        if problems := list(_disagreements(self)):
            raise FieldProblems(problems)
        return self


def _disagreements(persona: Persona) -> Iterator[tuple[Loc, str]]:
    """What is wrong between fields that are each right alone."""
    yield from _identity(persona)
    yield from _repeats(persona)
    yield from _placeholders(persona)
    yield from _keeping(persona)
    if {"card", "card_but_last_four"} <= set(persona.redact):
        yield ("redact",), "has both card and card_but_last_four; choose one"
    if persona.script.person and persona.script.person not in persona.transfers:
        yield ("script", "person"), _unknown("transfer target", persona.script.person, persona.transfers)
    for place, emergency in enumerate(persona.emergencies):
        yield from _ending(("emergencies", place), emergency, persona)
    ids = [a.id for a in persona.script.answers] + [e.id for e in persona.emergencies]
    questions = [q.name for q in persona.script.questions]
    for place, answer in enumerate(persona.script.answers):
        loc: Loc = ("script", "answers", place)
        yield from _ending(loc, answer, persona)
        if not answer.when and not answer.after:
            yield loc, f"the answer {answer.id} can never be given; say `when`, or what it comes `after`"
        for n, need in enumerate(answer.needs):
            if need not in questions:
                yield (*loc, "needs", n), _unknown("question", need, questions)
        for n, earlier in enumerate(answer.after):
            if earlier not in ids:
                yield (*loc, "after", n), _unknown("answer", earlier, ids)


def _identity(persona: Persona) -> Iterator[tuple[Loc, str]]:
    if persona.organisation is None and not persona.role:
        yield ("role",), "is needed where there is no `organisation`: say who the agent is"
    if persona.organisation is not None and not persona.name:
        yield ("name",), "is needed where there is an `organisation`"
    fixed: list[tuple[Loc, str]] = [(("name",), persona.name), (("role",), persona.role)]
    if persona.organisation is not None:
        fixed += [(("organisation", "name"), persona.organisation.name)]
        fixed += [(("organisation", "kind"), persona.organisation.kind)]
    for loc, text in fixed:
        if PLACEHOLDER.search(text):
            yield loc, "is the same for every call, so it cannot hold a {variable}; put that in `facts`"


def _repeats(persona: Persona) -> Iterator[tuple[Loc, str]]:
    """Ids given twice, and phrases that two answers compete for."""
    seen: dict[str, str] = {}
    named: list[tuple[Loc, str, str]] = [
        *((("script", "answers", n, "id"), a.id, "answer") for n, a in enumerate(persona.script.answers)),
        *((("emergencies", n, "id"), e.id, "answer") for n, e in enumerate(persona.emergencies)),
        *((("script", "questions", n, "name"), q.name, "placeholder") for n, q in enumerate(persona.script.questions)),
        *((("variables", name), name, "placeholder") for name in persona.variables),
    ]
    for loc, name, space in named:
        if f"{space} {name}" in seen:
            yield loc, f"the name {name} is already taken by {seen[f'{space} {name}']}"
        seen.setdefault(f"{space} {name}", ".".join(str(p + 1) if isinstance(p, int) else p for p in loc[:-1]))
    phrases: dict[tuple[str, frozenset[str]], str] = {}
    for place, answer in enumerate(persona.script.answers):
        for n, phrase in enumerate(answer.when):
            key = (" ".join(re.findall(r"[\w']+", phrase.lower())), frozenset(answer.after))
            if key in phrases:
                yield ("script", "answers", place, "when", n), f"the answer {phrases[key]} has this phrase too"
            phrases.setdefault(key, answer.id)


def _placeholders(persona: Persona) -> Iterator[tuple[Loc, str]]:
    """Every {name} must be a variable, or in an answer one of the questions it needs."""
    script = persona.script
    spoken: list[tuple[Loc, str, tuple[str, ...]]] = [
        (("greeting",), persona.greeting, ()),
        (("disclosure",), persona.disclosure, ()),
        (("recording", "consent"), persona.recording.consent, ()),
        *((("script", f), getattr(script, f), ()) for f in ("unknown", "goodbye", "transferring", "closed")),
        *((("script", "questions", n, "ask"), q.ask, ()) for n, q in enumerate(script.questions)),
        *((("script", "answers", n, "say"), a.say, a.needs) for n, a in enumerate(script.answers)),
        *((("emergencies", n, "say"), e.say, ()) for n, e in enumerate(persona.emergencies)),
    ]
    questions = {q.name for q in script.questions}
    for loc, text, needs in spoken:
        for name in PLACEHOLDER.findall(text):
            if name in questions:
                if name not in needs:
                    yield loc, f"{{{name}}} may not be known yet here; only an answer with it in `needs` can say it"
            elif name not in persona.variables:
                yield loc, _unknown("variable", f"{{{name}}}", sorted({*persona.variables, *questions}))
            elif not persona.variables[name]:
                yield loc, f"{{{name}}} can be empty here; give it a default under `variables`"
    for place, fact in enumerate(persona.facts):
        for name in PLACEHOLDER.findall(fact):
            if name not in persona.variables:
                yield ("facts", place), _unknown("variable", f"{{{name}}}", persona.variables)
    for name, value in persona.variables.items():
        if PLACEHOLDER.search(value):
            yield ("variables", name), "a value cannot hold another {variable}"


def _keeping(persona: Persona) -> Iterator[tuple[Loc, str]]:
    """A recording that is described but off, and parts that would outlive the call they belong to."""
    if "format" in persona.recording.model_fields_set and not persona.record:
        yield ("recording", "format"), "nothing is recorded; add `record: true`, or leave the format out"
    if any(char.isdigit() for char in persona.recording.consent):
        # What was said is compared letter for letter, and engines write numbers as they like.
        yield ("recording", "consent"), "must not hold digits; write numbers as words"
    whole = persona.retention.record_days
    for name in ("audio_days", "text_days"):
        part = getattr(persona.retention, name)
        if whole is not None and part is not None and part > whole:
            yield ("retention", name), f"the whole record goes after {whole} days; say {whole} or less"


def _ending(loc: Loc, answer: AnswerSpec | Emergency, persona: Persona) -> Iterator[tuple[Loc, str]]:
    if answer.then == "transfer" and not answer.target:
        yield (*loc, "then"), "a transfer needs a `target`, a name under `transfers`"
    elif answer.target and answer.then != "transfer":
        yield (*loc, "target"), "is only for `then: transfer`"
    elif answer.target and answer.target not in persona.transfers:
        yield (*loc, "target"), _unknown("transfer target", answer.target, persona.transfers)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    return f"there is no {kind} {name}; known here: {', '.join(known) or 'none'}"


def schema_text() -> str:
    """The JSON Schema of a persona file, as personas/schema.json holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Persona.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
