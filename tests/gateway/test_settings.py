"""Where settings come from, which wins, and that secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsInvalid, load_settings, masked, split_address


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CALLPLEX_{name.upper()}", raising=False)


def test_the_environment_wins_over_dotenv_and_that_over_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("callplex.toml").write_text('listen = "127.0.0.1:1"\nadmin_listen = "127.0.0.1:2"\nmax_calls = 3\n')
    Path(".env").write_text("CALLPLEX_LISTEN=127.0.0.1:11\nCALLPLEX_ADMIN_LISTEN=127.0.0.1:12\n")
    monkeypatch.setenv("CALLPLEX_LISTEN", "127.0.0.1:21")
    settings = load_settings()
    assert (settings.listen, settings.admin_listen, settings.max_calls) == ("127.0.0.1:21", "127.0.0.1:12", 3)


def test_a_misspelt_setting_is_named() -> None:
    Path("callplex.toml").write_text('lisen = "127.0.0.1:1"\n')
    with pytest.raises(SettingsInvalid, match="CALLPLEX_LISEN"):
        load_settings()


def test_a_file_that_is_no_toml_is_named() -> None:
    Path("callplex.toml").write_text("listen = \n")
    with pytest.raises(SettingsInvalid, match=r"callplex\.toml"):
        load_settings()


def test_secrets_are_masked_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPLEX_TWILIO_AUTH_TOKEN", "hunter2")
    settings = load_settings()
    shown = masked(settings)
    assert shown["CALLPLEX_TWILIO_AUTH_TOKEN"] == "********"
    assert shown["CALLPLEX_WORKER_TOKEN"] == ""
    assert "hunter2" not in repr(settings) + str(shown)


def test_without_a_token_only_this_machine_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().loopback_only
    assert not load_settings(allow_unsigned=True).loopback_only
    monkeypatch.setenv("CALLPLEX_TWILIO_AUTH_TOKEN", "t")
    assert not load_settings().loopback_only


@pytest.mark.parametrize(
    ("text", "expected"), [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:8080", ("::1", 8080)), ("gw:0", ("gw", 0))]
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert split_address(text) == expected


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "host:http", "host:70000"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_address(text)
