"""Weights are downloaded whole from a server that speaks as Hugging Face does, gate and broken lines included."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.commands import CommandFailed, verify_weights
from model.voices import PUBLISHED
from model.weights import RECORD, REPOSITORY, file_names
from model.weights_check import weight_problems
from tests.model.tiny_folder import VOICE, make_folder

TOKEN = "hf_of_a_user_who_accepted"
COMMIT = "c0ffee" + "0" * 34


@dataclass
class Hub:
    """What the server has, and what it was asked."""

    files: dict[str, bytes]
    cut: dict[str, int] = field(default_factory=dict)
    """File -> bytes after which its connection breaks, once."""
    asked: list[tuple[str, str, str, bool]] = field(default_factory=list)
    """Method, path, range, and whether a token came with it."""
    url: str = ""
    storage: str = ""

    def ranges(self, name: str) -> list[str]:
        return [asked for method, path, asked, _ in self.asked if method == "GET" and path == f"/storage/{name}"]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nobody reads it."""

    def _answer(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.asked.append((self.command, self.path, self.headers.get("Range", ""), bool(token)))
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/storage/"):
            self._send(name)
        elif not token:
            self._refuse(401, "GatedRepo")
        elif token != TOKEN:
            self._refuse(403 if token.startswith("hf_") else 401, "GatedRepo" if token.startswith("hf_") else "")
        elif name not in self.hub.files:
            self._refuse(404, "EntryNotFound")
        elif self.path not in (f"/{REPOSITORY}/resolve/{revision}/{name}" for revision in ("main", COMMIT)):
            self._refuse(404, "RevisionNotFound")
        else:
            self._describe(name)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _describe(self, name: str) -> None:
        """Large files lie elsewhere, under another host's name."""
        data = self.hub.files[name]
        small = name == "config.json"
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        if small and self.command == "GET":
            self.send_response(200)
        else:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.storage}/storage/{name}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Linked-Etag", f'"{blob if small else hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)) if small and self.command == "GET" else "0")
        self.end_headers()
        if small and self.command == "GET":
            self.wfile.write(data)

    def _send(self, name: str) -> None:
        data, asked = self.hub.files[name], self.headers.get("Range", "bytes=0-")
        begin = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206)
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        end = self.hub.cut.pop(name, len(data))
        self.wfile.write(data[begin:end])
        self.close_connection = True


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A whole tiny model as the repository holds it."""
    folder = make_folder(tmp_path_factory.mktemp("published"))
    files = {file.name: file.read_bytes() for file in folder.files}
    files["config.json"] = b'{"model_type": "personaplex"}'
    voice = (folder.voices / f"{VOICE}.pt").read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (*(f"voices/{name}.pt" for name in PUBLISHED), "../escaped.pt", "voices/stranger.pt", "run.sh"):
            member = tarfile.TarInfo(name)
            member.size = len(voice)
            archive.addfile(member, io.BytesIO(voice))
    files["voices.tgz"] = packed.getvalue()
    return files


@pytest.fixture
def hub(published: dict[str, bytes]) -> Iterator[Hub]:
    hub = Hub(dict(published))
    handler = type("Handler", (_Handler,), {"hub": hub})
    # Two addresses of this machine, which no resolver has to know: a download's token must not follow it elsewhere.
    with _serving("127.0.0.1", handler) as hub.url, _serving("127.0.0.2", handler) as hub.storage:
        yield hub


@contextmanager
def _serving(host: str, handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def weights(
    folder: Path, *arguments: str, endpoint: str = "http://127.0.0.1:1", token: str = ""
) -> tuple[int, str, str]:
    """`callplex weights`: status, standard output, standard error."""
    environment = {"PATH": "/usr/bin:/bin", "HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "hf")}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "gateway.cli", "weights", *arguments, "--dir", str(folder)]
    done = subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_all_files_come_and_the_voices_are_unpacked(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    status, shown, error = weights(folder, "download", endpoint=hub.url, token=TOKEN)
    assert (status, error) == (0, "")
    assert f"downloaded (revision {COMMIT})" in shown
    for name in file_names():
        assert (folder / name).read_bytes() == hub.files[name]
    assert sorted(path.name for path in (folder / "voices").iterdir()) == sorted(f"{name}.pt" for name in PUBLISHED)
    assert not list(tmp_path.rglob("escaped.pt"))
    assert not list(folder.glob("*.sh"))
    assert not list(folder.glob(".*.part"))
    assert not [path for method, path, _, token in hub.asked if path.startswith("/storage/") and token]

    # What is whole needs no network, and nothing of it is fetched again.
    before = len(hub.asked)
    assert weights(folder, "download")[0] == 0
    assert len(hub.asked) == before
    status, shown, _ = weights(folder, "list", "--json")
    assert status == 0
    assert {one["state"] for one in json.loads(shown).values()} == {"there"}


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", f"accept its licence: log in at https://huggingface.co/{REPOSITORY}"),
        ("hf_another", f"accept its licence at https://huggingface.co/{REPOSITORY} with the account"),
        ("nonsense", "does not know your token"),
    ],
)
def test_the_gate_is_explained(hub: Hub, tmp_path: Path, token: str, says: str) -> None:
    status, _, error = weights(tmp_path / "weights", "download", endpoint=hub.url, token=token)
    assert status == 1
    assert error.startswith("callplex: ")
    assert says in error
    assert len(error.splitlines()) == 1


def test_a_broken_line_is_taken_up_again_in_the_same_run(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    name = file_names()[-1]
    hub.cut[name] = 700_001
    assert weights(folder, "download", endpoint=hub.url, token=TOKEN)[0] == 0
    assert (folder / name).read_bytes() == hub.files[name]
    first, second = hub.ranges(name)
    assert first == "bytes=0-"
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 700_001


def test_an_earlier_run_s_part_is_taken_up(hub: Hub, tmp_path: Path) -> None:
    folder, name = tmp_path / "weights", file_names()[-1]
    data = hub.files[name]
    folder.mkdir()
    part = folder / f".{name}.{hashlib.sha256(data).hexdigest()[:16]}.part"
    part.write_bytes(data[:500_000])
    states = json.loads(weights(folder, "list", "--json")[1])
    assert states[name] == {"size": 500_000, "state": "unfinished"}
    assert weights(folder, "download", endpoint=hub.url, token=TOKEN)[0] == 0
    assert hub.ranges(name) == ["bytes=500000-"]
    assert (folder / name).read_bytes() == data


def test_damage_on_the_way_is_found_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    folder, name = tmp_path / "weights", file_names()[-1]
    folder.mkdir()
    part = folder / f".{name}.{hashlib.sha256(hub.files[name]).hexdigest()[:16]}.part"
    part.write_bytes(bytes(1000))
    status, _, error = weights(folder, "download", endpoint=hub.url, token=TOKEN)
    assert status == 1
    assert f"{name} arrived damaged" in error
    assert not (folder / name).exists()
    assert weights(folder, "download", endpoint=hub.url, token=TOKEN)[0] == 0


def test_a_file_that_is_there_already_is_not_fetched(hub: Hub, tmp_path: Path) -> None:
    folder, name = tmp_path / "weights", file_names()[-1]
    folder.mkdir()
    (folder / name).write_bytes(hub.files[name])
    assert weights(folder, "download", endpoint=hub.url, token=TOKEN)[0] == 0
    assert hub.ranges(name) == []


def test_no_network_is_one_sentence(tmp_path: Path) -> None:
    status, _, error = weights(tmp_path / "weights", "download", token=TOKEN)
    assert status == 1
    assert "127.0.0.1:1 cannot be reached" in error
    assert len(error.splitlines()) == 1


def test_verify_reads_every_byte(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "weights").path
    assert weights(folder, "download", endpoint=hub.url, token=TOKEN)[0] == 0
    assert weights(folder, "verify") == (0, f"{folder}: whole\n", "")
    name = file_names()[-1]
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    verify_weights(folder, quick=True, as_json=False)
    assert capsys.readouterr().out == f"{folder}: whole; bytes not compared\n"
    with pytest.raises(CommandFailed, match="is damaged") as raised:
        verify_weights(folder, quick=False, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "ok": False,
        "problems": [str(raised.value)],
        "bytes_compared": True,
    }


def test_a_folder_from_elsewhere_is_checked_by_its_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder(tmp_path / "weights")
    assert not (folder.path / RECORD).exists()
    verify_weights(folder.path, quick=False, as_json=False)
    assert capsys.readouterr().out.endswith(": whole; bytes not compared: it was not downloaded by callplex\n")
    assert list(weight_problems(folder.path)) == []
    whole = folder.lm.read_bytes()
    folder.lm.write_bytes(whole[:-1000])
    folder.tokenizer.write_bytes(b"nonsense")
    (folder.voices / "NATF3.pt").write_bytes(b"nonsense")
    cut, tokenizer, voice = weight_problems(folder.path)
    assert "model.safetensors cannot be read" in cut
    assert "is not a SentencePiece model" in tokenizer
    assert "NATF3.pt is not a voice prompt" in voice


def test_a_published_folder_lacks_no_voice(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "weights")
    os.unlink(folder.path / "lm.json")
    voices = [problem for problem in weight_problems(folder.path) if "lacks the voices" in problem]
    assert len(voices) == 1
    assert "NATF0, NATF1, NATF3," in voices[0]
    assert VOICE not in voices[0]


def test_a_model_of_other_sizes_is_told_by_its_tensors(tmp_path: Path) -> None:
    """Without its own sizes the folder is taken for the published model."""
    folder = make_folder(tmp_path / "weights")
    os.unlink(folder.path / "lm.json")
    wrong, _ = (problem for problem in weight_problems(folder.path) if "voice" not in problem)
    assert "does not fit the model" in wrong
    assert "depformer.layers.0." in wrong


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert list(weight_problems(tmp_path / "absent")) == [
        f"{tmp_path / 'absent'} is not a folder; get the weights with: callplex weights download"
    ]
    folder = make_folder(tmp_path / "weights")
    folder.mimi.unlink()
    (problem,) = weight_problems(folder.path)
    assert f"lacks {folder.mimi.name}" in problem
    states = json.loads(weights(folder.path, "list", "--json")[1])
    assert (states[folder.mimi.name]["state"], states["voices/"]["state"]) == ("missing", "1 of 18")
