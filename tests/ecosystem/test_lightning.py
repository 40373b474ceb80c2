"""Lightning: a Trainer with train and val loaders, a sanity check, and DDP."""

from __future__ import annotations

import pytest

from dlmon.segment.layout import Phase
from tests.ecosystem.watching import Watch

FRAMEWORK = "lightning"

JOB = """
    import multiprocessing

    import lightning
    from torch.utils.data import DataLoader, Dataset

    OPTIONS, TRAINER = {options!r}, {trainer!r}
    BATCHES, LOSSES = Digest(), Digest()


    class Numbers(Dataset):
        def __init__(self, size):
            self.size = size

        def __len__(self):
            return self.size

        def __getitem__(self, index):
            return torch.tensor([index / self.size, 1.0])


    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def train_dataloader(self):
            return DataLoader(Numbers(40), batch_size=4, shuffle=True, **OPTIONS)

        def val_dataloader(self):
            return DataLoader(Numbers(20), batch_size=4, **OPTIONS)

        def training_step(self, batch, index):
            loss = (self.layer(batch) - batch[:, :1]).square().mean()
            BATCHES.add(batch)
            LOSSES.add(loss)
            if self.current_epoch == 1 and index == 2 and self.trainer.is_global_zero:
                tell(step=self.global_step, children=len(multiprocessing.active_children()))
            return loss

        def validation_step(self, batch, index):
            BATCHES.add(batch)
            self.log("val", self.layer(batch).mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)


    def main():
        lightning.seed_everything(7)
        quiet = dict.fromkeys(
            ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
        )
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=2, **quiet, **TRAINER)
        trainer.fit(Model())
        if trainer.is_global_zero:
            tell(batches=str(BATCHES), losses=str(LOSSES))
        trainer.strategy.barrier()


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize(
    ("options", "ways"),
    [
        ({"num_workers": 2}, ("instrument", "run")),
        ({"num_workers": 2, "persistent_workers": True}, ("run",)),
        ({}, ("instrument",)),
    ],
    ids=str,
)
def test_a_trainers_epochs_and_its_sanity_check_are_counted(
    options: dict[str, object], ways: tuple[str, ...], watch: Watch
) -> None:
    middle, end = watch(JOB.format(options=options, trainer={}), ways=ways)
    assert middle.names() == end.names() == ["train_dataloader", "val_dataloader"]
    workers = 2 if options else 0

    train, val = middle.loader("train_dataloader"), middle.loader("val_dataloader")
    assert (train.epochs, train.batches) == (2, 10 + 3)
    # A trainer takes as many batches as a loader has and never asks for the end: the iterator that
    # validated lives on, with its workers, until the next validation.
    assert middle.facts["children"] == 2 * workers
    for one in train, val:
        assert [worker.up for worker in one.workers] == [True] * workers
    assert val.phase is Phase.PAUSE

    train, val = end.loader("train_dataloader"), end.loader("val_dataloader")
    assert (train.epochs, train.batches, train.samples) == (2, 20, 80)
    assert (val.epochs, val.batches) == (3, 2 + 5 + 5)  # the sanity check takes 2 batches
    assert val.samples == 4 * (val.batches + val.discarded)
    assert train.config["read_ahead"] == val.config["read_ahead"] == ""
    assert sum(train.errors.values()) == sum(val.errors.values()) == 0


def test_the_ranks_that_ddp_starts_are_ranks_of_one_run(watch: Watch) -> None:
    job = JOB.format(options={"num_workers": 1}, trainer={"strategy": "ddp", "devices": 2})
    middle, _ = watch(job, ways=("run",))
    ranks = middle.snapshot.ranks
    assert [rank.rank for rank in ranks] == ["0", "1"]
    assert len({rank.run for rank in ranks}) == 1
    for rank in ranks:  # Lightning builds the loaders again, with samplers that share out the data
        assert [one.name for one in rank.loaders] == ["train_dataloader", "val_dataloader"]
        train = rank.loaders[0]
        assert train.epochs == 2
        assert [worker.up for worker in train.workers] == [True]
