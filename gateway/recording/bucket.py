"""An S3-compatible bucket, as recordings need it: put and verified, fetched, deleted and verified.

Owns the client (minio's, Apache-2.0) and its errors, and says each in a sentence. Everything blocks. Knows
nothing of calls: objects have names.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, BinaryIO, ParamSpec, TypeVar
from urllib.parse import urlsplit

from gateway.recording.bucket_settings import BucketSettings

if TYPE_CHECKING:
    from minio import Minio

CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
MISSING = "a bucket needs the minio client: pip install -e '.[s3]'"

_PIECE = 1 << 20
_DIGEST = "sha256"
"""The name under which an object carries its digest; S3's own tag is none for an upload in parts."""
_P = ParamSpec("_P")
_T = TypeVar("_T")


class BucketError(Exception):
    """The bucket cannot be used; the message says what it said, and if there is one, the setting to look at."""


class ObjectMissing(BucketError):
    """The bucket has no such object."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object."""

    size: int
    sha256: str
    """Hex; empty for an object that somebody else put there."""


def client_installed() -> bool:
    return importlib.util.find_spec("minio") is not None


def _in_a_sentence(method: Callable[_P, _T]) -> Callable[_P, _T]:
    """Turn what the client raises into BucketError."""

    @wraps(method)
    def told(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        from minio.error import MinioException, S3Error
        from urllib3.exceptions import HTTPError

        try:
            return method(*args, **kwargs)
        except S3Error as error:
            kind = ObjectMissing if error.code == "NoSuchKey" else BucketError
            raise kind(_sentence(error)) from None
        except (HTTPError, MinioException) as error:
            raise BucketError(f"the bucket cannot be reached: {_innermost(error)}") from None

    return told


class Bucket:
    """Raises BucketError, here when the client is not installed, in its methods as the server does."""

    def __init__(self, settings: BucketSettings) -> None:
        try:
            self._client = _client(settings)
        except ImportError:
            raise BucketError(MISSING) from None
        self._bucket = settings.bucket

    @_in_a_sentence
    def check(self) -> None:
        """Whether the bucket is there and lets us in."""
        if not self._client.bucket_exists(self._bucket):
            raise BucketError(f"there is no bucket {self._bucket}; make it, or look at CALLPLEX_S3_BUCKET")

    @_in_a_sentence
    def put(self, name: str, file: BinaryIO) -> Stored:
        """Store the whole file; on return the server has said that it has it, of this size and digest."""
        ours = measure(file)
        file.seek(0)
        self._client.put_object(self._bucket, name, file, ours.size, metadata={_DIGEST: ours.sha256})
        if self._stat(name) != ours:
            raise BucketError(f"{name} was taken, but the bucket does not have it as it was sent")
        return ours

    @_in_a_sentence
    def stat(self, name: str) -> Stored | None:
        """None if there is no such object."""
        return self._stat(name)

    @_in_a_sentence
    def fetch(self, name: str) -> BinaryIO:
        """A copy of the object in a nameless file, at its start. Raises BucketError if there is none."""
        response = self._client.get_object(self._bucket, name)
        # Closed by whoever asked for it.
        file = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            for piece in response.stream(_PIECE):
                file.write(piece)
        except BaseException:
            file.close()
            raise
        finally:
            response.close()
            response.release_conn()
        file.seek(0)
        return file

    @_in_a_sentence
    def delete(self, name: str) -> None:
        """Delete every version of the object, and look whether any is left. No error if there was none."""
        for version in self._versions(name):
            self._client.remove_object(self._bucket, name, version_id=version)
        if self._versions(name) or self._stat(name) is not None:
            raise BucketError(f"{name} is still there after it was deleted; does the bucket lock its objects?")

    def _versions(self, name: str) -> list[str | None]:
        found = self._client.list_objects(self._bucket, name, recursive=True, include_version=True)
        return [one.version_id for one in found if one.object_name == name]

    def _stat(self, name: str) -> Stored | None:
        from minio.error import S3Error

        try:
            found = self._client.stat_object(self._bucket, name)
        except S3Error as error:
            if error.code == "NoSuchKey":
                return None
            raise
        return Stored(found.size or 0, (found.metadata or {}).get(f"x-amz-meta-{_DIGEST}", ""))


def measure(file: BinaryIO) -> Stored:
    """Size and digest of a file, from its start."""
    file.seek(0)
    digest, size = hashlib.sha256(), 0
    while piece := file.read(_PIECE):
        digest.update(piece)
        size += len(piece)
    return Stored(size, digest.hexdigest())


def _client(settings: BucketSettings) -> Minio:
    import certifi
    import urllib3
    from minio import Minio

    parts = urlsplit(settings.endpoint)
    # Tries again by itself once, for a connection that the server had closed; longer waits are the caller's affair.
    pool = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
        retries=urllib3.Retry(total=1, redirect=0),
        cert_reqs="CERT_REQUIRED",
        ca_certs=certifi.where(),
        maxsize=8,
    )
    return Minio(
        parts.netloc,
        settings.key_id,
        settings.secret.get_secret_value(),
        secure=parts.scheme == "https",
        region=settings.region,
        http_client=pool,
    )


_SETTINGS = {
    "AccessDenied": "CALLPLEX_S3_KEY_ID and its rights",
    "AuthorizationHeaderMalformed": "CALLPLEX_S3_REGION",
    "InvalidAccessKeyId": "CALLPLEX_S3_KEY_ID",
    "NoSuchBucket": "CALLPLEX_S3_BUCKET",
    "SignatureDoesNotMatch": "CALLPLEX_S3_SECRET",
}


def _sentence(error: object) -> str:
    code, message = getattr(error, "code", ""), str(getattr(error, "message", "")).rstrip(".")
    look = f"; look at {_SETTINGS[code]}" if code in _SETTINGS else ""
    return f"the bucket refuses, {code}: {message}{look}"


def _innermost(error: BaseException) -> str:
    """What lies at the bottom of a chain of wrapped errors, in few words."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _innermost(reason)
    return str(error).rpartition(": ")[2] or type(error).__name__
