"""`make stack`: the real servers beside the demo, and nothing left of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, require_tool
from tests.jobs import wait_for
from tests.ports import free_ports
from tools.stack import configuration
from tools.stack.__main__ import main

PORTS = ("--prometheus-port", "--alertmanager-port", "--agent-port")


def free() -> list[str]:
    return [str(port) for port in free_ports(len(PORTS))]


def options(ports: list[str]) -> list[str]:
    return [word for pair in zip(PORTS, ports, strict=True) for word in pair]


@pytest.mark.parametrize("taken", range(3))
def test_a_port_in_use_is_named_with_the_option_that_chooses_another(
    capsys: pytest.CaptureFixture[str], taken: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ports = free()
        ports[taken] = str(server.getsockname()[1])
        assert main(options(ports)) == 2
    said = capsys.readouterr().err
    assert f"127.0.0.1:{ports[taken]}: Address already in use" in said
    assert f'make stack ARGS="{PORTS[taken]} ' in said


@pytest.mark.parametrize(
    ("option", "value"), [("--faster", "0.5"), ("--agent-port", "0"), ("--agent-port", "70000")]
)
def test_a_value_out_of_range_is_refused(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main([option, value]) == 2
    assert f"{option} {value}: expected 1" in capsys.readouterr().err


def test_a_server_that_cannot_start_shows_its_reason(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tool in ("prometheus", "alertmanager"):
        require_tool(tool)
    shipped = tmp_path / "deploy"
    for name in ("prometheus", "alertmanager"):
        (shipped / name / "targets").mkdir(parents=True)
    (shipped / "alertmanager" / "alertmanager.yml").write_text("receivers: [{name: default}]\n")
    (shipped / "prometheus" / "prometheus.yml").write_text("no_such_key: 1\n")
    monkeypatch.setattr(configuration, "DEPLOY", shipped)
    assert main(options(free())) == 1
    said = capfd.readouterr().err
    assert "prometheus ended by itself: status" in said
    assert "no_such_key" in said


@pytest.mark.slow
def test_it_scrapes_the_demo_and_leaves_nothing_behind(tmp_path: Path) -> None:
    for tool in ("prometheus", "alertmanager"):
        require_tool(tool)
    ports = free()
    log = tmp_path / "log"
    with log.open("wb") as output:
        stack = subprocess.Popen(
            [sys.executable, "-m", "tools.stack", *options(ports), "--images", "4"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(tmp_path)},
            start_new_session=True,
        )
    try:
        wait_for(lambda: scraped(ports[0]), "a scrape of the demo's agent", deadline=90)
        printed = re.search(r"(http:\S+:\d+/) +Prometheus", log.read_text())
        assert printed
        with urllib.request.urlopen(printed[1], timeout=10) as page:
            assert b"Alerts" in page.read()
    finally:
        stack.send_signal(signal.SIGINT)
        status = stack.wait(60)
    said = log.read_text()
    assert status == 128 + signal.SIGINT, said
    assert "ended, their data removed" in said
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert main(["--faster", "0", *options(ports)]) == 2  # refused for this, not for a port in use


def scraped(port: str) -> bool:
    query = f"http://127.0.0.1:{port}/api/v1/query?query=dlmon_loader_batches_total"
    with suppress(OSError), urllib.request.urlopen(query, timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return len(found["data"]["result"]) > 0
    return False
