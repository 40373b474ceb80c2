"""That docker-compose.yml and the Dockerfile are valid, pinned, closed to others and complete."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, require_tool

COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]


def check(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_valid_by_the_specification() -> None:
    check(require_tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_compose_accepts_it_and_knows_every_variable(tmp_path: Path) -> None:
    # Debian's docker-compose 1.29 is of before this key, which the specification has.
    newer = "    cgroup: host "
    lines = COMPOSE.read_text().splitlines()
    older = [line for line in lines if not line.startswith(newer)]
    assert len(lines) - len(older) == 1
    (tmp_path / COMPOSE.name).write_text("\n".join(older))
    shutil.copy(ROOT / ".env", tmp_path)
    compose = require_tool("docker-compose")
    said = subprocess.run(
        [compose, "--profile", "demo", "config"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert said.stderr == ""  # where it would name a variable that is not set
    assert set(yaml.safe_load(said.stdout)["services"]) == set(SERVICES)


def test_the_training_job_is_there_only_if_asked_for() -> None:
    assert [name for name, service in SERVICES.items() if "profiles" in service] == ["demo"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_built_here_or_pinned(name: str) -> None:
    service = SERVICES[name]
    assert "build" in service or re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])


@pytest.mark.parametrize("name", [name for name in SERVICES if name != "demo"])
def test_a_server_listens_on_this_machine_only_and_says_if_it_is_well(name: str) -> None:
    assert all(port.startswith("127.0.0.1:${") for port in SERVICES[name]["ports"])
    assert "healthcheck" in SERVICES[name] or "HEALTHCHECK" in DOCKERFILE.read_text()


def test_what_is_mounted_from_deploy_is_there_and_cannot_be_written_to() -> None:
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", [])]
    shipped = [mount for mount in mounts if mount.startswith("./")]
    assert len(shipped) >= 5
    for mount in shipped:
        assert mount.endswith(":ro")
        assert (ROOT / mount.split(":")[0]).exists()


def test_grafana_has_every_variable_that_its_provisioning_asks_for() -> None:
    asked = {
        name
        for path in (ROOT / "deploy" / "grafana").rglob("*.yml")
        for name in re.findall(r": \$([A-Z]\w+)", path.read_text())
    }
    assert asked == {"PROMETHEUS_URL", "ALERTMANAGER_URL", "DASHBOARDS"}
    assert asked <= set(SERVICES["grafana"]["environment"])


def test_the_agent_has_no_more_rights_than_it_needs() -> None:
    agent = SERVICES["agent"]
    assert agent["cap_drop"] == ["ALL"]
    assert agent["cap_add"] == ["SYS_PTRACE", "DAC_READ_SEARCH"]
    assert agent["read_only"]
    assert agent["pid"] == agent["cgroup"] == "host"  # whose jobs and limits it is to see
    assert not {"privileged", "volumes", "network_mode"} & set(agent)


def test_the_dockerfile_is_clean_and_nobody_is_root_by_default() -> None:
    check(require_tool("hadolint"), DOCKERFILE)
    assert re.findall(r"^USER (\d+)$", DOCKERFILE.read_text(), re.MULTILINE) == ["10356"]
