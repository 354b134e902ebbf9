"""Where settings come from, which wins, and that secrets stay secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsInvalid, load_settings, masked, misspelt_variables, split_address


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


@pytest.mark.parametrize("key", ["lisen", "CALLPLEX_LISEN", "callplex_listen"])
def test_a_name_is_never_prefixed_twice(key: str) -> None:
    Path("callplex.toml").write_text(f'{key} = "127.0.0.1:1"\n')
    with pytest.raises(SettingsInvalid, match="did you mean CALLPLEX_LISTEN") as refused:
        load_settings()
    assert "CALLPLEX_CALLPLEX_" not in str(refused.value)


def test_what_others_keep_in_dotenv_is_theirs() -> None:
    Path(".env").write_text("FOO=bar\nDATABASE_URL=\nlisten=nonsense\nCALLPLEX_PORT=80\nCALLPLEX_MAX_CALLS=7\n")
    settings = load_settings()
    assert (settings.max_calls, settings.listen) == (7, "127.0.0.1:8080")


def test_a_misspelt_setting_in_dotenv_is_named() -> None:
    Path(".env").write_text("CALLPLEX_LISEN=127.0.0.1:1\n")
    with pytest.raises(SettingsInvalid, match=r"^CALLPLEX_LISEN: is no setting; did you mean CALLPLEX_LISTEN\?"):
        load_settings()


def test_a_misspelt_variable_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLPLEX_PORT", "80")
    monkeypatch.setenv("CALLPLEX_WORKR_TOKEN", "hunter2")
    load_settings()
    assert misspelt_variables() == [
        "CALLPLEX_WORKR_TOKEN is ignored: it is no setting; did you mean CALLPLEX_WORKER_TOKEN?"
    ]


@pytest.mark.parametrize("name", [".env", "callplex.toml"])
def test_a_file_that_is_no_text_is_named(name: str) -> None:
    Path(name).write_bytes(b'CALLPLEX_DATA_DIR="\xff"\n')
    with pytest.raises(SettingsInvalid, match=f"{name} is not UTF-8"):
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


def test_credentials_inside_addresses_are_masked() -> None:
    shown = masked(
        load_settings(
            webhook_url="https://user:hunter2@hooks.example/x?token=hunter2&n=1",
            chat_url="http://hunter2@127.0.0.1:8000/v1",
            public_url="https://voice.example.com",
        )
    )
    assert "hunter2" not in str(shown)
    assert shown["CALLPLEX_WEBHOOK_URL"] == "https://********@hooks.example/x?token=********&n=********"
    assert shown["CALLPLEX_CHAT_URL"] == "http://********@127.0.0.1:8000/v1"
    assert shown["CALLPLEX_PUBLIC_URL"] == "https://voice.example.com"


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


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("CONTEXT", "slide", "must be reprime or sliding"),
        ("SLOTS", "many", "must be a whole number"),
        ("WORKER_CAPACITY", "0", "must be 1 or more"),
        ("RESUME_WITHIN", "long", "must be a number"),
        ("RESUME_WITHIN", "70", "must be 60 or less"),
        ("ALLOW_UNSIGNED", "maybe", "must be true or false"),
        ("SIP_REQUESTS_PER_SECOND", "0", "must be more than 0"),
        ("LISTEN", "here", "'here' is not host:port, for example 127.0.0.1:8080"),
    ],
)
def test_a_variable_that_cannot_be_used_is_told_what_it_must_be(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"CALLPLEX_{name}", value)
    with pytest.raises(SettingsInvalid) as refused:
        load_settings()
    assert str(refused.value) == f"CALLPLEX_{name}: {sentence}"
