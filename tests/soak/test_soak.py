"""Two minutes of the soak: no healthy job is reported, and hung ones are, by their right names.

While the agent's clock jumps: without libfaketime it does not run, and fails in CI.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon.analysis.findings import FINDINGS
from tests.conftest import require_tool
from tests.soak.job import FAULTS, HUNG
from tests.soak.soak import CLOCK_STEPS, Running, Soak


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_healthy_is_reported_and_every_hang_is() -> None:
    require_tool("faketime")
    said: list[str] = []
    soak = Soak(floor=4, seed=1, say=said.append)
    soak.run(120, hangs=len(FAULTS))
    assert soak.healthy_batches > 500
    assert soak.clock >= set(CLOCK_STEPS)
    assert soak.passed, soak.summary() + "\n" + "\n".join(said)
    assert {kind for kind, _ in soak.reported} == set(FAULTS)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Running]:
    """A process that stands for a job."""
    log = tmp_path / "log"
    log.touch()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        yield Running("stopped", process, log)
        process.kill()


def looked(folder: Path, job: Running, finding: str, run: str) -> Soak:
    """A soak that has looked once, when an agent found something."""
    soak = Soak(floor=4, seed=1, say=print)
    soak._jobs.append(job)
    found = {"name": finding, "run": run, "sentence": "something"}
    answer = folder / "api" / "v1" / "snapshot"
    answer.parent.mkdir(parents=True)
    answer.write_text(json.dumps({"time": time.time(), "findings": [found], "ranks": []}))
    soak._look(folder.as_uri())
    return soak


@pytest.mark.parametrize("finding", FINDINGS)
def test_whatever_is_found_about_a_healthy_job_is_a_false_alarm(
    tmp_path: Path, job: Running, finding: str
) -> None:
    soak = looked(tmp_path, job, finding, job.run)
    (alarm,) = soak.false_alarms
    assert alarm == f"{job.run} is healthy, and was reported: {finding}: something"


def test_what_is_found_about_a_job_that_hangs_or_was_ended_is_none(
    tmp_path: Path, job: Running
) -> None:
    assert looked(tmp_path, job, "rank_died", "ended-1").false_alarms == []
    job.log.write_text(f"{HUNG} {time.time()}\n")
    assert looked(tmp_path / "later", job, "worker_stopped", job.run).false_alarms == []


def test_it_does_not_pass_unless_the_clock_has_jumped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tests.soak.soak.FAKETIME", tmp_path)
    soak = Soak(floor=4, seed=1, say=print)
    soak.reported.append(("stopped", 1.0))
    assert not soak.passed
    soak.clock.update(CLOCK_STEPS)
    assert soak.passed
