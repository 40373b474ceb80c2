"""MONAI: its DataLoader, and loaders that are iterated by a thread or have threads for workers."""

from __future__ import annotations

import pytest

from tests.ecosystem.watching import Watch

FRAMEWORK = "monai"

JOB = """
    from monai.data import CacheDataset, DataLoader, Dataset, ThreadDataLoader
    from monai.transforms import Compose, Lambda, RandLambda
    from monai.utils import set_determinism

    LOADER, DATASET, RANDOM, OPTIONS = {loader!r}, {dataset!r}, {random!r}, {options!r}


    def main():
        set_determinism(7)
        steps = [Lambda(lambda x: torch.full((2,), float(x)))]
        if RANDOM:
            steps.append(RandLambda(lambda x: x + torch.rand(1), prob=1.0))
        transform = Compose(steps)
        kinds = dict(DataLoader=DataLoader, ThreadDataLoader=ThreadDataLoader)
        numbers = list(range(18))
        if DATASET == "CacheDataset":
            data = CacheDataset(numbers, transform, num_workers=2, progress=False)
        else:
            data = Dataset(numbers, transform)
        # A generator of its own: workers that are threads seed the one of the whole process.
        order = torch.Generator().manual_seed(7)
        train_loader = kinds[LOADER](data, batch_size=4, shuffle=True, generator=order, **OPTIONS)
        digest, batches = Digest(), 0
        for epoch in range(2):
            for number, batch in enumerate(train_loader):
                digest.add(batch)
                batches += 1
                if epoch == 1 and number == 1:
                    tell(batches=batches)
        tell(digest=str(digest), batches=batches)


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("dataset", ["Dataset", "CacheDataset"])
def test_a_loader_is_counted_like_torchs(dataset: str, watch: Watch) -> None:
    way = "instrument" if dataset == "Dataset" else "run"
    options = {"num_workers": 2}
    job = JOB.format(loader="DataLoader", dataset=dataset, random=True, options=options)
    middle, end = watch(job, ways=(way,))
    train = middle.loader("train_loader")
    assert (train.epochs, train.batches) == (2, 5 + 2)
    assert [worker.up for worker in train.workers] == [True, True]
    train = end.loader("train_loader")
    assert (train.epochs, train.batches, train.samples) == (2, 10, 36)
    assert train.config["read_ahead"] == ""


@pytest.mark.parametrize("workers", [0, 2], ids="workers={}".format)
def test_a_loader_read_by_a_thread_says_so(workers: int, watch: Watch) -> None:
    options = {"num_workers": workers}
    job = JOB.format(loader="ThreadDataLoader", dataset="Dataset", random=True, options=options)
    middle, end = watch(job, ways=("instrument", "run") if workers else ("run",))
    assert middle.names() == end.names() == ["train_loader"]
    train = middle.loader("train_loader")
    seen = middle.facts["batches"]
    assert train.epochs == 2
    assert seen <= train.batches <= seen + 2  # one in the buffer, one that waits for its place
    assert [worker.up for worker in train.workers] == [True] * workers
    train = end.loader("train_loader")
    assert (train.epochs, train.batches, train.samples) == (2, 10, 36)
    assert train.config["read_ahead"] == "thread"


def test_of_workers_that_are_threads_only_the_loops_side_is_seen(watch: Watch) -> None:
    # Without dlmon, too, random transforms differ from run to run: the threads share a generator.
    options = {"num_workers": 2, "use_thread_workers": True}
    job = JOB.format(loader="ThreadDataLoader", dataset="Dataset", random=False, options=options)
    middle, end = watch(job)
    train = middle.loader("train_loader")
    assert [worker.up for worker in train.workers] == [None, None]
    train = end.loader("train_loader")
    assert (train.epochs, train.batches) == (2, 10)
    assert [worker.batches for worker in train.workers] == [0, 0]
    assert train.worker_starts == sum(train.worker_exits.values())  # of processes: none of either
    assert train.config["read_ahead"] == "thread"
