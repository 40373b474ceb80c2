"""Datasets of every kind that torch has, and those that are none of its classes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    ChainDataset,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)
from torch.utils.data.datapipes.iter import IterableWrapper
from torch.utils.data.datapipes.map import SequenceWrapper

from tests.shapes.datasets import Many, Numbers, Stream, as_they_are, loading, worker_of
from tests.shapes.job import expect, named
from tests.shapes.table import case, each, possible


class Duck:
    """No Dataset, but it has what torch asks for."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> int:
        return index * 11


class Keyed:
    """Its indices are strings; a sampler knows them."""

    def __getitem__(self, key: str) -> str:
        return key.upper()


class Bulk(Dataset[torch.Tensor]):
    """A batch is what is asked for; `batch_size=None` with a sampler of lists."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, indices: list[int]) -> torch.Tensor:
        return torch.as_tensor(indices)


class Itself(IterableDataset[int]):
    """A stream that is its own iterator, and so ends for ever."""

    def __init__(self) -> None:
        self.left = 5

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return self.left


class Generated(IterableDataset[int]):
    """A generator, which has something to do when it is closed."""

    def __iter__(self) -> Iterator[int]:
        try:
            yield from range(worker_of()[0], 9, worker_of()[1])
        finally:
            print("generator closed")


class Endless(IterableDataset[int]):
    """No end."""

    def __iter__(self) -> Iterator[int]:
        return itertools.count(worker_of()[0], worker_of()[1])


def split() -> Dataset[Any]:
    halves = random_split(Numbers(9), [0.5, 0.5], generator=torch.Generator().manual_seed(3))
    return ConcatDataset(halves)


MAPS: list[Callable[[], Any]] = [
    lambda: list(range(9)),
    lambda: tuple(range(9)),
    lambda: "a string of letters",
    lambda: torch.arange(9),
    lambda: np.arange(9.0),
    Duck,
    lambda: TensorDataset(torch.arange(9), torch.arange(9) * 2.0),
    lambda: StackDataset(Numbers(9), Duck()),  # type: ignore[arg-type]  # torch takes it
    lambda: StackDataset(one=Numbers(9), two=Many(9)),
    lambda: ConcatDataset([Numbers(4), Numbers(5)]),
    lambda: Subset(Numbers(30), [7, 3, 29]),
    lambda: Subset(Many(30), [7, 3, 29]),
    split,
    lambda: SequenceWrapper(list(range(9))).map(str),
]
STREAMS: list[Callable[[], Any]] = [
    lambda: Stream(9),
    Itself,
    Generated,
    lambda: ChainDataset([Stream(4), Stream(5)]),
    lambda: Stream(4) + Stream(5),
    lambda: IterableWrapper(range(9)),
    lambda: IterableWrapper(range(9)).shuffle().sharding_filter(),
    lambda: IterableWrapper(range(9)).map(float).batch(2),
]


def unbatched(batch: int | None, **_: object) -> bool:
    """Leave loaders without batches to `make full`: `delivery` has them in every configuration."""
    return batch is None


@case(each(number=range(len(MAPS)), workers=[0, 2], batch=[2, None]), slow=unbatched)
def maps(number: int, workers: int, batch: int | None) -> object:
    loader = DataLoader(MAPS[number](), num_workers=workers, batch_size=batch)
    return list(loader), list(loader)


@case(
    each(
        number=range(len(STREAMS)),
        workers=[0, 2],
        persistent=[False, True],
        batch=[2, None],
        where=possible,
    ),
    slow=unbatched,
)
def streams(number: int, workers: int, persistent: bool, batch: int | None) -> object:
    options = {"num_workers": workers, "persistent_workers": persistent}
    loader = loading(STREAMS[number](), batch_size=batch, **options)
    return list(loader), list(loader)


@case(each(workers=[0, 2], shuffle=[None, False, True]))
def a_pipe_that_shuffles(workers: int, shuffle: bool | None) -> object:
    pipe = IterableWrapper(range(12)).shuffle().sharding_filter()
    loader = loading(pipe, num_workers=workers, shuffle=shuffle, batch_size=3)
    return list(loader), list(loader)


@case(each(workers=[0, 2]), counted=True)
def a_pipe_that_is_counted(workers: int) -> object:
    pipe = IterableWrapper(range(10)).sharding_filter()
    loader = named(loading(pipe, num_workers=workers, batch_size=5), "train")
    batches = list(loader)
    exits = {"normal": workers} if workers else {}
    expect("train", batches=2, samples=10, epochs=1, starts=workers, exits=exits)
    return batches


@case(each(workers=[0, 1, 2]), counted=True)
def an_endless_stream(workers: int) -> object:
    loader = named(loading(Endless(), num_workers=workers), "train")
    first = list(itertools.islice(loader, 20))
    exits = {"normal": workers} if workers else {}
    expect("train", batches=20, samples=None, epochs=1, starts=workers, exits=exits)
    return first


@case(each(workers=[0, 2]), counted=True)
def indices_that_are_strings(workers: int) -> object:
    keys = ["a", "b", "c"]
    loader = loading(
        Keyed(),
        sampler=keys,
        num_workers=workers,
    )
    exits = {"normal": workers} if workers else {}
    expect("train", batches=3, samples=3, epochs=1, starts=workers, exits=exits)
    return list(named(loader, "train"))


@case(each(workers=[0, 2]), counted=True)
def batches_that_the_dataset_makes(workers: int) -> object:
    """One each is counted: what a sample is, only the dataset knows."""
    sampler = [[0, 1, 2], [3], [4, 5, 6, 7]]
    loader = loading(Bulk(), sampler=sampler, batch_size=None, num_workers=workers)
    exits = {"normal": workers} if workers else {}
    expect("train", batches=3, samples=3, epochs=1, starts=workers, exits=exits)
    return list(named(loader, "train"))


@case(each(workers=[0, 1]))
def a_generator_is_closed_when_its_iterator_goes(workers: int) -> object:
    iterator = iter(DataLoader(Generated(), num_workers=workers))
    first = next(iterator)
    print("before")
    del iterator
    print("after")
    return first


class Refuses(Numbers):
    """A dataset that has to do with nobody but torch's own code."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} is looked up") if name.startswith("__") else KeyError(name)


@case(each(workers=[0, 2], batch=[3, None]))
def a_dataset_with_odd_attributes(workers: int, batch: int | None) -> object:
    return list(DataLoader(Refuses(7), num_workers=workers, batch_size=batch))


@case(each(workers=[0, 1]))
def a_pipe_is_reset_by_a_second_iterator(workers: int) -> object:
    """An IterDataPipe has one valid iterator at a time; the older one says so."""
    loader = loading(IterableWrapper(range(6)), num_workers=workers, collate_fn=as_they_are)
    first = iter(loader)
    seen: list[object] = [next(first)]
    second = iter(loader)
    seen.append(next(second))
    try:
        seen.append(next(first))
    except RuntimeError as error:
        seen.append(error)
    return seen
