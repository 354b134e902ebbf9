"""docker-compose.yml: checked by Docker's own tool where there is one, and by its structure anyway."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from gateway.settings import Settings

from .dockerfile import REPOSITORY, read_dockerfile

FILE = REPOSITORY / "docker-compose.yml"
SERVICES = YAML(typ="safe").load(FILE.read_text())["services"]


def compose_command() -> list[str] | None:
    """`docker compose`, else `docker-compose`, else None."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and not subprocess.run([*command, "version"], capture_output=True, check=False).returncode
        ):
            return command
    return None


def test_docker_compose_accepts_it() -> None:
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    result = subprocess.run([*command, "-f", str(FILE), "config"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_gateway_and_worker_are_built_from_their_files() -> None:
    assert set(SERVICES) == {"gateway", "worker"}
    for name, service in SERVICES.items():
        assert service["build"] == {"context": ".", "dockerfile": f"deploy/Dockerfile.{name}"}


def test_their_socket_stays_on_loopback() -> None:
    assert SERVICES["worker"]["network_mode"] == "service:gateway"
    assert "ports" not in SERVICES["worker"]
    worker = read_dockerfile(REPOSITORY / "deploy" / "Dockerfile.worker").environment
    assert SERVICES["gateway"]["environment"]["CALLPLEX_WORKERS"] == f"ws://{worker['CALLPLEX_WORKER_LISTEN']}"
    assert worker["CALLPLEX_WORKER_LISTEN"].startswith("127.0.0.1:")


def test_both_see_the_same_personas_and_change_none() -> None:
    assert all("./personas:/app/personas:ro" in service["volumes"] for service in SERVICES.values())


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_every_setting_named_exists(name: str) -> None:
    known = {f"CALLPLEX_{field}".upper() for field in Settings.model_fields}
    image = read_dockerfile(REPOSITORY / "deploy" / f"Dockerfile.{name}").environment
    assert set(SERVICES[name]["environment"]) | set(image) <= known


def test_no_secret_is_written_down() -> None:
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            if name.endswith(("_TOKEN", "_SECRET", "_KEY")):
                assert value == f"${{{name}:-}}"
