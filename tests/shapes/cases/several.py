"""Several loaders or iterators at once: each has its own data, and its own books."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.shapes.datasets import Numbers, Stream, as_they_are, loader_of, loading, worker_of
from tests.shapes.job import expect, look, named
from tests.shapes.records import told
from tests.shapes.table import case, each, possible


def exits(count: int) -> dict[str, int]:
    return {"normal": count} if count else {}


@case(each(workers=[(0, 0), (0, 2), (1, 2)]), counted=True)
def zipped(workers: tuple[int, int]) -> object:
    one = named(loader_of(9, num_workers=workers[0]), "one")
    two = named(loader_of(14, num_workers=workers[1], batch_size=2), "two")
    seen = list(zip(one, two, strict=False))
    samples = None if workers[0] else 8
    expect("one", batches=8, samples=samples, epochs=1, starts=workers[0], exits=exits(workers[0]))
    expect("two", batches=7, samples=14, epochs=1, starts=workers[1], exits=exits(workers[1]))
    return len(seen), seen


@case(each(workers=[0, 1, 2]), counted=True)
def two_iterators_of_one_loader(workers: int) -> object:
    loader = named(loader_of(8, num_workers=workers), "train")
    first, second = iter(loader), iter(loader)
    seen = [next(first), next(second), next(first)]
    look(
        train={
            "batches": 3,
            "samples": None,
            "epochs": 2,
            "starts": 2 * workers,
            "alive": workers,  # slots
            "capacity": 2 * 2 * workers,
        }
    )
    seen += [*first, *second]
    expect("train", batches=16, samples=16, epochs=2, starts=2 * workers, exits=exits(2 * workers))
    return seen


@case(counted=True)
def two_loops_over_one_persistent_loader() -> object:
    """torch has one iterator for both: the inner loop resets it, and the outer one ends with it."""
    loader = named(loader_of(5, num_workers=1, persistent_workers=True), "train")
    seen = []
    for outer in loader:
        seen.append(["outer", outer])
        seen += [["inner", inner] for inner in loader]
    del loader
    expect("train", batches=6, samples=None, epochs=2, starts=1, exits={"normal": 1})
    return seen


@case(each(workers=[0, 1]), counted=True)
def a_loader_in_anothers_loop(workers: int) -> object:
    train = named(loader_of(4, num_workers=workers), "train")
    validation = named(loader_of(3, num_workers=workers), "validation")
    seen = []
    for batch in train:
        seen += [batch, *validation]
    expect("train", batches=4, samples=4, epochs=1, starts=workers, exits=exits(workers))
    expect(
        "validation", batches=12, samples=12, epochs=4, starts=4 * workers, exits=exits(4 * workers)
    )
    return seen


@case(
    each(workers=[0, 2], persistent=[False, True], where=possible),
    counted=True,
)
def taken_in_turns(workers: int, persistent: bool) -> object:
    options = {"num_workers": workers, "persistent_workers": persistent}
    loaders = [named(loader_of(4 + n, **options), f"loader {n}") for n in range(3)]
    iterators = [iter(loader) for loader in loaders]
    seen = []
    for turn in range(6):
        seen += [next(iterator, turn) for iterator in iterators]
    for n in range(3):
        wanted = {"starts": workers, "exits": exits(workers)}
        expect(f"loader {n}", batches=4 + n, samples=4 + n, epochs=1, **wanted)
    del iterators, loaders
    return seen


class Inner(Dataset[Any]):
    """Each sample is a small epoch of a loader within."""

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        inner = named(loader_of(index + 2, num_workers=self.workers), "inner")
        return torch.stack([batch.sum() for batch in inner]).sum()


@case(each(outer=[0, 1, 2], inner=[0]), counted=True)
def a_loader_in_a_dataset(outer: int, inner: int) -> object:
    """A worker's own loaders are counted to its rank, at least as long as the worker lives."""
    loader = named(loading(Inner(inner), num_workers=outer), "outer")
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(4)]
    look(inner={"batches": 14, "samples": 14, "epochs": 4})
    seen += list(iterator)
    expect("outer", batches=4, samples=4, epochs=1, starts=outer, exits=exits(outer))
    return seen


@case()
def workers_in_a_dataset_of_the_rank() -> object:
    return list(DataLoader(Inner(workers=1)))


@case(slow=True)  # the error's traceback keeps the iterator: torch waits 5 s for its worker
def workers_may_have_no_workers() -> object:
    """Daemonic processes are not allowed to have children."""
    return list(DataLoader(Inner(workers=1), num_workers=1))


class Shared(IterableDataset[Any]):
    """Its loader is made before the workers, and goes on in them."""

    def __init__(self) -> None:
        self.inner = loader_of(10, num_workers=0)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.inner):
            if number % worker_of()[1] == worker_of()[0]:
                yield batch


@case(each(workers=[0, 1, 2], begun=[False, True]))
def a_loader_from_before_the_workers(workers: int, begun: bool) -> object:
    dataset = Shared()
    if begun:
        list(dataset.inner)
    return list(DataLoader(dataset, num_workers=workers, collate_fn=as_they_are))


class Half(IterableDataset[Any]):
    """Goes on with an iterator that somebody else has begun."""

    def __init__(self, iterator: Any) -> None:
        self.iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterator)


@case(each(workers=[0, 1]))
def an_iterator_that_goes_on_in_another_loader(workers: int) -> object:
    iterator = iter(loader_of(8))
    first = [next(iterator), next(iterator)]
    rest = list(DataLoader(Half(iterator), num_workers=workers, batch_size=2))
    return first, rest, list(iterator)


@case(each(workers=[1]), counted=True)
def one_dataset_in_two_loaders(workers: int) -> object:
    numbers = Numbers(6)
    one = named(DataLoader(numbers, num_workers=workers), "one")
    two = named(DataLoader(numbers, batch_size=3), "two")
    seen = [list(one), list(two)]
    expect("one", batches=6, samples=6, epochs=1, starts=workers, exits=exits(workers))
    expect("two", batches=2, samples=6, epochs=1)
    return seen


@case()
def many_loaders_alive() -> object:
    loaders = [loader_of(3) for _ in range(40)]
    iterators = [iter(loader) for loader in loaders]
    return [[next(iterator, None) for iterator in iterators] for _ in range(4)]


@case(counted=True)
def streams_that_end_apart() -> object:
    """Workers of a stream end one by one, while the others go on."""
    loader = named(DataLoader(Ragged(), num_workers=3, batch_size=2), "train")
    seen = list(loader)
    expect("train", batches=6, samples=11, epochs=1, starts=3, exits={"normal": 3})
    return seen


class Ragged(Stream):
    """0, 1 and 10 samples for three workers."""

    def __iter__(self) -> Iterator[Any]:
        return iter(range([0, 1, 10][worker_of()[0]]))


@case()
def an_error_while_another_loops() -> object:
    seen: list[object] = []
    for batch in loader_of(3):
        seen.append(batch)
        try:
            list(loader_of(3, sampler=[0, "x"]))
        except Exception as error:  # noqa: BLE001
            seen.append(told(error))
    return seen
