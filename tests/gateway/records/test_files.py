"""A call's folder and its transcript, whole or absent."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.records.files import (
    Records,
    RecordsError,
    bare_place,
    elsewhere,
    gateway_at,
    make_place,
    place_of,
    write_transcript,
    write_whole,
)

pytestmark = pytest.mark.anyio


async def test_a_call_has_a_folder_and_leaves_its_document(tmp_path: Path) -> None:
    records = Records(tmp_path)
    folder = records.folder("call_1")
    assert folder.path == tmp_path / "calls" / "call_1"
    assert not folder.path.exists()
    assert folder.recording == folder.path / "call.wav"
    document = {"call_id": "call_1", "utterances": [{"text": "Grüezi"}]}
    assert await records.finish(document) == folder.transcript
    assert json.loads(folder.transcript.read_bytes()) == document
    assert [file.name for file in folder.path.iterdir()] == ["transcript.json"]


async def test_a_document_makes_its_folder(tmp_path: Path) -> None:
    path = await Records(tmp_path).finish({"call_id": "late"})
    assert json.loads(path.read_bytes()) == {"call_id": "late"}


@pytest.mark.parametrize("call_id", ["", "../escape", "a/b", ".hidden", "x" * 200, "nul\0"])
def test_an_id_that_is_no_file_name_is_refused(tmp_path: Path, call_id: str) -> None:
    with pytest.raises(RecordsError, match="cannot name"):
        Records(tmp_path).folder(call_id)
    assert list(tmp_path.iterdir()) == []


async def test_an_unusable_disk_is_one_clear_error(tmp_path: Path) -> None:
    blocked = tmp_path / "data"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(RecordsError, match="cannot write"):
        await Records(blocked).finish({"call_id": "call_1"})


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "transcript.json"
    write_transcript(path, {"call_id": "first"})
    (tmp_path / "transcript.json.tmp").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_transcript(path, {"call_id": "second"})
    assert json.loads(path.read_bytes()) == {"call_id": "first"}


def test_records_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    write_whole(path, b"what was said")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"what was said"


def test_a_disk_keeps_its_name_whatever_its_host_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "3f2a9c")
    folder = tmp_path / "data"
    assert place_of(folder) == f"3f2a9c:{folder}"
    assert not folder.exists()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(make_place, [folder] * 16))
    place = place_of(folder)
    assert bare_place(place) == f"3f2a9c:{folder}"
    monkeypatch.setattr("socket.gethostname", lambda: "77be01")
    make_place(folder)
    assert place_of(folder) == place
    assert gateway_at(place) == f"the gateway 3f2a9c, in {folder}"
    assert [path.name for path in folder.iterdir()] == ["place"]


def test_two_disks_of_the_same_host_name_and_folder_are_told_apart(tmp_path: Path) -> None:
    folder, moved = tmp_path / "data", tmp_path / "moved"
    make_place(folder)
    first = place_of(folder)
    folder.rename(moved)
    make_place(folder)
    assert bare_place(place_of(folder)) == bare_place(first)
    assert elsewhere(first, place_of(folder))
    assert place_of(moved) == first
    for mine in ("", first, bare_place(first)):
        assert not elsewhere(mine, first)


def test_a_name_that_is_damaged_or_cannot_be_kept_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "place").write_bytes(b"\xff\xfe")
    assert bare_place(place_of(tmp_path)) == ""
    make_place(tmp_path)
    assert bare_place(place_of(tmp_path))
    assert caplog.text == ""
    for blocked in (tmp_path / "place", tmp_path / "blocked"):
        # A file where the folder should be, and a name that is there and cannot be read: it is not replaced.
        (tmp_path / "blocked" / "place").mkdir(parents=True, exist_ok=True)
        caplog.clear()
        make_place(blocked)
        assert f"cannot read or write {blocked}/place" in caplog.text
        assert place_of(blocked).endswith(f":{blocked}")
    assert (tmp_path / "blocked" / "place").is_dir()


def test_the_longest_name_fits_its_column(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200) / ("y" * 200)
    make_place(deep)
    assert len(place_of(deep)) <= 255
    assert bare_place(place_of(deep))
