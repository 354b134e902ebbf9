"""Everything that can be set from outside, in one frozen class. No other file reads the environment.

Sources, the first that names a value wins: environment (`CALLPLEX_*`), `.env`, `callplex.toml`.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import tomllib
from base64 import b64decode
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import BaseModel, Field, SecretStr, ValidationError, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from gateway.recording.bucket_settings import BucketSettings
from gateway.recording.seal import DataKey, data_keys
from gateway.sip.settings import SipSettings

PREFIX = "CALLPLEX_"
DOTENV, TOML = ".env", "callplex.toml"
OTHERS = frozenset({"CALLPLEX_PORT"})
"""Variables with our prefix that others read: docker-compose.yml's port on the host."""

MASK = "********"
_SENTENCES = {
    "missing": "is missing",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "greater_than_equal": "must be {ge:g} or more",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be {le:g} or less",
    "literal_error": "must be {expected}",
}
"""What a value must be, by the type of pydantic's error."""


class SettingsInvalid(Exception):
    """A setting cannot be used; the message names its variable and says what it must be."""

    def __init__(self, message: str, setting: str = "", fault: str = "") -> None:
        """`setting`: the field whose value cannot be used, and `fault`: what is wrong with it; of values alone."""
        super().__init__(message)
        self.setting = setting
        self.fault = fault


