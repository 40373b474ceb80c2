"""The real `dlmon agent`: it starts, serves, watches a real job, and stops when told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import DEADLINE_SECONDS, Agent, running
from tests.jobs import JobStarter, wait_for


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    with running("--dir", str(tmp_path_factory.mktemp("segments"))) as agent:
        wait_for(agent.ready, "ready")
        yield agent


def test_it_greets_in_one_line_with_version_address_and_directory(agent: Agent) -> None:
    assert re.search(r"INFO dlmon \S+ agent on http://127\.0\.0\.1:[1-9]\d*/", agent.greeting)
    assert "segments" in agent.greeting
    assert f"as uid {os.getuid()}" in agent.greeting


@pytest.mark.parametrize(
    ("path", "status", "part"),
    [
        ("/", 200, "<title>dlmon</title>"),
        ("/metrics", 200, "dlmon_agent_build_info{"),
        ("/-/healthy", 200, "healthy"),
        ("/-/ready", 200, "ready"),
        ("/api/v1/snapshot", 200, '"ranks":[]'),
        ("/nowhere", 404, "not found"),
    ],
)
def test_every_endpoint_is_served(agent: Agent, path: str, status: int, part: str) -> None:
    answer = agent.get(path)
    assert answer[0] == status
    assert part in answer[1]


def test_promtool_accepts_what_it_serves(agent: Agent, promtool: Path) -> None:
    _, page = agent.get("/metrics")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=page,
        text=True,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_although_the_next_look_is_far(
    tmp_path: Path, number: int
) -> None:
    with running("--dir", str(tmp_path), "--interval", "1m") as agent:
        wait_for(agent.ready, "ready")
        agent.process.send_signal(number)
        assert agent.process.wait(DEADLINE_SECONDS / 2) == 0  # no sleep was finished first
        assert "stopping" in agent.line()
        assert agent.line() == ""


def refusal(*arguments: str) -> str:
    """The one line of an agent that does not start."""
    refused = subprocess.run(
        [sys.executable, "-m", "dlmon", "agent", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    return line


def test_an_address_in_use_is_one_line_and_status_2(agent: Agent) -> None:
    address = agent.url.removeprefix("http://")
    line = refusal("--web.listen-address", address)
    assert line.startswith(f"dlmon agent: cannot listen on {address}: ")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--interval", "soon"], "--interval: 'soon' is no duration"),
        (["--config", "/nowhere.yml"], "/nowhere.yml: cannot be read"),
        (["--web.listen-address", "here"], "--web.listen-address: 'here' is not allowed"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(arguments: list[str], part: str) -> None:
    assert refusal(*arguments).startswith(f"dlmon agent: {part}")


def test_a_file_configures_it(tmp_path: Path) -> None:
    config = tmp_path / "agent.yml"
    config.write_text(f"dirs: [{tmp_path}]\nweb: {{listen_address: '127.0.0.1:0'}}\n")
    with running("--config", str(config)) as agent:
        wait_for(agent.ready, "ready")
        assert str(tmp_path) in agent.greeting


def test_it_goes_on_when_nobody_reads_its_log_any_more(tmp_path: Path) -> None:
    with running("--dir", str(tmp_path), "--interval", "100ms") as agent:
        assert agent.process.stderr is not None
        agent.process.stderr.close()
        agent.process.stderr = None
        wait_for(agent.ready, "ready")
        agent.process.terminate()
        assert agent.process.wait(DEADLINE_SECONDS) == 0  # its last message has no reader


def test_it_never_loads_torch_or_numpy(agent: Agent) -> None:
    for path in ("/", "/metrics", "/api/v1/snapshot"):
        agent.get(path)
    loaded = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "libpython" in loaded or "python3" in loaded
    assert not re.search(r"libtorch|libc10|_multiarray_umath", loaded)


JOB = """
import dlmon
dlmon.instrument(run="job-9", rank=3)
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 40
    def __getitem__(self, index):
        return torch.tensor(index)

loader = dlmon.name(DataLoader(Numbers(), batch_size=4, num_workers=2), "numbers")
iterator = iter(loader)
for _ in range(4):
    next(iterator)
print("delivered", flush=True)
input()
"""


def test_a_real_jobs_loader_is_in_metrics_and_snapshot(
    run_job: JobStarter, segment_dir: Path, promtool: Path
) -> None:
    job = run_job(JOB)
    with running("--dir", str(segment_dir), "--interval", "100ms") as agent:
        series = 'dlmon_loader_batches_total{loader="numbers",rank="3",run="job-9"} 4.0'
        wait_for(lambda: series in agent.get("/metrics")[1], series, job=job)
        _, page = agent.get("/metrics")
        for worker in ("0", "1"):
            labels = f'loader="numbers",rank="3",run="job-9",worker="{worker}"'
            assert f"dlmon_worker_up{{{labels}}} 1.0" in page
        snapshot: dict[str, Any] = json.loads(agent.get("/api/v1/snapshot")[1])
        (rank,) = snapshot["ranks"]
        (loader,) = rank["loaders"]
        assert (rank["run"], rank["rank"], loader["name"]) == ("job-9", "3", "numbers")
        assert loader["phase"] == "step"
        assert (
            subprocess.run(
                [promtool, "check", "metrics"],
                input=page,
                text=True,
                check=False,
                timeout=DEADLINE_SECONDS,
            ).returncode
            == 0
        )
        job.process.kill()
        dead = 'dlmon_rank_up{rank="3",run="job-9"} 0.0'
        wait_for(lambda: dead in agent.get("/metrics")[1], dead)
