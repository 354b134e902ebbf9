"""A month of calls in the database, and how long its pages take: `callplex bench records`.

Makes up calls in a fresh database, then asks for pages as the API does. Figures are milliseconds for the
median and the 99th percentile, of the query with its rows.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from typing import Any

import sqlalchemy as sa
import typer

from gateway.records.calls import CallFilter, find
from gateway.records.database import Database, DatabaseInvalid, DatabaseUnavailable
from gateway.records.portion import CallEnd, CallStart, Portion
from gateway.records.storing import store
from gateway.records.tables import calls
from gateway.transcript import Utterance

MONTH = 30 * 86_400.0
BEGAN = 1_790_000_000.0
TURNS = 12
BATCH = 500
WORDS = (  # noqa: SIM905
    "thank you for calling how can I help my card was declined in the store yesterday please hold while look "
    "that up account balance payment appointment doctor refill prescription hours open branch transfer person"
).split()
RARE = 2_000
"""Different rare words, each in few calls: names, places, products."""
LIMIT_MS = 50.0


def bench_records(*, count: int, rounds: int, url: str, json_output: bool) -> int:
    """Make `count` calls, time pages, print; 0 if every 99th percentile is under 50 ms, else 1."""
    with tempfile.TemporaryDirectory(prefix="callplex-bench-") as folder:
        place = url or f"sqlite:///{folder}/callplex.sqlite3"
        try:
            figures = asyncio.run(_measure(place, count, rounds))
        except (DatabaseInvalid, DatabaseUnavailable) as error:
            typer.echo(f"callplex: {error}", err=True)
            return 1
    if json_output:
        typer.echo(json.dumps(figures))
    else:
        typer.echo(f"{figures['calls']} calls on {figures['database']}, made in {figures['made_seconds']:.0f} s")
        for name, page in figures["pages"].items():
            typer.echo(
                f"  {name:28} {page['median_ms']:7.2f} ms median {page['p99_ms']:7.2f} ms p99  {page['rows']} rows"
            )
    return 0 if all(page["p99_ms"] < LIMIT_MS for page in figures["pages"].values()) else 1


async def _measure(url: str, count: int, rounds: int) -> dict[str, Any]:
    async with Database.open(url) as database:
        async with database.read() as connection:
            if await connection.scalar(sa.select(sa.func.count()).select_from(calls)):
                raise DatabaseInvalid("the benchmark fills a database with made-up calls: name one that is empty")
        began = time.perf_counter()
        await _fill(database, count)
        made = time.perf_counter() - began
        pages = {name: await _time(database, wanted, deep, rounds) for name, (wanted, deep) in _questions().items()}
        return {"database": database.dialect, "calls": count, "made_seconds": round(made, 1), "pages": pages}


def _questions() -> dict[str, tuple[CallFilter, bool]]:
    """What is asked, and whether a page in the middle is wanted rather than the first."""
    middle = BEGAN + MONTH / 2
    return {
        "newest": (CallFilter(), False),
        "hundredth page": (CallFilter(), True),
        "one caller": (CallFilter(number="+15550000042"), False),
        "our number, every call": (CallFilter(number="+15550100"), False),
        "one persona": (CallFilter(persona="persona-3"), False),
        "a rare end reason": (CallFilter(end_reason="lost"), False),
        "a day": (CallFilter(since=middle, until=middle + 86_400), False),
        "persona and end reason": (CallFilter(persona="persona-3", end_reason="lost"), False),
        "a word of every call": (CallFilter(words="declined"), False),
        "a rare word": (CallFilter(words="rare77"), False),
        "three words": (CallFilter(words="declined card rare77"), False),
        "a word and a persona": (CallFilter(words="declined", persona="persona-3"), False),
    }


async def _time(database: Database, wanted: CallFilter, deep: bool, rounds: int) -> dict[str, float]:
    taken: list[float] = []
    after, rows = "", 0
    if deep:
        for _ in range(100):
            async with database.read() as connection:
                after = (await find(connection, wanted, after)).next
    for _ in range(rounds):
        began = time.perf_counter()
        async with database.read() as connection:
            rows = len((await find(connection, wanted, after)).calls)
        taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    p99 = taken[min(len(taken) - 1, int(len(taken) * 0.99))]
    return {"median_ms": round(statistics.median(taken), 2), "p99_ms": round(p99, 2), "rows": rows}


async def _fill(database: Database, count: int) -> None:
    chance = random.Random(1)
    for first in range(0, count, BATCH):
        portions = [_portion(chance, number, count) for number in range(first, min(first + BATCH, count))]
        async with database.begin() as connection:
            await store(connection, "bench", portions)
    if database.dialect == "postgresql":
        # As its autovacuum does by itself. SQLite has no statistics unless somebody asks for them.
        async with database.begin() as connection:
            await connection.execute(sa.text("ANALYZE"))


def _portion(chance: random.Random, number: int, count: int) -> Portion:
    started = BEGAN + MONTH * number / count
    start = CallStart(
        f"call-{number:08}",
        "twilio",
        f"CA{number:032}",
        "inbound",
        f"+1555{number % 20_000:07}",
        "+15550100",
        f"persona-{number % 7}",
        "0123456789ab",
        "",
        started,
    )
    said = [_turn(chance, place) for place in range(TURNS)]
    reason = "lost" if number % 1_000 == 0 else chance.choice(("caller_hangup", "agent_goodbye", "transfer"))
    return Portion(start, True, end=CallEnd(started + 90, reason, {"metrics": {}}, said, engine="bench"))


def _turn(chance: random.Random, place: int) -> Utterance:
    words = [*chance.choices(WORDS, k=10), "declined" if place == 3 else f"rare{chance.randrange(RARE)}"]
    return Utterance(place + 1, "caller" if place % 2 else "agent", " ".join(words), place * 6.0, place * 6.0 + 4)
