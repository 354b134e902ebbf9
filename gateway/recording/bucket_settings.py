"""What can be set of the bucket that recordings move to: `[s3]` in callplex.toml, or `CALLPLEX_S3_*`.

Owns the fields and what makes them valid together. Reads nothing itself: `gateway.settings` does.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator


class BucketSettings(BaseModel):
    """An S3-compatible bucket; without an endpoint there is none, and recordings stay in DATA_DIR."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    endpoint: str = Field("", description="its server, such as https://s3.eu-central-1.amazonaws.com")
    bucket: str = Field("", description="its name; it must exist")
    region: str = Field("us-east-1", description="the bucket's region; most servers but Amazon's take any")
    key_id: str = Field("", description="access key id")
    secret: SecretStr = Field(SecretStr(""), description="secret access key")

    @field_validator("endpoint")
    @classmethod
    def _server(cls, value: str) -> str:
        parts = urlsplit(value)
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/")):
            raise ValueError(f"{value!r} is not a server's URL, for example https://s3.eu-central-1.amazonaws.com")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _all_or_none(self) -> BucketSettings:
        named = {"endpoint": self.endpoint, "bucket": self.bucket, "key_id": self.key_id}
        named["secret"] = self.secret.get_secret_value()
        missing = [f"CALLPLEX_S3_{name.upper()}" for name, value in named.items() if not value]
        if missing and len(missing) < len(named):
            raise ValueError(f"a bucket needs {', '.join(missing)} too")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is a bucket."""
        return bool(self.endpoint)
