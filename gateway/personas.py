"""Personas: from a folder of YAML files to a session's request.

Owns loading (all problems of all files at once), the text prompt in the style PersonaPlex was
trained on, and the set in force, which an invalid file never replaces. `persona_model.py` says what
a persona is; nothing here knows phones or workers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from gateway.persona_fields import LONGEST_PROMPT, PLACEHOLDER, VOICES
from gateway.persona_model import Persona, PersonaInvalid
from gateway.redaction.rules import CustomPattern, Rules
from gateway.routing import ROUTING_FILE, Routing, read_routing
from gateway.webhooks.endpoints import WEBHOOKS_FILE, read_webhooks
from gateway.yaml_lines import Document, Problem, read_document
from model.wire import Answer, Question, Sampling, Script, SessionRequest

__all__ = [
    "Persona",
    "PersonaInvalid",
    "PersonaStore",
    "check_personas",
    "consent_line",
    "load_personas",
    "persona_prompt",
    "redaction_rules",
    "session_request",
]

RECORDINGS = "voices"
"""The folder of recorded voices among the personas."""
LONGEST_VALUE = 200
"""Characters of a variable's value that a call may bring; the rest is cut off."""

_NOTHING_FITS = "I'm sorry, I don't know that."


def load_personas(folder: Path) -> dict[str, Persona]:
    """All personas under a folder, by id. Raises PersonaInvalid with every problem of every file."""
    problems: list[Problem] = []
    personas = read_personas(folder, problems)
    if problems:
        raise PersonaInvalid([str(problem) for problem in problems])
    return personas


def read_personas(folder: Path, problems: list[Problem]) -> dict[str, Persona]:
    """The valid personas under a folder; what is wrong with the others is added to `problems`."""
    personas: dict[str, Persona] = {}
    origin: dict[str, Path] = {}
    paths = persona_paths(folder)
    for path in paths:
        persona = read_persona(path, problems)
        if path.stem in origin:
            problems.append(Problem(path, 1, "", f"has the same name as {origin[path.stem]}; rename one of them"))
        elif persona is not None:
            personas[path.stem] = persona
        origin.setdefault(path.stem, path)
    if not paths:
        problems.append(Problem(folder, 1, "", "holds no persona files (*.yaml)"))
    return personas


