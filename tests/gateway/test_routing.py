"""Which persona answers a number, and when: choice of route, hours across time zones, mistakes in the file."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.persona_model import Persona, PersonaInvalid
from gateway.personas import load_personas
from gateway.routing import DAYS, Hours, Route, load_routing

SHIPPED = Path(__file__).parents[2] / "personas"
NOON = datetime(2026, 6, 3, 12, tzinfo=UTC)
PERSONAS = {
    name: Persona.model_validate({"voice": "NATF0", "role": "You help.", "fallback": fallback})
    for name, fallback in {"bank": "+12065550101", "clinic": "", "casual": ""}.items()
}
FILE = """\
default:
  persona: bank
routes:
  - number: "+442071234567"
    persona: clinic
    hours: office
    fallback: "+442079999999"
  - number: "+44*"
    persona: casual
  - number: "+4420*"
    persona: clinic
  - number: "1001"
    persona: casual
hours:
  office:
    time_zone: Europe/London
    open:
      mon-fri: ["09:00-12:00", "13:00-17:00"]
    closed: [2026-12-25]
"""


def write(folder: Path, text: str) -> Path:
    (folder / "routing.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("number", "persona"),
    [
        ("+442071234567", "clinic"),
        ("+44 20 7123-4567", "clinic"),
        ("+442079", "clinic"),
        ("+44161", "casual"),
        ("+44", "casual"),
        ("1001", "casual"),
        ("10012", "bank"),
        ("+12065550100", "bank"),
        ("anonymous", "bank"),
        ("", "bank"),
    ],
)
def test_exact_number_then_longest_start_then_default(tmp_path: Path, number: str, persona: str) -> None:
    assert load_routing(write(tmp_path, FILE), PERSONAS).route(number, NOON).persona == persona


def test_fallback_is_the_routes_own_else_the_personas(tmp_path: Path) -> None:
    routing = load_routing(write(tmp_path, FILE), PERSONAS)
    assert routing.route("+442071234567", NOON) == Route("clinic", True, "+442079999999")
    assert routing.route("5", NOON) == Route("bank", True, "+12065550101")
    assert routing.route("+4420", NOON) == Route("clinic", True, "")


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-06-03 07:59:59.999+00:00", False),  # a Wednesday; London is an hour ahead of UTC
        ("2026-06-03 08:00+00:00", True),
        ("2026-06-03 10:59:59+00:00", True),
        ("2026-06-03 11:00+00:00", False),
        ("2026-06-03 12:00+00:00", True),
        ("2026-06-03 16:00+00:00", False),
        ("2026-06-06 10:00+00:00", False),  # Saturday
        ("2026-12-02 08:30+00:00", False),  # winter: London is UTC
        ("2026-12-02 09:00+00:00", True),
        ("2026-12-25 10:00+00:00", False),  # closed that Friday
        ("2026-06-04 06:00+09:00", False),  # 22:00 in London
        ("2026-06-03 04:30-04:00", True),  # 09:30 in London
    ],
)
def test_hours_are_of_the_wall_clock_there(tmp_path: Path, moment: str, is_open: bool) -> None:
    routing = load_routing(write(tmp_path, FILE), PERSONAS)
    assert routing.route("+442071234567", datetime.fromisoformat(moment)).open is is_open


def test_a_time_without_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="time zone"):
        load_routing(write(tmp_path, FILE), PERSONAS).route("1", datetime(2026, 6, 3))


def hours(zone: str = "America/New_York", closed: tuple[str, ...] = (), **ranges: list[str]) -> Hours:
    days = {day.replace("_", "-"): value for day, value in ranges.items()}
    return Hours.model_validate({"time_zone": zone, "open": days, "closed": [date.fromisoformat(d) for d in closed]})


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-03-08 06:30+00:00", True),  # 01:30 EST, before the clock jumps from 2 to 3
        ("2026-03-08 07:30+00:00", False),  # 03:30 EDT
        ("2026-11-01 05:30+00:00", True),  # 01:30 EDT
        ("2026-11-01 06:30+00:00", True),  # 01:30 again, EST: the wall clock says the same
        ("2026-11-01 07:30+00:00", True),  # 02:30 EST
        ("2026-11-01 08:30+00:00", False),  # 03:30 EST
    ],
)
def test_hours_follow_the_wall_clock_through_the_changes_of_summer_time(moment: str, is_open: bool) -> None:
    assert hours(sun=["01:00-03:00"]).contains(datetime.fromisoformat(moment)) is is_open


@pytest.mark.parametrize(
    ("moment", "is_open"),
    [
        ("2026-06-05 21:59", False),  # Friday
        ("2026-06-05 22:00", True),
        ("2026-06-06 01:59", True),
        ("2026-06-06 02:00", False),
        ("2026-06-06 22:00", True),
        ("2026-06-07 01:00", True),  # Sunday, of Saturday's range
        ("2026-06-07 22:30", False),
        ("2026-06-12 22:30", False),  # closed that Friday
        ("2026-06-13 01:00", False),  # and so is the rest of its range
        ("2026-06-13 22:30", True),
    ],
)
def test_a_range_may_run_past_midnight(moment: str, is_open: bool) -> None:
    late = hours(fri_sat=["22:00-02:00"], closed=("2026-06-12",))
    assert late.contains(datetime.fromisoformat(moment).replace(tzinfo=ZoneInfo("America/New_York"))) is is_open


@given(st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)), st.sampled_from(["Asia/Kolkata", "Europe/London"]))
def test_all_day_every_day_is_always_open(moment: datetime, zone: str) -> None:
    assert hours(zone, mon_sun=["00:00-24:00"]).contains(moment.replace(tzinfo=UTC))
    assert hours(zone, sat_fri=["00:00-12:00", "12:00-00:00"]).contains(moment.replace(tzinfo=UTC))
    assert not hours(zone).contains(moment.replace(tzinfo=UTC))


@given(st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1)), st.sampled_from(DAYS), st.sampled_from(DAYS))
def test_a_range_of_days_and_the_rest_make_the_week(moment: datetime, first: str, last: str) -> None:
    local = moment.replace(tzinfo=ZoneInfo("UTC"))
    span = (DAYS.index(last) - DAYS.index(first)) % 7
    inside = (local.weekday() - DAYS.index(first)) % 7 <= span
    spec = {"time_zone": "UTC", "open": {f"{first}-{last}": ["00:00-24:00"]}}
    assert Hours.model_validate(spec).contains(local) is inside


@given(st.datetimes(datetime(2026, 1, 5), datetime(2026, 1, 11)), st.integers(0, 1439), st.integers(0, 1439))
def test_a_daily_range_and_its_opposite_make_the_day(moment: datetime, start: int, end: int) -> None:
    if start == end:
        return
    clock = [f"{m // 60:02}:{m % 60:02}" for m in (start, end)]
    inside = hours("UTC", mon_sun=["-".join(clock)]).contains(moment.replace(tzinfo=UTC))
    outside = hours("UTC", mon_sun=["-".join(reversed(clock))]).contains(moment.replace(tzinfo=UTC))
    assert inside is not outside
    assert inside is ((moment.hour * 60 + moment.minute - start) % 1440 < (end - start) % 1440)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "  persona: bank",
            "  persona: bnk",
            "2: default.persona: there is no persona bnk; known: bank, casual, clinic",
        ),
        ("  persona: bank\n", "  hours: office\n", "1: default.persona: is missing"),
        ("hours: office", "hours: ofice", "6: routes.1.hours: there are no hours ofice; known here: office"),
        ('"+44*"', '"+442071234567"', "8: routes.2.number: is given twice; it is also in routes.1"),
        ('"+44*"', "+44", '8: routes.2.number: must be in quotes: "+44"'),
        ('"+44*"', '"+44*1"', '8: routes.2.number: must be a number such as "+12065550123", or the start'),
        ('"+44*"', '"*"', '8: routes.2.number: must be a number such as "+12065550123", or the start'),
        ('"+442079999999"', '"112"', "7: routes.1.fallback: must be a full number"),
        ("Europe/London", "Europe/Londn", "16: hours.office.time_zone: is not a time zone known here; use an IANA"),
        ("Europe/London", "../passwd", "16: hours.office.time_zone: is not a time zone known here"),
        ("Europe/London", "Europe", "16: hours.office.time_zone: is not a time zone known here"),
        ("mon-fri", "mon-fry", "18: hours.office.open.mon-fry: must be a day or a range of days, such as mon-fri"),
        ("09:00-12:00", "9-12", "18: hours.office.open.mon-fri.1: must be a range of the 24-hour clock"),
        ("13:00-17:00", "13:00-25:00", "18: hours.office.open.mon-fri.2: must end at another time than it begins"),
        ("13:00-17:00", "13:00-13:00", "18: hours.office.open.mon-fri.2: must end at another time than it begins"),
        ("13:00-17:00", "13:60-17:00", "18: hours.office.open.mon-fri.2: must be a range of the 24-hour clock"),
        ("13:00-17:00", "24:00-17:00", "18: hours.office.open.mon-fri.2: must be a range of the 24-hour clock"),
        ("2026-12-25", "Christmas", "19: hours.office.closed.1: must be a date such as 2026-12-25"),
        ("2026-12-25", "20261225", "19: hours.office.closed.1: must be a date such as 2026-12-25"),
        ("routes:", "rotes: []\nroutes:", "3: rotes: unknown field; known here: default, routes, hours"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_field(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert FILE.count(old) == 1
    with pytest.raises(PersonaInvalid) as caught:
        load_routing(write(tmp_path, FILE.replace(old, new)), PERSONAS)
    (found,) = caught.value.problems
    assert found.startswith(f"{tmp_path}/routing.yaml:{problem}")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    text = FILE.replace("mon-fri", "someday").replace("Europe/London", "Mars/Base").replace('"+44*"', '"x"')
    with pytest.raises(PersonaInvalid) as caught:
        load_routing(write(tmp_path, text), PERSONAS)
    assert [problem.split(":")[1] for problem in caught.value.problems] == ["8", "16", "18"]


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(PersonaInvalid, match=r"routing.yaml:1: cannot be read"):
        load_routing(tmp_path, PERSONAS)


def test_shipped_routes_lead_to_every_persona() -> None:
    personas = load_personas(SHIPPED)
    routing = load_routing(SHIPPED, personas)
    assert {entry.persona for _, entry in routing.spec.entries()} == set(personas)
    assert routing.route("+12065550199", NOON).persona == "mars-mission"
    assert routing.route("+12065550195", NOON).persona == "casual"
    assert routing.route("+10000000", NOON + timedelta(days=1)).persona == "first-neuron-bank"
