"""How long calls of personas are kept whose file is gone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from gateway.records.policies import Keep, LastPolicies


def test_a_persona_that_is_gone_keeps_what_it_said_last(tmp_path: Path) -> None:
    bank, clinic = Keep(text_days=10, audio_days=5), Keep(record_days=30)
    assert LastPolicies(tmp_path).update({"bank": bank, "clinic": clinic}) == {"bank": bank, "clinic": clinic}
    longer = Keep(record_days=60)
    assert LastPolicies(tmp_path).update({"clinic": longer}) == {"bank": bank, "clinic": longer}
    assert LastPolicies(tmp_path).update({}) == {"bank": bank, "clinic": longer}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"bank": 5}', b'{"bank": {"weeks": 5}}'])
def test_a_damaged_file_is_told_and_replaced(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "retention.json").write_bytes(content)
    bank = Keep(text_days=10)
    assert LastPolicies(tmp_path).update({"bank": bank}) == {"bank": bank}
    assert "cannot be read" in caplog.text
    caplog.clear()
    assert LastPolicies(tmp_path).update({}) == {"bank": bank}
    assert caplog.text == ""


def test_a_disk_that_fails_changes_nothing_for_the_personas_there_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.ERROR):
        assert LastPolicies(tmp_path / "file").update({"bank": Keep(text_days=1)}) == {"bank": Keep(text_days=1)}
    assert "cannot write" in caplog.text
