"""What `callplex doctor` finds of recordings: the data key, the codec, the bucket.

Looks only. Personas are passed in: how they are read is not known here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from gateway.persona_model import Persona
from gateway.recording.bucket import Bucket, BucketError, client_installed
from gateway.recording.opus import opus_installed
from gateway.settings import Settings

_PIP = f"{sys.executable} -m pip install"


class Check(NamedTuple):
    """What one check found, as the doctor's findings have it."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
    warning: bool = False


def recording_checks(settings: Settings, personas: Iterable[Persona]) -> Iterator[Check]:
    """One for each of the three that matters with these settings and personas."""
    recorded = [persona for persona in personas if persona.record]
    yield from _data_key(settings, recorded)
    yield from _codec(recorded)
    yield from _bucket(settings)


def _data_key(settings: Settings, recorded: list[Persona]) -> Iterator[Check]:
    if keys := settings.data_keys:
        older = f", {len(keys) - 1} older open what they sealed" if keys[1:] else ""
        yield Check("data_key", True, f"recordings are sealed with key {keys[0].id.hex()}{older}")
    elif recorded:
        detail = f"{_who(recorded)} recorded, and without a data key what is recorded is not encrypted"
        fix = "export CALLPLEX_DATA_KEY=$(openssl rand -base64 32)    # keep it: nothing else opens what it seals"
        yield Check("data_key", False, detail, fix, warning=True)


def _codec(recorded: list[Persona]) -> Iterator[Check]:
    wanted = [persona for persona in recorded if persona.recording.format == "opus"]
    if not wanted:
        return
    if opus_installed():
        yield Check("opus", True, f"{_who(wanted)} recorded in Opus")
    else:
        yield Check("opus", False, f"{_who(wanted)} recorded in Opus, and PyAV is not installed", f"{_PIP} 'av>=14'")


def _bucket(settings: Settings) -> Iterator[Check]:
    if not settings.s3.wanted:
        return
    if not client_installed():
        yield Check("s3", False, "a bucket is set, and its client is not installed", f"{_PIP} 'minio>=7.2'")
        return
    try:
        Bucket(settings.s3).check()
    except BucketError as error:
        yield Check("s3", False, str(error), "callplex config    # shows the S3 settings, the secret masked")
    else:
        yield Check("s3", True, f"recordings move to {settings.s3.bucket} at {settings.s3.endpoint}")


def _who(personas: list[Persona]) -> str:
    """`bank is`, `bank and 2 more are`."""
    first, more = personas[0].id, len(personas) - 1
    return f"{first} and {more} more are" if more else f"{first} is"
