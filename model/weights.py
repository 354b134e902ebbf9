"""The published weights: fetched from Hugging Face with the user's token, and checked, online or not.

Owns which files there are, the download, and what makes a folder whole. Knows no command line: progress is told to
a callback. Tokens, addresses and the gate are huggingface-hub's affair; the bytes are fetched here, because that
library starts a file of 17 GB over again whenever a download was broken off.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import httpx
from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

from model.folder import ModelFolder
from model.voices import PUBLISHED

REPOSITORY = "nvidia/personaplex-7b-v1"
VOICES_ARCHIVE = "voices.tgz"
RECORD = "callplex-weights.json"
"""What was downloaded, so that a folder can be checked without network."""
_BLOCK = 1 << 20
_ATTEMPTS = 5

Progress = Callable[[str, int, int], None]
"""Told a file, how many of its bytes are there, and how many it has."""


class WeightsUnavailable(Exception):
    """The weights cannot be had; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Published:
    """A file as the hub describes it. etag: SHA-256 of a large file, Git's blob hash of a small one."""

    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Record:
    """What was downloaded: `revision` is a commit."""

    repository: str = ""
    revision: str = ""
    files: dict[str, Published] = field(default_factory=dict)

    def complete(self, path: Path) -> bool:
        """Whether the folder holds every file, at the size it had."""
        return all(
            name in self.files and (path / name).is_file() and (path / name).stat().st_size == self.files[name].size
            for name in file_names()
        )


@dataclass(frozen=True, slots=True)
class Listed:
    """A file of the folder. size: bytes there, 0 if it is missing."""

    name: str
    size: int
    state: str
    """`there`, `missing`, `unfinished`, or `of another size` than the one downloaded."""


def file_names() -> tuple[str, ...]:
    """What is downloaded, small files first: a wrong token shows at once."""
    folder = ModelFolder(Path())
    return ("config.json", folder.tokenizer.name, VOICES_ARCHIVE, folder.mimi.name, folder.lm.name)


def download(
    path: Path,
    progress: Progress,
    *,
    repository: str = REPOSITORY,
    revision: str = "main",
    pause: Callable[[float], None] = time.sleep,
) -> bool:
    """Make `path` hold the weights; what is there and whole is kept, what was begun goes on.

    False: it was complete before, and no network was needed. Raises WeightsUnavailable.
    """
    record = read_record(path)
    if revision in ("main", record.revision) and record.complete(path):
        _unpack_voices(path)
        return False
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsUnavailable(f"{path} cannot be created: {error.strerror}") from error
    commit, known = revision, dict(record.files)
    for name in file_names():
        commit, known[name] = _ask(repository, name, commit)
        _fetch(path, name, hf_hub_url(repository, name, revision=commit), known[name], progress, pause)
        (path / RECORD).write_text(json.dumps(asdict(Record(repository, commit, known)), indent=1) + "\n")
    _unpack_voices(path)
    return True


def list_weights(path: Path) -> list[Listed]:
    """What of the published files is there. Looks at names and sizes only."""
    files, found = read_record(path).files, []
    for name in file_names():
        size = (path / name).stat().st_size if (path / name).is_file() else 0
        begun = sum(part.stat().st_size for part in path.glob(f".{name}.*.part"))
        wanted = files[name].size if name in files else size
        state = "there" if size and size == wanted else "of another size" if size else "missing"
        if state == "missing" and begun:
            state, size = "unfinished", begun
        found.append(Listed(name, size, state))
    count = sum((path / "voices" / f"{name}.pt").is_file() for name in PUBLISHED)
    size = sum(file.stat().st_size for file in (path / "voices").glob("*.pt"))
    state = "there" if count == len(PUBLISHED) else f"{count} of {len(PUBLISHED)}" if count else "missing"
    return [*found, Listed("voices/", size, state)]


def changed_files(path: Path, progress: Progress) -> Iterator[str]:
    """Reads every byte of what was downloaded; a sentence for each file that is no longer what it was."""
    for name, about in read_record(path).files.items():
        if (path / name).is_file() and not _matches(path / name, about, progress):
            yield f"{name} is damaged: it is not the file that was downloaded; delete it and download again"


