"""Pages of calls and searches, on both databases."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.records.calls import CallFilter, QueryInvalid, document_of, find
from gateway.records.database import Database
from gateway.records.portion import Portion
from gateway.records.storing import store
from gateway.transcript import Utterance
from tests.gateway.records.made_up import NOON, end, start

pytestmark = pytest.mark.anyio


async def keep(database: Database, call_id: str, said: str = "Hello.", live: bool = False, **values: Any) -> None:
    reason = values.pop("reason", "caller_hangup")
    begun = start(call_id, **values)
    over = None if live else end(begun, (Utterance(1, "caller", said, 0.0, 1.0),), reason)
    async with database.begin() as connection:
        await store(connection, "here", [Portion(begun, True, end=over)])


async def found(database: Database, limit: int = 50, **wanted: Any) -> list[str]:
    """Ids on all pages."""
    ids: list[str] = []
    after = ""
    async with database.read() as connection:
        while True:
            page = await find(connection, CallFilter(**wanted), after, limit)
            assert len(page.calls) <= limit
            ids += [row["id"] for row in page.calls]
            after = page.next
            if not after:
                return ids


async def test_pages_hold_every_call_once_newest_first(database: Database) -> None:
    for number in range(10):
        await keep(database, f"c{number}", started_at=NOON + number // 3)
    expected = ["c9", "c8", "c7", "c6", "c5", "c4", "c3", "c2", "c1", "c0"]
    for limit in (1, 3, 10, 50):
        assert await found(database, limit) == expected
        assert await found(database, limit, number="+15550199") == expected
        assert await found(database, limit, words="hello") == expected


async def test_filters_add_up(database: Database) -> None:
    await keep(database, "a", started_at=NOON, persona="bank", from_number="+1", reason="transfer")
    await keep(database, "b", started_at=NOON + 1, persona="bank", to_number="+1")
    await keep(database, "c", started_at=NOON + 2, persona="clinic", from_number="+1", to_number="+1")
    await keep(database, "d", started_at=NOON + 3, persona="clinic", live=True)
    assert await found(database, number="+1") == ["c", "b", "a"]
    assert await found(database, number="+1", persona="bank") == ["b", "a"]
    assert await found(database, end_reason="transfer") == ["a"]
    assert await found(database, state="live") == ["d"]
    assert await found(database, since=NOON + 1, until=NOON + 3) == ["c", "b"]
    assert await found(database, number="+9") == []


async def test_words_are_found_wherever_they_were_said(database: Database) -> None:
    await keep(database, "a", "My card was declined in Miami, at O'Hare.")
    await keep(database, "b", "The Card is lost.", persona="clinic")
    await keep(database, "c", "Nothing of that.")
    assert await found(database, words="card") == ["b", "a"]
    assert await found(database, words="CARD miami") == ["a"]
    assert await found(database, words="card", persona="clinic") == ["b"]
    assert await found(database, words='"card* OR -') == []
    assert await found(database, words="miami", number="+15550199") == ["a"]


async def test_a_call_that_ends_again_is_found_by_its_last_words(database: Database) -> None:
    await keep(database, "a", "first")
    await keep(database, "a", "second")
    assert await found(database, words="first") == []
    assert await found(database, words="second") == ["a"]


@pytest.mark.parametrize("after", ["x", "é", "!!!!", "bm9uZSBvZiBvdXJz"])
@pytest.mark.parametrize("words", ["", "hello"])
async def test_a_made_up_cursor_is_refused(database: Database, after: str, words: str) -> None:
    async with database.read() as connection:
        with pytest.raises(QueryInvalid, match="cursor is none of ours"):
            await find(connection, CallFilter(words=words), after)


async def test_a_text_without_words_is_refused(database: Database) -> None:
    async with database.read() as connection:
        with pytest.raises(QueryInvalid, match="has no words"):
            await find(connection, CallFilter(words="?!"))


async def test_a_call_of_an_older_version_does_not_say_that_nothing_was_lost(database: Database) -> None:
    await keep(database, "old")
    async with database.read() as connection:
        row = dict((await find(connection, CallFilter())).calls[0])
    row["metrics"] = {"frames_in": 7, "frames_lost": 1, "of_a_later_version": 3}
    metrics = document_of(row, [])["metrics"]
    assert (metrics["frames_in"], metrics["frames_lost"]) == (7, 1)
    assert not {"agent_frames_lost", "agent_frames_late", "of_a_later_version"} & set(metrics)
