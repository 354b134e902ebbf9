"""A YAML file as plain data that remembers its lines, for the persona and routing files.

Owns reading and the wording of what is wrong: every problem is one line, `path:line: field: problem`,
and all of them are found at once. Knows nothing of what the fields mean. Only the plain part of YAML
is allowed (no anchors, aliases or tags), so a small file stays small once read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16

Loc = tuple[str | int, ...]
Lines = dict[Loc, int]
_Model = TypeVar("_Model", bound=BaseModel)

_PLAIN_TAG = "tag:yaml.org,2002:"
_WORDING = {
    "missing": "is missing",
    "string_type": "must be text; put it in quotes",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a number",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of fields to values",
    "string_pattern_mismatch": "must be a name in lower case: a letter, then letters, digits or _",
    "string_too_short": "must not be empty",
    "string_too_long": "can have {max_length} characters at most",
    "too_short": "needs {min_length} at least",
    "too_long": "can have {max_length} at most",
    "date_type": "must be a date such as 2026-12-25",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to correct in one file."""

    path: Path
    line: int
    field: str
    """Dotted, list items by their place from 1: `script.answers.2.say`; empty for the file as a whole."""
    text: str

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        return f"{self.path}:{self.line}: {field}{self.text}"


class FieldProblems(ValueError):
    """Raised by a model's own check: several fields are wrong, each named by where it is in the data."""

    def __init__(self, problems: Iterable[tuple[Loc, str]]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{_dotted(loc)}: {text}" for loc, text in self.problems))


@dataclass(frozen=True, slots=True)
class Document:
    """What a file says, the line of each field (from 1), and the bytes it was read from."""

    path: Path
    data: Any
    lines: Lines
    raw: bytes

    def problem(self, loc: Loc, text: str) -> Problem:
        """A problem of a field, at its own line or that of the nearest one around it."""
        known = next((loc[:n] for n in range(len(loc), 0, -1) if loc[:n] in self.lines), ())
        return Problem(self.path, self.lines.get(known, 1), _dotted(loc), text)

    def build(self, model: type[_Model], problems: list[Problem]) -> _Model | None:
        """The file as a model; None, with everything that is wrong added to `problems`, if it is not one."""
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            found = [problem for item in error.errors(include_url=False) for problem in self._worded(model, item)]
            problems.extend(sorted(found, key=lambda problem: problem.line))
        return None

    def _worded(self, model: type[BaseModel], item: Any) -> list[Problem]:
        loc: Loc = tuple(part for part in item["loc"] if part != "[key]")
        context = item.get("ctx", {})
        raised = context.get("error")
        if isinstance(raised, FieldProblems):
            return [self.problem(loc + inner, text) for inner, text in raised.problems]
        if item["type"] == "extra_forbidden":
            return [self.problem(loc, f"unknown field; known here: {', '.join(_fields_at(model, loc[:-1]))}")]
        message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        wording = _WORDING.get(item["type"])
        return [self.problem(loc, wording.format(**context) if wording else message)]


class _Unusable(Exception):
    """Reading one file cannot go on; carries the line and what is wrong."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def read_document(path: Path, problems: list[Problem]) -> Document | None:
    """Read one file. None, with what is wrong added to `problems`, if it cannot be used."""
    before = len(problems)
    try:
        raw = _read(path)
        yaml = YAML(typ="safe", pure=True)
        reader = _Reader(path, yaml, problems)
        node = _compose(yaml, raw)
        data = reader.read(node, ())
        if len(problems) > before:
            return None
        if not isinstance(data, dict):
            raise _Unusable(node.start_mark.line + 1, "must be a mapping of fields to values, such as `name: Alex`")
    except _Unusable as error:
        problems.append(Problem(path, error.line, "", str(error)))
        return None
    return Document(path, data, reader.lines, raw)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _Unusable(1, f"cannot be read: {error.strerror or error}") from None
    if len(raw) > MAX_BYTES:
        raise _Unusable(1, f"is larger than {MAX_BYTES // 1024} KiB; split it or remove what does not belong here")
    return raw


def _compose(yaml: YAML, raw: bytes) -> Node:
    """The file's node tree, with its syntax checked."""
    try:
        node: Node | None = yaml.compose(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _Unusable(line, "is not UTF-8 text; save it as UTF-8") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context
        raise _Unusable(mark.line + 1 if mark else 1, f"is not valid YAML: {reason}") from None
    except RecursionError:
        raise _Unusable(1, "is nested too deeply") from None
    except (YAMLError, ValueError, OverflowError) as error:  # the latter for a character beyond any, as "\U00110000"
        raise _Unusable(1, f"is not valid YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        raise _Unusable(1, "is empty")
    return node


class _Reader:
    """Turns YAML's node tree into plain data, noting lines and refusing what is not plain."""

    def __init__(self, path: Path, yaml: YAML, problems: list[Problem]) -> None:
        self.lines: Lines = {}
        self._path = path
        self._yaml = yaml
        self._problems = problems

    def read(self, node: Node, loc: Loc) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(loc, line)
        if node.anchor is not None:
            return self._refuse(line, loc, "anchors and aliases are not allowed; write the text out")
        if not str(node.tag).startswith(_PLAIN_TAG):
            return self._refuse(line, loc, f"the tag {str(node.tag)[:40]} is not allowed; remove it")
        if len(loc) > MAX_DEPTH:
            return self._refuse(line, loc, "is nested too deeply")
        if isinstance(node, MappingNode):
            return self._mapping(node, loc)
        if isinstance(node, SequenceNode):
            return [self.read(child, (*loc, place)) for place, child in enumerate(node.value)]
        try:
            return self._yaml.constructor.construct_object(node)
        except (ValueError, KeyError, YAMLError):  # a date that there is not, `!!bool maybe`
            return self._refuse(line, loc, "cannot be read as a value; put it in quotes")

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, ScalarNode) or key_node.tag != f"{_PLAIN_TAG}str":
                self._refuse(line, loc, "the name of a field must be text; put it in quotes")
                continue
            inner = (*loc, str(key_node.value))
            if key_node.value in result:
                self._refuse(line, inner, f"is given twice; it is also on line {self.lines[inner]}")
                continue
            self.lines[inner] = line
            result[str(key_node.value)] = self.read(value_node, inner)
        return result

    def _refuse(self, line: int, loc: Loc, text: str) -> None:
        self._problems.append(Problem(self._path, line, _dotted(loc), text))


def _dotted(loc: Loc) -> str:
    return ".".join(str(part + 1) if isinstance(part, int) else part[:60] for part in loc)


def _fields_at(model: type[BaseModel], loc: Loc) -> list[str]:
    """The names of the fields of the model found at `loc` inside another."""
    current = model
    for part in loc:
        field = current.model_fields.get(part) if isinstance(part, str) else None
        if field is not None:
            inner = _model_in(field.annotation)
            if inner is None:
                return []
            current = inner
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model inside an annotation such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)