def read_record(path: Path) -> Record:
    """What was downloaded into a folder; empty if nothing was, or the record is damaged."""
    try:
        data = json.loads((path / RECORD).read_text())
        files = {name: Published(int(about["size"]), str(about["etag"])) for name, about in data["files"].items()}
        return Record(str(data["repository"]), str(data["revision"]), files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Record()


def _ask(repository: str, name: str, revision: str) -> tuple[str, Published]:
    """The commit that `revision` stands for, and what the file must be there. Raises WeightsUnavailable."""
    url = hf_hub_url(repository, name, revision=revision)
    try:
        about = get_hf_file_metadata(url, token=get_token() or False)
    except HfHubHTTPError as error:
        raise WeightsUnavailable(_refusal(repository, name, revision, error)) from error
    except (HTTPError, OSError) as error:
        raise WeightsUnavailable(f"{urlsplit(url).netloc} cannot be reached: {error}; run this again later") from error
    if about.size is None or about.etag is None or about.commit_hash is None:
        raise WeightsUnavailable(f"{urlsplit(url).netloc} does not answer as Hugging Face does for {name}")
    return about.commit_hash, Published(about.size, about.etag)


def _refusal(repository: str, name: str, revision: str, error: HfHubHTTPError) -> str:
    page, settings = f"https://huggingface.co/{repository}", "https://huggingface.co/settings/tokens"
    status = error.response.status_code
    if status == 401 and get_token() is None:
        return (
            f"{repository} is given only to those who accept its licence: log in at {page}, accept it there, "
            f"make a token at {settings}, then: export HF_TOKEN=hf_..."
        )
    if status == 401:
        return f"Hugging Face does not know your token; make another at {settings}, then: export HF_TOKEN=hf_..."
    if status == 403:
        return (
            f"your Hugging Face account may not have {repository}: accept its licence at {page} with the account the "
            f"token belongs to, and let the token read gated repositories"
        )
    if status == 404:
        return f"{repository} has no file {name} at revision {revision}: {page}/tree/main shows what there is"
    return f"Hugging Face answers {status} for {name} of {repository}; run this again later"


def _fetch(
    path: Path, name: str, url: str, file: Published, progress: Progress, pause: Callable[[float], None]
) -> None:
    """Make the folder hold a file, whole. Raises WeightsUnavailable."""
    target, part = path / name, path / f".{name}.{file.etag[:16]}.part"
    if target.is_file() and _matches(target, file, progress):
        return
    begun = part.stat().st_size if part.exists() else 0
    free = shutil.disk_usage(path).free
    if file.size - begun > free:
        raise WeightsUnavailable(
            f"{name} takes {(file.size - begun) / 1e9:.1f} GB more, and {path} has {free / 1e9:.1f} GB free"
        )
    for attempt in range(_ATTEMPTS):
        try:
            _append(part, url, file.size, lambda done: progress(name, done, file.size))
            break
        except (httpx.TransportError, httpx.HTTPStatusError) as error:
            if attempt + 1 == _ATTEMPTS:
                raise WeightsUnavailable(f"{name}: {error}; run this again, it goes on where it stopped") from error
            pause(2.0**attempt)
    if not _matches(part, file, progress):
        part.unlink()
        raise WeightsUnavailable(f"{name} arrived damaged and was deleted; run this again")
    part.replace(target)


def _append(part: Path, url: str, size: int, progress: Callable[[int], None]) -> None:
    """Fetch what `part` lacks of `size` bytes. Raises httpx's errors, with what came so far kept."""
    done = part.stat().st_size if part.exists() else 0
    if done >= size:
        return
    headers = {"Range": f"bytes={done}-", "Accept-Encoding": "identity"}
    if token := get_token():
        # Not passed on by httpx when the hub redirects to another host, whose address is signed.
        headers["Authorization"] = f"Bearer {token}"
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=30.0) as answer:
        answer.raise_for_status()
        if answer.status_code != httpx.codes.PARTIAL_CONTENT:
            done = 0
        with part.open("ab" if done else "wb") as file:
            for block in answer.iter_raw():
                file.write(block)
                done += len(block)
                progress(done)
    if done < size:
        raise httpx.ReadError(f"the connection ended after {done} of {size} bytes")


def _matches(path: Path, file: Published, progress: Progress) -> bool:
    """Whether a file's bytes are those its etag stands for."""
    size = path.stat().st_size
    if size != file.size:
        return False
    digest = hashlib.sha256()
    if len(file.etag) != 2 * digest.digest_size:
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    name = path.name.lstrip(".").removesuffix(f".{file.etag[:16]}.part")
    with path.open("rb") as data:
        done = 0
        while block := data.read(_BLOCK):
            digest.update(block)
            done += len(block)
            progress(f"checking {name}", done, size)
    return digest.hexdigest() == file.etag


def _unpack_voices(path: Path) -> None:
    """Take the published voices, and nothing else, out of their archive. Raises WeightsUnavailable."""
    if all((path / "voices" / f"{name}.pt").is_file() for name in PUBLISHED):
        return
    (path / "voices").mkdir(exist_ok=True)
    try:
        with tarfile.open(path / VOICES_ARCHIVE) as archive:
            for member in archive:
                inside = PurePosixPath(member.name)
                body = archive.extractfile(member) if inside.suffix == ".pt" and member.isfile() else None
                if body is not None and inside.stem in PUBLISHED:
                    unfinished = path / "voices" / f".{inside.name}.part"
                    with unfinished.open("wb") as file:
                        shutil.copyfileobj(body, file)
                    unfinished.replace(path / "voices" / inside.name)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise WeightsUnavailable(f"{path / VOICES_ARCHIVE} cannot be unpacked: {error}") from error
