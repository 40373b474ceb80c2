"""Accelerate: loaders that read one batch ahead, and a dispatcher that reads on rank 0 alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlmon.segment.layout import Phase
from tests.ecosystem.watching import Stop, Watch

FRAMEWORK = "accelerate"

JOB = """
    from accelerate import Accelerator, DataLoaderConfiguration
    from accelerate.utils import gather_object, set_seed
    from torch.utils.data import DataLoader, Dataset

    CONFIG, OPTIONS = {config!r}, {options!r}


    class Numbers(Dataset):
        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            return torch.tensor([index / self.size, 1.0])


    def main():
        set_seed(7)
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**CONFIG))
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train_loader = DataLoader(Numbers(48), batch_size=4, shuffle=True, **OPTIONS)
        val_loader = DataLoader(Numbers(24), batch_size=4, **OPTIONS)
        model, optimizer, train_loader, val_loader = accelerator.prepare(
            model, optimizer, train_loader, val_loader
        )
        batches, losses = Digest(), Digest()
        seen = dict(train=0, val=0)

        def stop():
            facts = dict(rank=accelerator.process_index, batches=str(batches), losses=str(losses))
            everyone = gather_object([facts | seen])
            if accelerator.is_main_process:
                tell(ranks=everyone)
            accelerator.wait_for_everyone()

        for epoch in range(2):
            for number, batch in enumerate(train_loader):
                loss = (model(batch) - batch[:, :1]).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                batches.add(batch)
                losses.add(loss)
                seen["train"] += 1
                if epoch == 1 and number == 2:
                    stop()
            for batch in val_loader:
                batches.add(batch)
                losses.add(model(batch).mean())
                seen["val"] += 1
        stop()
        accelerator.end_training()


    if __name__ == "__main__":
        main()
"""

LAUNCHER = (
    str(Path(sys.executable).with_name("accelerate")),
    *("launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


@pytest.mark.parametrize(
    ("config", "options", "ways"),
    [
        ({}, {"num_workers": 2}, ("instrument", "run")),
        ({}, {}, ("instrument",)),
        ({"dispatch_batches": True}, {"num_workers": 2}, ("run",)),
        ({"use_stateful_dataloader": True}, {"num_workers": 2}, ("instrument",)),
    ],
    ids=str,
)
def test_a_prepared_loader_is_read_one_batch_ahead(
    config: dict[str, object], options: dict[str, object], ways: tuple[str, ...], watch: Watch
) -> None:
    middle, end = watch(JOB.format(config=config, options=options), ways=ways)
    assert middle.names() == end.names() == ["train_loader", "val_loader"]
    train = middle.loader("train_loader")
    assert middle.facts["ranks"][0]["train"] == 12 + 3
    assert (train.epochs, train.batches) == (2, 12 + 3 + 1)
    assert [worker.up for worker in train.workers] == [True] * len(train.workers)
    assert len(train.workers) == (2 if options else 0)
    for name, batches in (("train_loader", 24), ("val_loader", 12)):
        one = end.loader(name)
        assert (one.epochs, one.batches, one.samples) == (2, batches, 4 * batches)
        assert one.discarded == one.outstanding == 0
        assert one.config["read_ahead"] == "1"


@pytest.fixture
def launched(watch: Watch) -> Watch:
    """Run a job by `accelerate launch`, as two ranks."""
    watch.launcher = LAUNCHER
    return watch


def by_rank(stop: Stop) -> dict[str, dict[str, tuple[int, int]]]:
    """Return epochs and batches of each loader of each rank, which must be one run's."""
    ranks = stop.snapshot.ranks
    assert len({rank.run for rank in ranks}) == 1
    for rank in ranks:
        assert rank.info["local_rank"] == rank.rank
        assert rank.info["world_size"] == "2"
    return {r.rank: {one.name: (one.epochs, one.batches) for one in r.loaders} for r in ranks}


@pytest.mark.parametrize("config", [{}, {"split_batches": True}], ids=str)
def test_each_rank_that_is_launched_reads_its_shard_itself(
    config: dict[str, object], launched: Watch
) -> None:
    middle, end = launched(JOB.format(config=config, options={"num_workers": 1}), ways=("run",))
    epoch = (
        12 if config else 6
    )  # a batch of 4 is split between the ranks, or each takes every other
    for facts in end.facts["ranks"]:
        assert (facts["train"], facts["val"]) == (2 * epoch, epoch)
    counts = {"train_loader": (2, epoch + 4), "val_loader": (1, epoch // 2)}
    assert by_rank(middle) == {"0": counts, "1": counts}
    counts = {"train_loader": (2, 2 * epoch), "val_loader": (2, epoch)}
    assert by_rank(end) == {"0": counts, "1": counts}


def test_a_dispatcher_reads_on_rank_0_for_all(launched: Watch) -> None:
    config = {"dispatch_batches": True}
    middle, end = launched(JOB.format(config=config, options={"num_workers": 1}), ways=("run",))
    for facts in end.facts["ranks"]:
        assert (facts["train"], facts["val"]) == (12, 6)  # of each two batches every rank has one
    assert by_rank(middle)["0"] == {"train_loader": (2, 12 + 8), "val_loader": (1, 6)}
    assert by_rank(end)["0"] == {"train_loader": (2, 24), "val_loader": (2, 12)}
    # Accelerate makes the iterators of the other ranks too, and never asks them for a batch.
    assert by_rank(end)["1"] == {"train_loader": (2, 0), "val_loader": (2, 0)}
    train = next(o for o in middle.snapshot.ranks[1].loaders if o.name == "train_loader")
    assert train.phase is Phase.STARTUP
    assert [worker.up for worker in train.workers] == [True]
