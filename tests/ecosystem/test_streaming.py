"""mosaicml-streaming: shards of MDS in a local folder, read by a StreamingDataLoader."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ecosystem.watching import Watch

FRAMEWORK = "streaming"

JOB = """
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset

    WORKERS = {workers!r}


    def make():
        data = StreamingDataset(
            local="numbers", batch_size=4, shuffle=True, shuffle_seed=7, num_canonical_nodes=1
        )
        return StreamingDataLoader(data, batch_size=4, num_workers=WORKERS)


    def main():
        if not os.path.exists("numbers"):
            with MDSWriter(out="numbers", columns=dict(x="int"), size_limit=256) as shards:
                for number in range(50):
                    shards.write(dict(x=number))
        train_loader = make()
        iterator = iter(train_loader)
        first = [next(iterator)["x"].tolist() for _ in range(5)]
        state = train_loader.state_dict()
        tell(first=first, state=state)
        rest = [batch["x"].tolist() for batch in iterator]
        tell(rest=rest)
        del iterator, train_loader

        resumed_loader = make()
        resumed_loader.load_state_dict(state)
        again = [batch["x"].tolist() for batch in resumed_loader]
        assert sorted(sum(again, [])) == sorted(sum(rest, [])), (again, rest)
        second = [batch["x"].tolist() for batch in resumed_loader]
        tell(again=again, second=second)


    if __name__ == "__main__":
        main()
"""

STAND_IN = {
    "__init__.py": "",
    "datasets.py": "class VisionDataset: ...\n\n\nclass CIFAR10: ...\n",
    "transforms/__init__.py": "",
    "transforms/functional.py": "def to_tensor(image): raise NotImplementedError\n",
}
"""What streaming imports of torchvision, for its vision datasets, where torchvision cannot be."""


@pytest.fixture
def torchvision(tmp_path: Path) -> Path:
    """A folder from which `import torchvision` gives names and nothing else."""
    folder = tmp_path / "stand-in"
    for name, text in STAND_IN.items():
        file = folder / "torchvision" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.parametrize(
    ("workers", "ways"), [(2, ("instrument", "run")), (0, ("instrument",))], ids=str
)
def test_shards_are_streamed_and_a_state_is_resumed(
    workers: int, ways: tuple[str, ...], watch: Watch, torchvision: Path
) -> None:
    job = JOB.format(workers=workers)
    middle, end, resumed = watch(job, ways=ways, env={"PYTHONPATH": str(torchvision)})
    train = middle.loader("train_loader")
    assert (train.epochs, train.batches) == (1, 5)
    assert [worker.up for worker in train.workers] == [True] * workers
    train = end.loader("train_loader")
    assert (train.epochs, train.batches) == (1, 5 + len(end.facts["rest"]))
    assert train.samples == 50
    loader = resumed.loader("resumed_loader")
    batches = [*resumed.facts["again"], *resumed.facts["second"]]
    assert (loader.epochs, loader.batches) == (2, len(batches))
    assert loader.samples == sum(map(len, batches))
