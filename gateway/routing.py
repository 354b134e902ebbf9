"""Which persona answers a number, and whether it is open now: `routing.yaml` in the persona folder.

Owns the file's fields, the choice of a route and the opening hours. Reads no clock: the time is an
argument, and hours are of the wall clock in their own time zone, so that a change to summer time
moves nothing. Zones come from the system or, on slim images, from the `tzdata` package.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gateway.persona_fields import Id, PhoneOrNothing
from gateway.persona_model import Persona, PersonaInvalid, Strict
from gateway.yaml_lines import FieldProblems, Loc, Problem, read_document

ROUTING_FILE = "routing.yaml"
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MIDNIGHT = 24 * 60


@dataclass(frozen=True, slots=True)
class Route:
    """Who answers a call."""

    persona: str
    open: bool
    """False outside the hours: the call goes to `fallback`, or is told so and ends."""
    fallback: str
    """Number that gets the call when the persona cannot; may be empty."""


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            "is not a time zone known here; use an IANA name such as Europe/London, and install tzdata if that fails"
        ) from None
    return name


def _days(text: str) -> str:
    first, _, last = text.partition("-")
    if first not in DAYS or (last or first) not in DAYS:
        raise ValueError(f"must be a day or a range of days, such as mon-fri; days are {', '.join(DAYS)}")
    return text


def _range(text: str) -> str:
    found = re.fullmatch(r"(\d\d):(\d\d)-(\d\d):(\d\d)", text, re.ASCII)
    numbers = [int(part) for part in found.groups()] if found else []
    if len(numbers) != 4 or numbers[1] > 59 or numbers[3] > 59 or _minutes(text)[0] >= _MIDNIGHT:
        raise ValueError('must be a range of the 24-hour clock, such as "09:00-17:30"')
    if _minutes(text)[1] > _MIDNIGHT or _minutes(text)[0] == _minutes(text)[1]:
        raise ValueError('must end at another time than it begins, "24:00" at the latest')
    return text


def _minutes(text: str) -> tuple[int, int]:
    """Start and end of a range in minutes from midnight."""
    hours = [int(part) for part in re.findall(r"\d\d", text)]
    return hours[0] * 60 + hours[1], hours[2] * 60 + hours[3]


def _pattern(number: object) -> object:
    if isinstance(number, int) and not isinstance(number, bool):
        raise ValueError(f'must be in quotes: "+{number}"')
    if isinstance(number, str) and not re.fullmatch(r"\+?\d{1,15}\*?", number, re.ASCII):
        raise ValueError('must be a number such as "+12065550123", or the start of one such as "+4420*"')
    return number


class Hours(Strict):
    """When a route is open, by the wall clock of a time zone."""

    time_zone: Annotated[str, AfterValidator(_zone)]
    open: dict[Annotated[str, AfterValidator(_days)], tuple[Annotated[str, AfterValidator(_range)], ...]] = Field(
        description='Days to ranges: `mon-fri: ["09:00-17:00"]`. A range that ends before it begins runs past midnight.'
    )
    closed: tuple[Annotated[date, Field(strict=True)], ...] = Field((), description="Dates, such as holidays.")

    def contains(self, now: datetime) -> bool:
        """Whether it is open at an aware time."""
        local = now.astimezone(ZoneInfo(self.time_zone))
        minute = local.hour * 60 + local.minute
        today, yesterday = local.date(), local.date() - timedelta(days=1)
        return any(
            (start <= minute < end) if start < end else minute >= start for start, end in self._ranges(today)
        ) or any(end < start and minute < end for start, end in self._ranges(yesterday))

    def _ranges(self, day: date) -> Iterator[tuple[int, int]]:
        if day in self.closed:
            return
        for days, ranges in self.open.items():
            if day.weekday() in _weekdays(days):
                yield from map(_minutes, ranges)


def _weekdays(days: str) -> set[int]:
    """`mon-fri` -> {0, 1, 2, 3, 4}; `sat-mon` goes round the end of the week."""
    first, _, last = days.partition("-")
    start, stop = DAYS.index(first), DAYS.index(last or first)
    return {(start + n) % 7 for n in range((stop - start) % 7 + 1)}


class RouteSpec(Strict):
    """One number, or the start of one, and who answers it."""

    number: Annotated[str, BeforeValidator(_pattern)]
    persona: str
    hours: str = Field("", description="Name under `hours`; empty: always open.")
    fallback: PhoneOrNothing = Field("", description="Instead of the persona's own fallback.")


class DefaultSpec(Strict):
    """Who answers every other number."""

    persona: str
    hours: str = ""
    fallback: PhoneOrNothing = ""


class RoutingSpec(Strict):
    """The file."""

    default: DefaultSpec
    routes: tuple[RouteSpec, ...] = ()
    hours: dict[Id, Hours] = Field({}, description="Opening hours that routes name.")

    @model_validator(mode="after")
    def _agrees(self) -> RoutingSpec:
        if problems := list(self._disagreements()):
            raise FieldProblems(problems)
        return self

    def _disagreements(self) -> Iterator[tuple[Loc, str]]:
        numbers: dict[str, int] = {}
        for place, route in enumerate(self.routes):
            if route.number in numbers:
                yield ("routes", place, "number"), f"is given twice; it is also in routes.{numbers[route.number]}"
            numbers.setdefault(route.number, place + 1)
        for loc, spec in self.entries():
            if spec.hours and spec.hours not in self.hours:
                yield (*loc, "hours"), f"there are no hours {spec.hours}; known here: {', '.join(self.hours) or 'none'}"

    def entries(self) -> Iterator[tuple[Loc, RouteSpec | DefaultSpec]]:
        """The default and all routes, with where they are in the file."""
        yield ("default",), self.default
        for place, route in enumerate(self.routes):
            yield ("routes", place), route


@dataclass(frozen=True)
class Routing:
    """A valid routing file and the personas it leads to."""

    spec: RoutingSpec
    fallbacks: Mapping[str, str]
    """Persona id -> its own fallback number, which may be empty."""

    @cached_property
    def _exact(self) -> dict[str, RouteSpec]:
        return {r.number: r for r in self.spec.routes if not r.number.endswith("*")}

    @cached_property
    def _prefixes(self) -> list[tuple[str, RouteSpec]]:
        found = [(r.number[:-1], r) for r in self.spec.routes if r.number.endswith("*")]
        return sorted(found, key=lambda item: len(item[0]), reverse=True)

    def route(self, number: str, now: datetime) -> Route:
        """Who answers a dialled number at an aware time: the exact number, else the longest prefix, else the default.

        Raises ValueError if `now` has no time zone.
        """
        if now.tzinfo is None:
            raise ValueError("the time of a call must have a time zone")
        spec = self._find(re.sub(r"[\s().-]", "", number))
        is_open = not spec.hours or self.spec.hours[spec.hours].contains(now)
        return Route(spec.persona, is_open, spec.fallback or self.fallbacks.get(spec.persona, ""))

    def _find(self, number: str) -> RouteSpec | DefaultSpec:
        if number in self._exact:
            return self._exact[number]
        return next((r for prefix, r in self._prefixes if number.startswith(prefix)), self.spec.default)


def load_routing(folder: Path, personas: Mapping[str, Persona]) -> Routing:
    """Read a persona folder's routing.yaml. Raises PersonaInvalid with every problem in it."""
    problems: list[Problem] = []
    routing = read_routing(folder, personas, personas, problems)
    if routing is None or problems:
        raise PersonaInvalid([str(problem) for problem in problems])
    return routing


def read_routing(
    folder: Path, named: Collection[str], personas: Mapping[str, Persona], problems: list[Problem]
) -> Routing | None:
    """The routing of a folder; what is wrong is added to `problems`.

    `named` are the ids that have a file, valid or not: a persona's own errors are not told again here.
    """
    document = read_document(folder / ROUTING_FILE, problems)
    spec = document.build(RoutingSpec, problems) if document else None
    if document is None or spec is None:
        return None
    for loc, entry in spec.entries():
        if entry.persona not in named:
            known = ", ".join(sorted(named)) or "none"
            problems.append(document.problem((*loc, "persona"), f"there is no persona {entry.persona}; known: {known}"))
    return Routing(spec, {name: persona.fallback for name, persona in personas.items()})
