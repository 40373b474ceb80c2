"""Real launchers under `dlmon run --serve`: who is which rank of which run, as the agent tells."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.launching import FREE, agents, announced, ending_agents, fetch, launch
from tests.jobs import Job, JobStarter, wait_for

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))

DISTRIBUTED = """
import os
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    data = TensorDataset(torch.arange(64.0).reshape(64, 1))
    model = DistributedDataParallel(torch.nn.Linear(1, 1))
    train = DataLoader(data, batch_size=4, sampler=DistributedSampler(data), num_workers=1)
    val = DataLoader(data, batch_size=16)
    for (batch,) in train:
        model(batch).sum().backward()
    for _ in range(rank + 1):
        for (batch,) in val:
            pass
    iterator = iter(train)
    next(iterator)
    dist.barrier()
    print("READY", flush=True)
    os.read(0, 1)  # both ranks have one standard input
    del iterator
    dist.destroy_process_group()
    print("END", flush=True)
"""

SPAWNING = """
import os
import sys
import torch.distributed as dist
import torch.multiprocessing
from torch.utils.data import DataLoader

def rank_main(rank, how, store, gate):
    if how == "environment":
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    else:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    loader = DataLoader(list(range(8)), batch_size=2 + 2 * rank)
    list(loader)
    print("READY", flush=True)
    with open(gate, "rb", 0) as file:
        file.read()  # until the test closes the other end

if __name__ == "__main__":
    torch.multiprocessing.spawn(rank_main, args=sys.argv[1:], nprocs=2)
    print("END", flush=True)
"""

TRAINS = """
import os
import subprocess
import sys
from torch.utils.data import DataLoader

iterator = iter(DataLoader(list(range(8)), batch_size=2))
next(iterator)
print("READY", flush=True)
if sys.argv[1:]:
    subprocess.run([sys.executable, *sys.argv[1:]], check=True)
os.read(0, 1)
"""


@pytest.fixture(autouse=True)
def _no_agent_is_left(segment_dir: Path) -> Iterator[None]:
    with ending_agents(segment_dir):
        yield


def snapshot(job: Job, ranks: int) -> dict[str, Any]:
    """What a job's agent shows when `ranks` of the job's processes are ready."""
    job.wait_for(lambda: job.output().count("READY") == ranks, f"{ranks} that are ready")
    ready = time.time()
    url = announced(job)
    found: dict[str, Any] = {}

    def all_are_there() -> bool:
        found.update(json.loads(fetch(f"{url}/api/v1/snapshot")))
        began = found["time"] - found["duration_seconds"]
        return began > ready and len(found["ranks"]) + len(found["superseded"]) == ranks

    wait_for(all_are_there, f"a snapshot with {ranks} ranks", job=job)
    return found


def batches(rank: dict[str, Any]) -> dict[str, int]:
    return {loader["name"]: loader["batches"] for loader in rank["loaders"]}


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([TORCHRUN], id="torchrun"),
        pytest.param(["-m", "torch.distributed.run"], id="-m", marks=pytest.mark.slow),
    ],
)
def test_torchrun_has_one_agent_and_one_run_with_its_ranks(
    launcher: list[str], run_job: JobStarter, tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "ddp.py").write_text(DISTRIBUTED)
    job = launch(run_job, FREE, *launcher, "--nproc-per-node", "2", "ddp.py")
    seen = snapshot(job, ranks=2)
    assert len(agents(segment_dir)) == 1
    assert seen["superseded"] == []
    first, second = sorted(seen["ranks"], key=lambda rank: str(rank["rank"]))
    assert first["run"] == second["run"]
    for number, rank in enumerate((first, second)):
        assert rank["rank"] == rank["info"]["local_rank"] == str(number)
        assert rank["info"]["world_size"] == "2"
        assert rank["info"]["script"].endswith("ddp.py")
        assert rank["up"] is True
        assert batches(rank) == {"train": 8 + 1, "val": 4 * (number + 1)}
        workers = {one["name"]: len(one["workers"]) for one in rank["loaders"]}
        assert workers == {"train": 1, "val": 0}
    page = fetch(f"{announced(job)}/metrics")
    for number in (0, 1):
        series = (
            f'dlmon_loader_batches_total{{loader="train",rank="{number}",run="{first["run"]}"}}'
        )
        assert f"{series} 9.0" in page
    job.tell("\n")
    assert job.finish().count("END") == 2


@pytest.mark.parametrize("how", ["environment", pytest.param("arguments", marks=pytest.mark.slow)])
def test_ranks_started_by_multiprocessing_are_ranks_of_one_run(
    how: str, run_job: JobStarter, tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "spawning.py").write_text(SPAWNING)
    gate = tmp_path / "gate"  # spawned processes have no standard input
    os.mkfifo(gate)
    job = launch(run_job, FREE, "spawning.py", how, f"file://{tmp_path}/store", str(gate))
    with gate.open("wb"):
        seen = snapshot(job, ranks=2)
        assert len(agents(segment_dir)) == 1
        assert seen["superseded"] == []
        assert {rank["rank"]: batches(rank) for rank in seen["ranks"]} == {
            "0": {"loader": 4},
            "1": {"loader": 2},
        }
        assert len({rank["run"] for rank in seen["ranks"]}) == 1
    assert "END" in job.finish()


@pytest.mark.parametrize(
    ("options", "env"),
    [
        pytest.param([], {}, id="plain"),
        pytest.param(["--run", "mine"], {}, id="named", marks=pytest.mark.slow),
        pytest.param(
            [],
            {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"},
            id="slurm",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [],
            {"TORCHELASTIC_RUN_ID": "elastic", "RANK": "0", "WORLD_SIZE": "1"},
            id="torchrun with an id",
        ),
        pytest.param(
            [],
            {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "1"},
            id="torchrun",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_job_that_a_job_starts_hides_nobody(
    options: list[str],
    env: dict[str, str | None],
    run_job: JobStarter,
    tmp_path: Path,
) -> None:
    (tmp_path / "train.py").write_text(TRAINS)
    (tmp_path / "evaluate.py").write_text(TRAINS)
    job = launch(run_job, FREE, *options, "train.py", "evaluate.py", env=env)
    seen = snapshot(job, ranks=2)
    scripts = sorted(os.path.basename(rank["info"]["script"]) for rank in seen["ranks"])
    assert scripts == ["evaluate.py", "train.py"]
    assert seen["superseded"] == []
    job.tell("\n")
    job.finish()