class Settings(BaseSettings):
    """The gateway's and the worker's settings; field names are the variables without `CALLPLEX_`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        env_file=DOTENV,
        toml_file=TOML,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    listen: str = Field("127.0.0.1:8080", description="where carriers reach us, host:port")
    admin_listen: str = Field("127.0.0.1:8081", description="metrics, API and console, host:port")
    public_url: str = Field("", description="https URL under which the carrier reaches LISTEN")
    trusted_proxies: str = Field("", description="comma list of proxy addresses whose forwarding headers count")
    twilio_auth_token: SecretStr = Field(SecretStr(""), description="checks X-Twilio-Signature")
    twilio_account_sid: str = Field(
        "", description="with the auth token: ends by REST the calls whose stream may be dead"
    )
    twilio_api_url: str = Field("https://api.twilio.com", description="Twilio's REST endpoint")
    telnyx_public_key: str = Field("", description="checks telnyx-signature-ed25519; empty: no calls from Telnyx")
    allow_unsigned: bool = Field(False, description="serve unsigned requests from anywhere; for trials only")
    data_dir: Path = Field(Path("data"), description="calls, recordings, the database")
    data_key: SecretStr = Field(
        SecretStr(""), description="encrypts recordings: base64 of 32 bytes; older keys may follow, after commas"
    )
    s3: BucketSettings = Field(
        BucketSettings.model_validate({}), description="the bucket that recordings move to, `[s3]` in callplex.toml"
    )
    database_url: str = Field("", description="postgresql://... or sqlite:///FILE; empty: callplex.sqlite3 in DATA_DIR")
    personas: Path = Field(Path("personas"), description="folder of persona files and routing.yaml")
    workers: str = Field("local", description="`local`, or a comma list of ws:// or wss:// URLs")
    resume_within: float | None = Field(
        None,
        ge=0,
        le=60,
        description="seconds a call whose worker is lost waits, in silence, for one that takes it;"
        " empty: 8 for a local worker, which is started again, 2 for others",
    )
    engine: Literal["rehearsal", "echo", "personaplex"] = Field("rehearsal", description="what a local worker runs")
    embedded_echo: bool = Field(False, description="answer with the echo engine inside the gateway; for load tests")
    embedded_echo_words: bool = Field(False, description="that engine makes up what both sides say, too")
    worker_listen: str = Field("127.0.0.1:8090", description="where `callplex worker` listens, host:port")
    worker_token: SecretStr = Field(SecretStr(""), description="shared secret of gateway and worker")
    worker_capacity: int = Field(4, ge=1, le=4096, description="calls one worker holds at once")
    slots: int = Field(0, ge=0, description="calls a personaplex worker holds at once; 0: as many as it can")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="what the personaplex engine runs on")
    context: Literal["reprime", "sliding"] = Field(
        "reprime", description="what a long call keeps: its prompt and newest frames, or the newest frames alone"
    )
    kv_dtype: Literal["auto", "float32", "bf16", "fp8"] = Field("auto", description="how keys and values are kept")
    weights_dtype: Literal["auto", "fp8"] = Field(
        "auto", description="how the model's matrices are kept: fp8 for a small card"
    )
    transcriber: Literal["whisper", "none"] = Field("whisper", description="what hears the caller's words")
    worker_tls_cert: Path | None = Field(None, description="certificate chain of a worker off loopback, PEM")
    worker_tls_key: Path | None = Field(None, description="private key of a worker off loopback, PEM")
    moshi_origins: str = Field("", description="web pages that may open sessions at a worker's /api/chat, comma list")
    weights_dir: Path | None = Field(None, description="folder with model weights; else installed packages")
    chat_url: str = Field("", description="OpenAI-compatible chat endpoint for the rehearsal engine")
    chat_model: str = Field("", description="model name sent to the chat endpoint")
    chat_key: SecretStr = Field(SecretStr(""), description="bearer key of the chat endpoint")
    webhook_url: str = Field("", description="where call.ended is posted")
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="Standard Webhooks secret, whsec_...; two, parted by a space, while one is replaced"
    )
    webhook_allow: str = Field("", description="comma list of addresses the webhook may have that are not public")
    max_calls: int = Field(1000, ge=1, description="calls the gateway takes at once")
    sip: SipSettings = Field(SipSettings.model_validate({}), description="the SIP endpoint, `[sip]` in callplex.toml")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="what is logged")

    @field_validator("listen", "admin_listen", "worker_listen")
    @classmethod
    def _host_port(cls, value: str) -> str:
        split_address(value)
        return value

    @field_validator("data_key")
    @classmethod
    def _keys(cls, value: SecretStr) -> SecretStr:
        data_keys(value.get_secret_value())
        return value

    @field_validator("worker_tls_cert", "worker_tls_key", "weights_dir", "resume_within", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("public_url")
    @classmethod
    def _base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (
            parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname or parts.query or parts.fragment
        ):
            raise ValueError(f"{value!r} is not a base URL, for example https://voice.example.com")
        return value.rstrip("/")

    @field_validator("trusted_proxies", "webhook_allow")
    @classmethod
    def _networks(cls, value: str) -> str:
        for item in filter(None, (part.strip() for part in value.split(","))):
            try:
                ipaddress.ip_network(item, strict=False)
            except ValueError:
                raise ValueError(f"{item!r} is not an address or network, for example 10.0.0.0/8") from None
        return value

    @field_validator("telnyx_public_key")
    @classmethod
    def _ed25519_key(cls, value: str) -> str:
        try:
            known = not value or len(b64decode(value, validate=True)) == 32
        except ValueError:
            known = False
        if not known:
            raise ValueError("the public key must be base64 of 32 bytes, as Telnyx's portal shows it")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _DotEnv(settings_cls), TomlConfigSettingsSource(settings_cls)

    @property
    def data_keys(self) -> tuple[DataKey, ...]:
        """The first seals what is kept, all of them open it; empty: nothing is sealed."""
        return data_keys(self.data_key.get_secret_value())

    @property
    def loopback_only(self) -> bool:
        """No way to check signatures, so only callers on this machine are served."""
        return not self.twilio_auth_token.get_secret_value() and not self.allow_unsigned


def split_address(value: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` -> (host, port). Raises ValueError with a sentence."""
    host, separator, port = value.rpartition(":")
    if not separator or not host or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{value!r} is not host:port, for example 127.0.0.1:8080")
    return host.strip("[]"), int(port)


class _DotEnv(DotEnvSettingsSource):
    """`.env`, which we share with docker compose and others: names without our prefix are not for us."""

    def __call__(self) -> dict[str, Any]:
        for name, message in _unknown(self.env_vars):
            raise SettingsInvalid(f"{name}: {message} (in {DOTENV})")
        fields = self.settings_cls.model_fields
        return {name: value for name, value in super().__call__().items() if name in fields}


