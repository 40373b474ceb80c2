"""Which run and rank a process is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlmon.shim import _run
from tests.jobs import JobStarter
from tests.observing import facts, observe, observer


@pytest.mark.parametrize(
    ("env", "run", "rank"),
    [
        ({"DLMON_RUN": "mine", "DLMON_RANK": "7", "RANK": "3"}, "mine", "7"),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5"}, "slurm-12.0", "5"),
        ({"TORCHELASTIC_RUN_ID": "exp-1", "RANK": "2"}, "exp-1", "2"),
    ],
    ids=str,
)
def test_the_launcher_says_run_and_rank(env: dict[str, str], run: str, rank: str) -> None:
    assert (_run.run(env), _run.rank(env)) == (run, rank)


def test_without_a_launcher_the_run_is_this_process_alone() -> None:
    assert f"-{os.getpid()}-{_run.start_ticks(os.getpid())}" in _run.run({})


def test_a_batch_script_of_slurm_runs_several_things_side_by_side() -> None:
    env = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # no srun, no step
    own = f"-{os.getpid()}-{_run.start_ticks(os.getpid())}"
    assert _run.run(env).startswith("slurm-12/")
    assert _run.run(env).endswith(own)
    ranks = f"-{os.getppid()}-{_run.start_ticks(os.getppid())}"
    assert _run.run({**env, "TORCHELASTIC_RUN_ID": "none", "RANK": "1"}).endswith(ranks)


def test_torch_distributed_knows_best_which_rank_this_is() -> None:
    found = _run.identity({"RANK": "0", "WORLD_SIZE": "1"}, {}, "2.13.0", (3, 8))
    assert (found["rank"], found["world_size"]) == ("3", "8")
    assert _run.rank({"DLMON_RANK": "5"}, (3, 8)) == "5"


def test_ranks_of_torchrun_without_an_id_share_their_launcher() -> None:
    env = {"TORCHELASTIC_RUN_ID": "none", "RANK": "1"}
    assert f"-{os.getppid()}-{_run.start_ticks(os.getppid())}" in _run.run(env)


def test_what_the_user_chooses_wins() -> None:
    env = {"DLMON_RUN": "environment", "DLMON_RANK": "1", "DLMON_DIR": "/dev/shm/x"}
    chosen = {"run": "argument", "rank": "2", "dir": "/dev/shm/y"}
    found = _run.identity(env, chosen, "2.13.0")
    assert (found["run"], found["rank"], found["dir"]) == ("argument", "2", "/dev/shm/y")


SPAWNED = """
    import os
    import time

    import dlmon
    import torch
    from torch.utils.data import DataLoader

    dlmon.instrument()  # before it is known who this is


    def rank_main(rank):
        os.environ["RANK"] = str(rank)
        for _ in DataLoader(list(range(4))):
            pass
        print("FACTS {}", flush=True)
        time.sleep(600)  # until the test ends it


    if __name__ == "__main__":
        os.environ["DLMON_RUN"] = "spawned"
        torch.multiprocessing.spawn(rank_main, nprocs=2)
"""


def test_ranks_that_learn_who_they_are_after_importing_torch(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(SPAWNED)
    facts(job, 2)
    with observer(segment_dir) as observing:
        snapshot = observing.observe()
    assert [(rank.run, rank.rank) for rank in snapshot.ranks] == [
        ("spawned", "0"),
        ("spawned", "1"),
    ]


NESTED = """
    import dlmon

    dlmon.instrument(run="nested", rank=3)

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Outer(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            inner = dlmon.name(DataLoader(list(range(3))), "inner")
            return sum(int(batch) for batch in inner)


    if __name__ == "__main__":
        outer = dlmon.name(
            DataLoader(Outer(), num_workers=1, multiprocessing_context=METHOD), "outer"
        )
        iterator = iter(outer)
        sums = [int(next(iterator)) for _ in range(4)]
        assert sums == [3] * 4
        print("FACTS {}", flush=True)
        input()
        del iterator
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_inside_a_worker_belongs_to_the_workers_rank(
    method: str, run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(NESTED.replace("METHOD", repr(method)))
    facts(job)
    snapshot = observe(segment_dir)
    assert [(rank.run, rank.rank, rank.up) for rank in snapshot.ranks] == [("nested", "3", True)]
    found = {one.name: one for one in snapshot.ranks[0].loaders}
    assert (found["outer"].batches, found["inner"].batches) == (4, 12)
    assert [worker.batches for worker in found["outer"].workers] == [4]
    job.tell()
    job.finish()
