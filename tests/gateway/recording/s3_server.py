"""A real S3 server on this machine: moto's, a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

from minio import Minio
from pydantic import SecretStr

from gateway.recording.bucket_settings import BucketSettings


@contextlib.contextmanager
def running_s3() -> Iterator[str]:
    """Its endpoint, such as http://127.0.0.1:41234; it keeps everything in memory."""
    command = [sys.executable, "-W", "ignore", "-u", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if found := re.search(r"Running on (http://127\.0\.0\.1:\d+)", line):
                    yield found[1]
                    break
            else:
                raise AssertionError("the S3 server did not start")
        finally:
            server.terminate()


def settings(endpoint: str, bucket: str) -> BucketSettings:
    return BucketSettings(
        endpoint=endpoint, bucket=bucket, region="us-east-1", key_id="key", secret=SecretStr("secret")
    )


def admin(endpoint: str) -> Minio:
    """A client to look into the server with."""
    return Minio(endpoint.removeprefix("http://"), "key", "secret", secure=False, region="us-east-1")
