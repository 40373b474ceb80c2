"""datasets: a Dataset that gives tensors, map-style and iterable, in torch's DataLoader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ecosystem.watching import Watch

FRAMEWORK = "datasets"

JOB = """
    from datasets import Dataset
    from torch.utils.data import DataLoader

    ITERABLE, WORKERS = {iterable!r}, {workers!r}


    def main():
        table = Dataset.from_dict(dict(x=list(range(50)), y=[i / 50 for i in range(50)]))
        data = table.to_iterable_dataset(num_shards=2) if ITERABLE else table
        data = data.with_format("torch")
        torch.manual_seed(7)
        shuffle = None if ITERABLE else True
        train_loader = DataLoader(data, batch_size=4, shuffle=shuffle, num_workers=WORKERS)
        digest, batches, samples = Digest(), 0, 0
        for epoch in range(2):
            for number, batch in enumerate(train_loader):
                digest.add(batch["x"], batch["y"])
                batches, samples = batches + 1, samples + len(batch["x"])
                if epoch == 1 and number == 2:
                    tell(batches=batches)
        tell(digest=str(digest), batches=batches, samples=samples)


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("workers", [0, 2], ids="workers={}".format)
@pytest.mark.parametrize("iterable", [False, True], ids=["map", "iterable"])
def test_what_is_fetched_many_at_once_or_streamed_is_counted(
    iterable: bool, workers: int, watch: Watch, tmp_path: Path
) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    way = "instrument" if iterable else "run"
    job = JOB.format(iterable=iterable, workers=workers)
    middle, end = watch(job, ways=(way,), env=env)
    train = middle.loader("train_loader")
    assert (train.epochs, train.batches) == (2, middle.facts["batches"])
    assert [worker.up for worker in train.workers] == [True] * workers
    train = end.loader("train_loader")
    assert (train.batches, train.samples) == (end.facts["batches"], end.facts["samples"])
    assert train.samples == 100
