"""A call's folder and its transcript, whole or absent."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from gateway.records.files import Records, RecordsError, write_transcript, write_whole

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
