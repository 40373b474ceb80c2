"""The counts are the loop's own, exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs import JobStarter
from tests.observing import facts, loader, observe

JOB = """
    import json
    import sys

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


    class Map(Dataset):
        def __len__(self):
            return 23

        def __getitem__(self, index):
            return torch.tensor(index)


    class Many(Map):
        def __getitems__(self, indices):
            return [torch.tensor(i) for i in indices]


    class Stream(IterableDataset):
        def __iter__(self):
            info = get_worker_info()
            first, step = (info.id, info.num_workers) if info else (0, 1)
            return (torch.tensor(i) for i in range(first, 23, step))


    def main(kind, **options):
        dataset = {{"map": Map, "many": Many, "stream": Stream}}[kind]()
        loader = dlmon.name(DataLoader(dataset, **options), "train")
        batches = samples = epochs = 0
        for _ in range(3):
            epochs += 1
            for batch in loader:
                batches += 1
                samples += batch.numel()
        counts = dict(batches=batches, samples=samples, epochs=epochs)
        print("FACTS", json.dumps(counts), flush=True)
        input()


    if __name__ == "__main__":
        main({kind!r}, **{options!r})
"""


@pytest.mark.parametrize("workers", [0, 2], ids="workers={}".format)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("map", {"batch_size": 4}),  # the tail has 3
        ("map", {"batch_size": 4, "drop_last": True}),
        ("map", {"batch_size": None}),
        ("many", {"batch_size": 4}),
        ("stream", {"batch_size": 4}),  # with 2 workers two tails: 12 and 11 samples
        ("stream", {"batch_size": 4, "drop_last": True}),
        ("stream", {"batch_size": None}),
    ],
    ids=str,
)
def test_batches_samples_and_epochs_are_what_the_loop_counts(
    kind: str, options: dict[str, object], workers: int, run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB.format(kind=kind, options={**options, "num_workers": workers}))
    counted = facts(job)
    seen = loader(observe(segment_dir), "train")
    assert (seen.batches, seen.samples, seen.epochs) == (
        counted["batches"],
        counted["samples"],
        counted["epochs"],
    )
    assert sum(seen.fetch.counts) == seen.batches
    assert seen.discarded == 0
    assert sum(seen.wait.counts) == seen.batches - seen.startups
    assert seen.worker_starts == seen.worker_exits["normal"] == 3 * workers
    job.tell()
    job.finish()
    assert list(segment_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "persistent"),
    [
        pytest.param(
            method,
            persistent,
            id=f"{method}-{'persistent' if persistent else 'fresh'}",
            marks=[pytest.mark.slow] * ((persistent and method != "fork") or method == "spawn"),
        )
        for method in ("fork", "spawn", "forkserver")
        for persistent in (False, True)
    ],
)
def test_every_start_method_has_its_workers_observed(
    method: str, persistent: bool, run_job: JobStarter, segment_dir: Path
) -> None:
    options = {
        "batch_size": 4,
        "num_workers": 2,
        "multiprocessing_context": method,
        "persistent_workers": persistent,
    }
    job = run_job(JOB.format(kind="map", options=options))
    counted = facts(job)
    seen = loader(observe(segment_dir), "train")
    assert seen.config["start_method"] == method
    assert [worker.batches for worker in seen.workers] == [9, 9]  # 3 epochs of 3 batches each
    assert [worker.up for worker in seen.workers] == [True if persistent else None] * 2
    assert seen.samples == counted["samples"]
    assert seen.worker_starts == (2 if persistent else 6)
    job.tell()
    job.finish()
    assert list(segment_dir.iterdir()) == []
