"""Real DataLoaders whose workers grow for different reasons, told apart by a real agent."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dlmon import catalog
from tests.agents import Agent, running
from tests.jobs import Job, JobStarter, wait_for
from tests.memory_cgroups import memory_cgroup

CONFIG = """
interval_seconds: 0.2
web: {listen_address: "127.0.0.1:0"}
memory: {pss_interval_seconds: 0.2, pss_cpu_budget_ratio: 0.2}
"""

JOB = """
    import sys
    import time

    import dlmon

    dlmon.instrument(run="memory", rank=0)

    import numpy as np
    import torch
    from torch.utils.data import DataLoader, Dataset

    PERSISTENT = @PERSISTENT@
    SAMPLES = 1000


    class Rows(Dataset):
        def __len__(self):
            return SAMPLES

        def __getitem__(self, index):
            time.sleep(0.005 if PERSISTENT else 0.015)  # the first scan is after seconds
            return torch.tensor(self.take(index))


    class Objects(Rows):
        def __init__(self):
            size = 2000 if PERSISTENT else 4000  # what a fresh worker copies goes with its epoch
            self.rows = [{"text": bytes(size), "label": i} for i in range(100 * SAMPLES)]

        def take(self, index):  # each look at an object writes its reference count
            return sum(row["label"] for row in self.rows[100 * index :][:100] if row["text"])


    class Array(Rows):
        def __init__(self):
            self.rows = np.ones(40_000 * SAMPLES, dtype=np.float32)

        def take(self, index):
            return float(self.rows[40_000 * index :][:40_000].sum())


    class Leaking(Array):
        def __init__(self):
            super().__init__()
            self.kept = []

        def take(self, index):
            self.kept.append(bytearray(b"x") * 200_000)
            return super().take(index)


    def loader(name, data):
        workers = {"num_workers": 2, "persistent_workers": PERSISTENT}
        return dlmon.name(DataLoader(data, batch_size=10, shuffle=True, **workers), name)


    def main():
        objects, array = loader("objects", Objects()), loader("array", Array())
        leaking = loader("leaking", Leaking())
        for epoch in range(3):
            for batches in zip(objects, array, leaking):
                pass
            print("epochs", epoch + 1, flush=True)
        sys.stdin.readline()


    if __name__ == "__main__":
        main()
"""

OF_WORKERS = (
    catalog.WORKER_PROPORTIONAL_MEMORY,
    catalog.WORKER_UNIQUE_MEMORY,
    catalog.WORKER_READ_BYTES,
    catalog.WORKER_MAJOR_FAULTS,
    catalog.WORKER_OPEN_FDS,
)


def findings(agent: Agent) -> list[dict[str, Any]]:
    wait_for(agent.ready, "ready")
    found: list[dict[str, Any]] = json.loads(agent.get("/api/v1/snapshot")[1])["findings"]
    return found


def found_by(agent: Agent, job: Job) -> dict[tuple[str, str], dict[str, Any]]:
    """Return every finding that there is until the job's third epoch is over."""
    found: dict[tuple[str, str], dict[str, Any]] = {}

    def over() -> bool:
        found.update({(one["loader"], one["name"]): one for one in findings(agent)})
        return "epochs 3" in job.output()

    job.wait_for(over, "third epoch")
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "agent.yml"
    path.write_text(CONFIG)
    return path


@pytest.mark.parametrize(
    "persistent",
    [True, pytest.param(False, marks=pytest.mark.slow)],
    ids=["persistent", "fresh"],
)
def test_a_leak_erosion_and_health_are_told_apart_within_three_epochs(
    run_job: JobStarter, segment_dir: Path, config: Path, persistent: bool
) -> None:
    with running("--config", str(config), "--dir", str(segment_dir)) as agent:
        job = run_job(JOB.replace("@PERSISTENT@", str(persistent)))
        found = found_by(agent, job)
        page = agent.get("/metrics")[1]
    assert set(found) == {("objects", "copy_on_write_erosion"), ("leaking", "worker_memory_leak")}
    leak = found["leaking", "worker_memory_leak"]
    assert re.search("worker [01] of leaking: [UR]SS [0-9]+ MB, growing", leak["sentence"])
    assert "per epoch" in leak["sentence"]
    # It keeps 100 MB in a worker and epoch; how long an epoch takes is up to the machine.
    workers = leak["evidence"]["workers"].count(",") + 1
    assert 3e7 < int(leak["evidence"]["growth_bytes_per_epoch"]) / workers < 3e8
    erosion = found["objects", "copy_on_write_erosion"]
    assert int(erosion["evidence"]["copied_bytes"]) > 100_000_000
    if persistent:  # the workers wait for a fourth epoch
        worker = '{loader="array",rank="0",run="memory",worker="1"}'
        assert all(f"\n{metric.name}{worker} " in page for metric in OF_WORKERS)
        assert f"\n{catalog.CGROUP_MEMORY_ANON.name}{{cgroup=" in page


GROWS = """
    import time

    import dlmon

    dlmon.instrument(run="grows", rank=0)

    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        input()
        kept = []
        for _ in dlmon.name(DataLoader(list(range(1_000_000))), "train"):
            if len(kept) < 300:
                kept.append(bytearray(b"x") * 1_000_000)
            time.sleep(0.05)
"""


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory cgroup with a limit of 600 MB."""
    with memory_cgroup(600_000_000) as directory:
        yield directory


@pytest.mark.slow
def test_a_job_that_grows_towards_the_limit_of_its_cgroup_is_told_of_before(
    limited: Path, run_job: JobStarter, segment_dir: Path, config: Path
) -> None:
    with running("--config", str(config), "--dir", str(segment_dir)) as agent:
        job = run_job(GROWS)
        (limited / "cgroup.procs").write_text(str(job.pid))
        job.tell()
        found = job.wait_for(lambda: findings(agent), "a finding")
    assert [(one["name"], one["run"], one["rank"]) for one in found] == [
        ("memory_limit_soon", "grows", "0")
    ]
    assert f"of the 600 MB that cgroup /{limited.name} may have" in found[0]["sentence"]
    assert found[0]["evidence"]["cgroup"] == f"/{limited.name}"
    assert float(found[0]["evidence"]["seconds_to_limit"]) < 3600
