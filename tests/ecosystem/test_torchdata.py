"""torchdata's StatefulDataLoader: what it saves and restores is its own, and it is observed."""

from __future__ import annotations

import pytest

from tests.ecosystem.watching import Watch

FRAMEWORK = "torchdata"

JOB = """
    from torch.utils.data import Dataset, IterableDataset, get_worker_info
    from torchdata.stateful_dataloader import StatefulDataLoader

    KIND, OPTIONS = {kind!r}, {options!r}


    class Map(Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            return torch.tensor(index * 3)


    class Stream(IterableDataset):
        def __iter__(self):
            info = get_worker_info()
            first, step = (info.id, info.num_workers) if info else (0, 1)
            return (torch.tensor(i * 3) for i in range(first, 50, step))


    class Counting:
        '''An iterator that can say where it is.'''

        def __init__(self, first, step):
            self.at, self.step = first, step

        def __iter__(self):
            return self

        def __next__(self):
            if self.at >= 50:
                raise StopIteration
            self.at += self.step
            return torch.tensor((self.at - self.step) * 3)

        def state_dict(self):
            return {{"at": self.at}}

        def load_state_dict(self, state):
            self.at = state["at"]


    class StatefulStream(IterableDataset):
        def __iter__(self):
            info = get_worker_info()
            return Counting(info.id, info.num_workers) if info else Counting(0, 1)


    def make():
        torch.manual_seed(7)
        dataset = {{"map": Map, "stream": Stream, "stateful": StatefulStream}}[KIND]()
        return StatefulDataLoader(dataset, batch_size=4, shuffle=KIND == "map" or None, **OPTIONS)


    def read(iterator, count):
        return [next(iterator).tolist() for _ in range(count)]


    def plain(state):
        return json.dumps(state, default=lambda tensor: tensor.tolist())


    def main():
        train_loader = make()
        iterator = iter(train_loader)
        first = read(iterator, 5)
        state = train_loader.state_dict()
        tell(first=first, state=plain(state))
        rest = [batch.tolist() for batch in iterator]
        tell(rest=rest, state=plain(train_loader.state_dict()))
        del iterator, train_loader

        resumed_loader = make()
        resumed_loader.load_state_dict(state)
        iterator = iter(resumed_loader)
        again = read(iterator, 2)
        saved = resumed_loader.state_dict()
        again += [batch.tolist() for batch in iterator]
        assert again == rest, (again, rest)
        tell(again=again, state=plain(saved))
        second = [batch.tolist() for batch in resumed_loader]
        tell(second=second, state=plain(resumed_loader.state_dict()))


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("map", {}),
        ("map", {"num_workers": 2}),
        ("map", {"num_workers": 2, "snapshot_every_n_steps": 3}),
        ("map", {"num_workers": 2, "persistent_workers": True}),
        ("map", {"num_workers": 2, "multiprocessing_context": "spawn"}),
        ("stream", {}),
        ("stream", {"num_workers": 2}),
        ("stateful", {"num_workers": 2, "persistent_workers": True}),
    ],
    ids=str,
)
def test_a_state_saved_in_mid_epoch_resumes_with_the_same_batches(
    kind: str, options: dict[str, object], watch: Watch
) -> None:
    way = "run" if "num_workers" in options else "instrument"
    middle, end, resumed, again = watch(JOB.format(kind=kind, options=options), ways=(way,))
    workers = int(str(options.get("num_workers", 0)))
    persistent = bool(options.get("persistent_workers"))

    train = middle.loader("train_loader")
    assert (train.epochs, train.batches) == (1, 5)
    assert [worker.up for worker in train.workers] == [True] * workers

    train = end.loader("train_loader")
    assert (train.epochs, train.batches, train.samples) == (1, *total(end.facts, "rest", before=5))
    assert sum(train.fetch.counts) == train.batches
    assert train.worker_starts == workers
    assert train.worker_exits["normal"] == (0 if persistent else workers)
    assert [worker.up for worker in train.workers] == [True if persistent else None] * workers

    loader = resumed.loader("resumed_loader")
    assert (loader.epochs, loader.batches) == (1, len(resumed.facts["again"]))
    loader = again.loader("resumed_loader")
    batches = len(resumed.facts["again"]) + len(again.facts["second"])
    assert (loader.epochs, loader.batches) == (2, batches)
    assert loader.outstanding == loader.ready == 0


def total(facts: dict[str, list[list[int]]], name: str, *, before: int) -> tuple[int, int]:
    """Return batches and samples of a list of batches, with `before` full ones before it."""
    batches = facts[name]
    return before + len(batches), 4 * before + sum(map(len, batches))
