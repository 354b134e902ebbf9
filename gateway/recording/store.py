"""Where recordings are once their calls are over: in the data folder, or in a bucket that they move to.

Owns their names, the move, and deletion with its proof. A recording lies in the folder until the bucket has it,
whatever happens in between: what still lies there is what still has to move, and that is looked up again
at every start. A name is the same in both places, so that nothing need be written down when it moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gateway.recording.bucket import Bucket, BucketError, ObjectMissing, Stored, measure
from gateway.recording.file import lock
from gateway.recording.seal import SUFFIX
from gateway.settings import Settings

log = logging.getLogger(__name__)

FILES = tuple(f"call.{kind}{sealed}" for kind in ("wav", "opus") for sealed in ("", SUFFIX))
MOVES_AT_ONCE = 4
FIRST_RETRY = 2.0
LAST_RETRY = 300.0
"""Seconds after which a bucket that failed is tried again: doubled from the first to the last."""
LOOK_AGAIN = 900.0
"""Seconds after which the folder is looked through for what others left behind, such as a gateway that died."""


class StoreError(Exception):
    """A recording cannot be fetched or deleted; the message says which and why."""


class NotHere(StoreError):
    """The recording is neither in this folder nor in the bucket, if there is one."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """The proof that a recording is gone: what it was, when it was deleted, and that it was looked for after that."""

    name: str
    at: float
    """Seconds since 1970."""
    size: int
    """Bytes as they were stored; 0 if it had been gone before."""
    sha256: str
    places: tuple[str, ...]
    """Where it was: folder, bucket, both while it moves, neither."""
    gone: bool = True

    def detail(self) -> dict[str, Any]:
        """For the audit log."""
        return {**asdict(self), "places": list(self.places)}


def configured_store(settings: Settings) -> RecordingStore:
    """The recordings where the settings say they are. Raises BucketError if the bucket's client is not installed."""
    return RecordingStore(settings.data_dir, Bucket(settings.s3) if settings.s3.wanted else None)


class RecordingStore:
    """The recordings under `data_dir`, and those in the bucket. All methods block but `run` and `ended`."""

    def __init__(self, data_dir: Path, bucket: Bucket | None = None) -> None:
        self._root = data_dir
        self._bucket = bucket
        self._waiting: set[str] = set()
        self._wake = asyncio.Event()

    def name(self, path: Path) -> str:
        """What a recording in the folder is called, here and in the records: calls/<call id>/call.wav."""
        return path.relative_to(self._root).as_posix()

    def open(self, name: str) -> BinaryIO:
        """The recording's bytes, seekable, wherever they are. Raises StoreError."""
        try:
            return self._path(name).open("rb")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"{name} cannot be read: {error.strerror}") from None
        if self._bucket is None:
            raise NotHere(f"{name} is not in {self._root}, and no bucket is set")
        try:
            return self._bucket.fetch(name)
        except ObjectMissing as error:
            raise NotHere(f"{name} is not in {self._root}, and {error}") from None
        except BucketError as error:
            raise StoreError(f"{name} is not in {self._root}, and {error}") from None

    def delete(self, name: str, now: float) -> Deletion:
        """Delete the recording wherever it is, and look whether it is gone. One that is gone already is no error.

        Raises StoreError if it cannot be deleted now: its call still runs, it is just moving, the bucket fails.
        """
        path, places = self._path(name), []
        was = Stored(0, "")
        try:
            with lock(path) as file:
                was = measure(file)
                path.unlink()
                places.append("folder")
        except FileNotFoundError:
            pass
        except BlockingIOError:
            raise StoreError(f"{name} is still being recorded or moved; try again later") from None
        except OSError as error:
            raise StoreError(f"{name} cannot be deleted: {error.strerror}") from None
        if self._bucket is not None:
            try:
                if (stored := self._bucket.stat(name)) is not None:
                    was = stored
                    places.append("bucket")
                self._bucket.delete(name)
            except BucketError as error:
                raise StoreError(f"{name} may still be in the bucket: {error}") from None
        return Deletion(name, now, was.size, was.sha256, tuple(places), gone=not path.exists())

    def local(self) -> Iterator[str]:
        """The names of all recordings in the folder, those of running calls included."""
        for path in self._root.glob("calls/*/call.*"):
            if path.name in FILES:
                yield self.name(path)

    def ended(self, name: str) -> None:
        """A call is over: its recording may move, if it is here. Does not wait."""
        self._waiting.add(name)
        self._wake.set()

    async def run(self) -> None:
        """Move what has ended, and what earlier runs left, until cancelled. Returns at once without a bucket."""
        if self._bucket is None:
            return
        threads = ThreadPoolExecutor(MOVES_AT_ONCE, thread_name_prefix="bucket")
        loop = asyncio.get_running_loop()
        look_at = loop.time()
        failures = 0
        try:
            while True:
                self._wake.clear()
                if loop.time() >= look_at:
                    look_at = loop.time() + LOOK_AGAIN
                    self._waiting.update(await loop.run_in_executor(threads, list, self.local()))
                if await self._move_waiting(self._bucket, threads):
                    failures += 1
                    await asyncio.sleep(min(FIRST_RETRY * 2 ** (failures - 1), LAST_RETRY))
                    continue
                failures = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(look_at):
                        await self._wake.wait()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _move_waiting(self, bucket: Bucket, threads: ThreadPoolExecutor) -> bool:
        """Try each once; whether any failed. Those that did wait on."""
        loop = asyncio.get_running_loop()
        names = sorted(self._waiting)
        self._waiting.clear()
        problems = await asyncio.gather(*(loop.run_in_executor(threads, self._move, bucket, name) for name in names))
        failed = {name: problem for name, problem in zip(names, problems, strict=True) if problem}
        if failed:
            self._waiting.update(failed)
            why = next(iter(failed.values()))
            log.error("%d recordings wait in %s for the bucket: %s", len(failed), self._root, why)
        return bool(failed)

    def _move(self, bucket: Bucket, name: str) -> str:
        """In a thread. Returns why it failed; empty: it moved, or there is nothing to move now."""
        path = self._path(name)
        try:
            with lock(path) as file:
                bucket.put(name, file)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            return ""
        except BucketError as error:
            return str(error)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        return ""

    def _path(self, name: str) -> Path:
        """Raises StoreError for a name that is none of ours, so that no record can lead elsewhere."""
        parts = name.split("/")
        if len(parts) != 3 or parts[0] != "calls" or parts[1] in ("", ".", "..") or parts[2] not in FILES:
            raise StoreError(f"{name[:80]!r} is no recording's name")
        return self._root / name