def load_settings(**overrides: object) -> Settings:
    """Read the settings. Raises SettingsInvalid naming the variable that is wrong and why."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]
    except tomllib.TOMLDecodeError as error:
        raise SettingsInvalid(f"{TOML} cannot be read: {error}") from None
    except ValidationError as error:
        raise _what_is_wrong(error) from None
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsInvalid(_unreadable(error)) from None


def _what_is_wrong(error: ValidationError) -> SettingsInvalid:
    """The first fault, under the name of its variable; of a list's entry, which one and which of its fields."""
    first = error.errors(include_url=False, include_input=False)[0]
    loc = first["loc"]
    entry = next((place for place, part in enumerate(loc) if isinstance(part, int)), len(loc))
    name = "_".join(str(part) for part in loc[:entry]).upper().removeprefix(PREFIX)
    message = _must_be(first)
    if first["type"] in ("model_type", "dict_type"):
        message = f"must be a table, such as [{name.lower()}] in {TOML}"
    elif first["type"] == "extra_forbidden":
        message = "is no field" if loc[entry:] else _no_setting(name) + f" (in {TOML}, where names have no {PREFIX})"
    if loc[entry:]:
        where = ", ".join(str(part + 1) if isinstance(part, int) else str(part) for part in loc[entry:])
        return SettingsInvalid(f"{PREFIX}{name}, entry {where}: {message}")
    return SettingsInvalid(f"{PREFIX}{name}: {message}", name.lower(), message)


def _must_be(fault: ErrorDetails) -> str:
    """What a value must be, in words that do not tell of pydantic."""
    if sentence := _SENTENCES.get(fault["type"]):
        return sentence.format(**fault.get("ctx", {})).replace("'", "")
    return fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1)


def named_secret(settings: Settings, name: str) -> str:
    """The value of a variable that a file names: a setting, or any other of the environment or `.env`; else empty."""
    if name.startswith(PREFIX):
        value = getattr(settings, name.removeprefix(PREFIX).lower(), "")
        return value.get_secret_value() if isinstance(value, SecretStr) else ""
    return os.environ.get(name) or dotenv_values(DOTENV).get(name) or ""


def misspelt_variables() -> list[str]:
    """A sentence for each variable of the environment that looks like ours and is none."""
    return [f"{name} is ignored: it {message}" for name, message in _unknown(os.environ)]


def _unknown(names: Iterable[str]) -> list[tuple[str, str]]:
    found = sorted(name for name in map(str.upper, names) if name.startswith(PREFIX) and name not in OTHERS)
    known = _names()
    ours = [(name, name.removeprefix(PREFIX)) for name in found]
    return [(name, _no_setting(short)) for name, short in ours if short.lower() not in known]


def _names() -> list[str]:
    nested = (("sip", SipSettings), ("s3", BucketSettings))
    return [*Settings.model_fields, *(f"{prefix}_{name}" for prefix, model in nested for name in model.model_fields)]


def _no_setting(name: str) -> str:
    near = difflib.get_close_matches(name.lower().removeprefix(PREFIX.lower()), _names(), 1)
    return "is no setting" + (f"; did you mean {PREFIX}{near[0].upper()}?" if near else "")


def _unreadable(error: UnicodeDecodeError | OSError) -> str:
    """Which of the files cannot be read, and why."""
    for name in (DOTENV, TOML):
        try:
            Path(name).read_text("utf-8")
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            return f"{name} is not UTF-8; save it as UTF-8 text"
        except OSError as reason:
            return f"{name} cannot be read: {reason.strerror or reason}"
    return f"the settings cannot be read: {error}"


def masked(settings: Settings) -> dict[str, str]:
    """The effective settings as text under their variables' names; secrets show only that they are set."""
    shown: dict[str, str] = {}
    _show(settings, PREFIX, shown)
    return shown


def _show(settings: BaseModel, prefix: str, shown: dict[str, str]) -> None:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            _show(value, f"{prefix}{name.upper()}_", shown)
            continue
        if isinstance(value, SecretStr):
            value = MASK if value.get_secret_value() else ""
        elif isinstance(value, tuple):
            value = ", ".join(str(getattr(one, "name", one)) for one in value)
        elif isinstance(value, dict):
            value = ", ".join(f"{key}:{MASK}" for key in value)
        elif name.endswith("_url"):
            value = _without_credentials(value)
        shown[prefix + name.upper()] = "" if value is None else str(value)


def _without_credentials(url: str) -> str:
    """A URL whose user, password and query values are masked."""
    address, separator, query = url.partition("?")
    address = re.sub(r"(?<=//)[^/]*@", f"{MASK}@", address)
    return address + separator + re.sub(r"(?<==)[^&#]+", MASK, query)
