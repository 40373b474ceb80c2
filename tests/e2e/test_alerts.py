"""From a fault in a real job to the notification of it, and to the one that it is over.

The agent, Prometheus and Alertmanager are real, and so are configuration and rules: the shipped
ones, with every duration divided by the same number.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.alerting import Told, stack
from tests.e2e.hanging import HANGING, Scene, make_fifos, source
from tests.jobs import Job, JobStarter, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CONFIG = """
interval_seconds: 0.5
web: {listen_address: "127.0.0.1:0"}
metrics: {per_worker: @DETAIL@}
hangs: {floor_seconds: 2, ceiling_seconds: 8}
memory: {pss_interval_seconds: 1, pss_cpu_budget_ratio: 0.1}
keep: {dead_seconds: 25}
"""

JOB = """
    import os, signal, sys, time

    import dlmon

    FAULT = sys.argv[0].rpartition("/")[2].removesuffix(".py")
    dlmon.instrument(run=FAULT, rank=0)

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Samples(Dataset):
        def __init__(self):
            self.kept = []

        def __len__(self):
            return 400

        def __getitem__(self, index):
            time.sleep(0.005)
            if FAULT == "leak" and len(self.kept) < 6000:
                self.kept.append(bytearray(b"x") * 200_000)
            return torch.tensor(index)


    def named(**options):
        return dlmon.name(DataLoader(Samples(), batch_size=10, num_workers=2, **options), "train")


    def main():
        begun = time.monotonic()
        train = named(persistent_workers=True)
        while True:
            try:
                try:
                    while not os.path.exists(FAULT + ".end"):
                        for _ in train:
                            time.sleep(0.05)  # longer than its wait: no loader is starved
                            if FAULT == "short" and time.monotonic() - begun > 3:
                                os.kill(os.getpid(), signal.SIGKILL)
                    return
                except (RuntimeError, OSError, EOFError) as error:  # a worker was killed
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    print(error, flush=True)
            except RuntimeError as error:  # torch's handler of SIGCHLD, when it was known already
                print(error, flush=True)
            train = named()


    if __name__ == "__main__":
        main()
"""


@dataclass(frozen=True)
class Fault:
    """What is to be told of a fault, which is a run of its name.

    Attributes:
        alert: Its name.
        severity: Its severity.
        labels: More labels that it has.
        text: A regular expression for its description.
    """

    alert: str
    severity: str
    labels: dict[str, str]
    text: str


FAULTS = {
    "endless_read": Fault(
        "DlmonWorkerHung",
        "critical",
        {"loader": "train", "worker": "0", "finding": "worker_stuck_in_fetch"},
        r"worker 0 of loader train of rank 0 of run endless_read makes no progress",
    ),
    "alone": Fault(
        "DlmonRankBlockedInNext",
        "critical",
        {"loader": "train", "finding": "rank_stuck_in_next"},
        r"the loop over loader train of rank 0 of run alone waits in next\(\)",
    ),
    "killed": Fault(
        "DlmonWorkerDied",
        "critical",
        {"loader": "train", "worker": "1", "reason": "sigkill"},
        r"worker 1 of loader train of rank 0 of run killed died\. Reason: sigkill",
    ),
    "leak": Fault(
        "DlmonWorkerMemoryLeak",
        "warning",
        {"loader": "train"},
        r"loader train of rank 0 of run leak .*\d+(\.\d+)?[kMG]iB",
    ),
    "short": Fault(
        "DlmonRankDied", "critical", {}, r"rank 0 of run short died without saying goodbye"
    ),
}
HUNG = ("endless_read", "alone")
FIRING_SECONDS = 120.0
RESOLVED_SECONDS = 120.0


class Story:
    """What happens, and what is told of it.

    Attributes:
        told: All that was told.
    """

    def __init__(self, scene: Scene, jobs: dict[str, Job], told: Told) -> None:
        self.told = told
        self._scene = scene
        self._jobs = jobs

    def happen(self) -> None:
        """Cause what does not happen by itself, and wait until all of it is told.

        Who hangs goes on as soon as that is told: who waits for too long is starved, too.
        """
        wait_for(lambda: self._scene.batches("killed", 1) > 10, "batches")
        os.kill(self._scene.workers("killed")[1]["pid"], signal.SIGKILL)
        for run in FAULTS:
            self._wait(run, "firing", FIRING_SECONDS)
            if run in HUNG:
                self._scene.go_on(run)

    def end(self) -> None:
        """Let all of it end, and wait until that is told."""
        (self._scene.folder / "leak.end").touch()
        self._jobs["leak"].finish()
        for run in FAULTS:
            self._wait(run, "resolved", RESOLVED_SECONDS)

    def _wait(self, run: str, status: str, deadline: float) -> None:
        name = FAULTS[run].alert
        wait_for(
            lambda: name in self.told.about(run, status),
            f"{name} {status} of {run}",
            deadline=deadline,
        )


@pytest.fixture(scope="module", params=["full", "lean"])
def story(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp(request.param)
    segments = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    config = folder / "agent.yml"
    config.write_text(CONFIG.replace("@DETAIL@", request.param))
    starter = JobStarter(folder, segments)
    try:
        with stack(folder, "--config", str(config), "--dir", str(segments)) as (agent, told):
            names = [run for run in FAULTS if run not in HUNG]
            jobs = {run: starter(JOB, name=f"{run}.py") for run in (*names, "healthy")}
            make_fifos(folder, *HUNG)
            starter(source(folder, *HUNG))
            story = Story(Scene(agent, folder, HANGING, []), jobs, told)
            story.happen()
            story.end()
            yield story
    finally:
        starter.close()
        shutil.rmtree(segments, ignore_errors=True)


@pytest.mark.parametrize("run", FAULTS)
def test_the_notification_says_who_and_what(story: Story, run: str) -> None:
    fault = FAULTS[run]
    alert = story.told.about(run, "firing")[fault.alert]
    labels: dict[str, Any] = alert["labels"]
    assert labels["severity"] == fault.severity
    assert labels["run"] == run
    assert labels["rank"] == "0"
    assert fault.labels.items() <= labels.items()
    notes = alert["annotations"]
    assert run in notes["summary"]
    assert re.search(fault.text, notes["description"]), notes["description"]
    assert not re.search(r"\?|not known|no value|error", notes["description"])
    assert notes["runbook_url"].endswith(f"/docs/runbooks/{fault.alert}.md")


@pytest.mark.parametrize("run", FAULTS)
def test_that_it_is_over_is_told_too(story: Story, run: str) -> None:
    assert FAULTS[run].alert in story.told.about(run, "resolved")


@pytest.mark.parametrize("run", FAULTS)
def test_nothing_else_is_told_of_it(story: Story, run: str) -> None:
    assert set(story.told.about(run, "firing")) == {FAULTS[run].alert}


def test_nothing_is_told_of_a_healthy_job_or_the_agent(story: Story) -> None:
    assert story.told.runs() == set(FAULTS)