def persona_paths(folder: Path) -> list[Path]:
    """The persona files under a folder, in order.

    Hidden files and folders are editors' and mounts', and what lies in `voices` are recordings and their consent.
    """
    found = []
    for path in sorted(folder.rglob("*.y*ml")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.suffix not in (".yaml", ".yml") or hidden or inside.parts[0] == RECORDINGS:
            continue
        if inside not in (Path(ROUTING_FILE), Path(WEBHOOKS_FILE)):
            found.append(path)
    return found


def read_persona(path: Path, problems: list[Problem]) -> Persona | None:
    """One persona file; None, with what is wrong added to `problems`, if it is not valid."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,59}", path.stem):
        problems.append(Problem(path, 1, "", "must be named in lower case with hyphens, such as first-bank.yaml"))
    document = read_document(path, problems)
    persona = document.build(Persona, problems) if document else None
    if document is None or persona is None:
        return None
    problems.extend(_prompt_problems(document, persona))
    problems.extend(_voice_problems(document, persona, path))
    return persona.identified(path.stem, hashlib.sha256(document.raw).hexdigest()[:12])


def _prompt_problems(document: Document, persona: Persona) -> list[Problem]:
    length = len(persona_prompt(persona, {}))
    if length <= LONGEST_PROMPT:
        return []
    text = f"the prompt made of `role` and `facts` has {length} characters, {LONGEST_PROMPT} at most"
    return [document.problem(("facts",), text)]


def _voice_problems(document: Document, persona: Persona, path: Path) -> list[Problem]:
    """A recorded voice must lie in a `voices` folder beside or above the persona; the worker asks for its consent."""
    name = persona.voice
    places = [folder / RECORDINGS / f"{name}.wav" for folder in path.absolute().parents[:3]]
    if name in VOICES or any(place.is_file() for place in places):
        return []
    text = f"no such voice; choose one of {', '.join(VOICES)}, or record one: callplex voices add {name}"
    return [document.problem(("voice",), text)]


def check_personas(path: Path) -> list[str]:
    """What is wrong with a persona file, or with a folder, its routing and its webhooks; empty: nothing."""
    problems: list[Problem] = []
    if path.is_dir():
        _read_folder(path, problems)
        if (path / WEBHOOKS_FILE).exists():
            read_webhooks(path / WEBHOOKS_FILE, problems)
    elif path.name == WEBHOOKS_FILE:
        read_webhooks(path, problems)
    else:
        read_persona(path, problems)
    return [str(problem) for problem in problems]


def _read_folder(folder: Path, problems: list[Problem]) -> tuple[dict[str, Persona], Routing | None]:
    personas = read_personas(folder, problems)
    named = {path.stem for path in persona_paths(folder)}
    return personas, read_routing(folder, named, personas, problems)


class PersonaStore:
    """The personas and the routing in force. A reload that finds a problem changes nothing."""

    def __init__(self, folder: Path) -> None:
        """Raises PersonaInvalid: at the start there is no valid set to keep."""
        self.folder = folder
        problems: list[Problem] = []
        personas, routing = _read_folder(folder, problems)
        if problems or routing is None:
            raise PersonaInvalid([str(problem) for problem in problems])
        self.personas: Mapping[str, Persona] = personas
        self.routing: Routing = routing

    def reload(self) -> list[str]:
        """Read the folder again. Returns what is wrong; the set changes only if that is nothing."""
        problems: list[Problem] = []
        personas, routing = _read_folder(self.folder, problems)
        if not problems and routing is not None:
            self.personas, self.routing = personas, routing
        return [str(problem) for problem in problems]


def persona_prompt(persona: Persona, variables: Mapping[str, str]) -> str:
    """The text prompt as PersonaPlex was trained: who the agent is, then what it knows.

    Facts with variables come last, so that the calls of a persona share the longest possible
    prefix. A fact whose variable is empty is left out: the agent does not know it.
    """
    values = _values(persona, variables)
    parts = [persona.role]
    introduced = persona.organisation is not None or persona.name in persona.role
    if not introduced:
        parts.append(f"Your name is {persona.name}")
    for emergency in persona.emergencies:
        words = ", ".join(emergency.phrases[:6])
        parts.append(f"If the caller mentions {words}, say at once: {_filled(emergency.say, values)}")
    parts += [fact for fact in persona.facts if not PLACEHOLDER.search(fact)]
    for fact in persona.facts:
        names = PLACEHOLDER.findall(fact)
        if names and all(values[name] for name in names):
            parts.append(_filled(fact, values))
    body = " ".join(_sentence(part) for part in parts if part)
    who = persona.organisation
    if who is None:
        return body
    article = "an" if who.kind[0].lower() in "aeiou" else "a"
    opening = f"You work for {who.name} which is {article} {who.kind} and your name is {persona.name}."
    return f"{opening} Information: {body}" if body else opening


UNREACHED = "I am sorry, I could not reach anybody there. Is there anything else that I can do for you?"
"""Said in place of the greeting to a caller who was to be connected to somebody and comes back."""


def session_request(
    persona: Persona, call_id: str, variables: Mapping[str, str], seed: int, came_back: bool = False
) -> SessionRequest:
    """What a worker needs to hold one call as this persona.

    `variables` is what the call brings (the carrier's parameters): names the persona does not declare
    are ignored, values are made harmless, and the persona's defaults stand in for those missing.
    `came_back`: the caller was to be connected to somebody and could not be.
    """
    values = _values(persona, variables)
    greeting = UNREACHED if came_back else persona.greeting
    notice = " ".join(filter(None, (persona.recording.consent, persona.disclosure)))
    chosen = {name: value for name, value in persona.sampling.model_dump().items() if value is not None}
    return SessionRequest(
        call_id=call_id,
        prompt=persona_prompt(persona, variables),
        voice=persona.voice,
        greeting=_filled(" ".join(filter(None, (notice, greeting))), values),
        notice=_filled(notice, values),
        clip=f"{persona.id}-{persona.version}" if persona.disclosure else "",
        sampling=Sampling(**{**asdict(Sampling()), **chosen, "seed": seed}),
        script=_script(persona, values),
    )


def consent_line(persona: Persona, variables: Mapping[str, str]) -> str:
    """What must be heard before the call is recorded or written down; empty: nothing."""
    return _filled(persona.recording.consent, _values(persona, variables))


def redaction_rules(persona: Persona) -> Rules:
    """What is redacted in a persona's calls."""
    custom = (CustomPattern(own.label, own.pattern) for own in persona.redact_patterns)
    return Rules.of(persona.redact, custom)


def _script(persona: Persona, values: Mapping[str, str]) -> Script:
    spec = persona.script
    urgent = [
        Answer(e.id, _filled(e.say, values), when=e.phrases, then=e.then, target=e.target, urgent=True)
        for e in persona.emergencies
    ]
    answers = [Answer(a.id, _filled(a.say, values), a.when, a.needs, a.after, a.then, a.target) for a in spec.answers]
    own = {name: getattr(spec, name) for name in ("unknown", "goodbye", "transferring", "closed")}
    texts = {name: _filled(text, values) for name, text in own.items() if text}
    if not spec.person:
        texts.setdefault("unknown", _NOTHING_FITS)
    return Script(
        answers=(*urgent, *answers),
        questions=tuple(Question(q.name, q.kind, _filled(q.ask, values)) for q in spec.questions),
        person=spec.person,
        **texts,
    )


def _values(persona: Persona, variables: Mapping[str, str]) -> dict[str, str]:
    """A value for each of the persona's variables. Those of the call were written by strangers."""
    values = {}
    for name, default in persona.variables.items():
        text = " ".join(re.sub(r"[\x00-\x1f\x7f<>{}]", " ", variables.get(name, "")).split())
        values[name] = text[:LONGEST_VALUE].strip() or default
    return values


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Text with its variables filled in; the names of questions stay, for the conversation to fill."""
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def _sentence(text: str) -> str:
    return text if not text or text[-1] in ".!?" else f"{text}."
