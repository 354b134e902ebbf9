"""What `[sip]` and CALLPLEX_SIP_* take, and that an open door is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import SettingsInvalid, load_settings, masked
from gateway.sip.binding import SipUnavailable, refuse_open_door
from gateway.sip.settings import ListenAddress, SipSettings, parse_listen


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sip(**values: object) -> SipSettings:
    return SipSettings.model_validate(values)


def test_a_file_and_the_environment_which_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("callplex.toml").write_text(
        '[sip]\nlisten = "127.0.0.1:1"\nallow = "192.0.2.0/24"\n[sip.users]\nbob = "hunter2"\n'
        '[[sip.trunks]]\nname = "one"\nregistrar = "sip:sip.example.com;transport=tls"\n'
        'user = "u"\npassword = "hunter3"\n'
    )
    monkeypatch.setenv("CALLPLEX_SIP_LISTEN", "udp:127.0.0.1:5070")
    settings = load_settings()
    assert settings.sip.addresses == (ListenAddress("127.0.0.1", 5070, "udp"),)
    assert settings.sip.trunks[0].host == "sip.example.com"
    assert settings.sip.trunks[0].password.get_secret_value() == "hunter3"
    shown = masked(settings)
    assert shown["CALLPLEX_SIP_LISTEN"] == "udp:127.0.0.1:5070"
    assert shown["CALLPLEX_SIP_USERS"] == "bob:********"
    assert "hunter" not in str(shown) + repr(settings)


def test_listening_addresses() -> None:
    assert parse_listen("127.0.0.1:5060, tls:[::1]:5061") == (
        ListenAddress("127.0.0.1", 5060, "udp"),
        ListenAddress("127.0.0.1", 5060, "tcp"),
        ListenAddress("::1", 5061, "tls"),
    )
    assert parse_listen("") == ()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LISTEN", "5060", "is not an address and port"),
        ("LISTEN", "udp:127.0.0.1:1,udp:127.0.0.1:2", "one address only"),
        ("LISTEN", "sctp:127.0.0.1:5060", "is not an address and port"),
        ("ALLOW", "everybody", "is not an address or network"),
        ("RTP_PORTS", "10000", "is not a range"),
        ("RTP_PORTS", "20000-10000", "is not a range"),
        ("DIAL", "sip:person@example.com", "lacks {number}"),
        ("DIAL", "{number}", "is not like"),
        ("PUBLIC_ADDRESS", "example", "is not an IP address"),
        ("NUMBER_FROM", "a b", "name of a header field"),
        ("TRUNKS", '[{"name":"a","registrar":"example.com"}]', "is not an address such as"),
        ("TRUNKS", '[{"name":"a"}]', "entry 1, registrar: is missing"),
        ("TRUNKS", '[{"name":"a","registrar":"sip:h","pasword":"x"}]', "entry 1, pasword: is no field"),
        ("NOTHING", "1", ""),
    ],
)
def test_what_is_refused_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(f"CALLPLEX_SIP_{name}", value)
    with pytest.raises(SettingsInvalid, match=f"CALLPLEX_SIP_{name}.*{said}"):
        load_settings()


def test_what_should_be_a_table_and_is_none() -> None:
    Path("callplex.toml").write_text("sip = 5\n")
    with pytest.raises(SettingsInvalid, match=r"CALLPLEX_SIP: must be a table, such as \[sip\]"):
        load_settings()


def test_tls_needs_a_certificate() -> None:
    with pytest.raises(ValueError, match="tls_cert"):
        sip(listen="tls:127.0.0.1:5061")


def test_beyond_this_machine_somebody_must_be_named() -> None:
    with pytest.raises(SipUnavailable, match=r"CALLPLEX_SIP_ALLOW.*\[sip\.users\].*127\.0\.0\.1"):
        refuse_open_door(sip(listen="127.0.0.1:5060,tls:0.0.0.0:5061", tls_cert="c", tls_key="k"))
    refuse_open_door(sip(listen="0.0.0.0:5060", allow="192.0.2.0/24"))
    refuse_open_door(sip(listen="0.0.0.0:5060", users={"bob": "secret"}))
    refuse_open_door(sip(listen="127.0.0.1:5060"))
    refuse_open_door(sip(listen=""))
