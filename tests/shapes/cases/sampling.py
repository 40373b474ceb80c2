"""Samplers and batch samplers, torch's and users', good and odd."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from tests.shapes.datasets import Calls, Many, Numbers, as_they_are, loader_of
from tests.shapes.job import expect, named
from tests.shapes.table import case, each


class Backwards(Sampler[int]):
    """Its own length, its own order."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length - 1, -1, -1))

    def __len__(self) -> int:
        return self.length


class Unsized:
    """An iterable that is no Sampler and has no length."""

    def __iter__(self) -> Iterator[int]:
        yield from (4, 2, 0)


def weighted() -> Sampler[int]:
    return WeightedRandomSampler([0.1, 0.9, 0.4, 0.7, 3.0, 0.6], 8)


def distributed() -> Sampler[int]:
    sampler: DistributedSampler[Any] = DistributedSampler(
        Numbers(), num_replicas=3, rank=1, shuffle=True
    )
    sampler.set_epoch(2)
    return sampler


SAMPLERS: list[Callable[[], Iterable[Any]]] = [
    lambda: SequentialSampler(range(6)),
    lambda: RandomSampler(range(6)),
    lambda: RandomSampler(range(6), replacement=True, num_samples=9),
    lambda: RandomSampler(range(6), generator=torch.Generator().manual_seed(8)),
    lambda: SubsetRandomSampler([5, 1, 3]),
    weighted,
    distributed,
    lambda: Backwards(6),
    Unsized,
    lambda: [3, 1, 2],
    lambda: range(2, 9, 3),
    lambda: np.array([3, 1, 2]),
    lambda: torch.tensor([3, 1, 2]),
    lambda: deque([1, 2]),
]


@case(
    each(number=range(len(SAMPLERS)), workers=[0, 2], batch=[2, None]),
    slow=lambda batch, **_: batch is None,
)
def samplers(number: int, workers: int, batch: int | None) -> object:
    loader = loader_of(sampler=SAMPLERS[number](), num_workers=workers, batch_size=batch)
    return list(loader), list(loader)


class Batches:
    """Batches of any kind: what a map dataset needs is that they can be iterated."""

    def __init__(self, kinds: list[Callable[[list[int]], Any]]) -> None:
        self.kinds = kinds

    def __iter__(self) -> Iterator[Any]:
        for number, kind in enumerate(self.kinds):
            yield kind(list(range(number, number + 3)))

    def __len__(self) -> int:
        return len(self.kinds)


def generator(indices: list[int]) -> Iterator[int]:
    yield from indices


def range_of(indices: list[int]) -> range:
    return range(indices[0], indices[-1] + 1)


ANY = (list, tuple, set, deque, iter, generator, np.array, torch.tensor, dict.fromkeys, range_of)
KINDS: list[Callable[[list[int]], Any]] = list(ANY)
"""The first decides how dlmon counts a batch's samples; those after it need not be alike."""

PICKLED = [kind for kind in KINDS if kind not in (iter, generator)]


@case(each(number=range(len(KINDS))), counted=True)
def batches_of_every_kind(number: int) -> object:
    kinds = [*KINDS[number:], *KINDS[:number]]
    sampler = Batches(kinds)
    loader = named(DataLoader(Numbers(), batch_sampler=sampler), "train")
    batches = list(loader)
    expect("train", batches=len(kinds), samples=3 * len(kinds), epochs=1)
    return batches


@case(each(number=range(len(PICKLED)), many=[False, True]), counted=True)
def batches_of_every_kind_for_workers(number: int, many: bool) -> object:
    kinds = [*PICKLED[number:], *PICKLED[:number]]
    dataset = Many() if many else Numbers()
    sampler: Any = Batches(kinds)
    loader = named(DataLoader(dataset, batch_sampler=sampler, num_workers=2), "train")
    batches = list(loader)
    count = len(kinds)
    expect("train", batches=count, samples=3 * count, epochs=1, starts=2, exits={"normal": 2})
    return batches


@case(each(workers=[0, 2], drop=[False, True]), counted=True)
def a_batch_sampler_of_torch(workers: int, drop: bool) -> object:
    sampler = BatchSampler(Backwards(11), 4, drop)
    loader = named(loader_of(batch_sampler=sampler, num_workers=workers), "train")
    batches = list(loader)
    exits = {"normal": workers} if workers else {}
    samples = 8 if drop else 11
    expect("train", batches=3 - drop, samples=samples, epochs=1, starts=workers, exits=exits)
    return len(loader), batches


class Uneven:
    """Batches of 1, 5, 2 and none, and an attribute that a stranger should not touch."""

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[3], [5, 6, 7, 8, 9], [1, 2], []])

    @property
    def batch_size(self) -> int:
        raise AttributeError("there is no one size")


@case(each(workers=[0, 1, 2], many=[False, True]), counted=True)
def uneven_batches(workers: int, many: bool) -> object:
    dataset = Many() if many else Numbers()
    sampler: Any = Uneven()
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=as_they_are)
    exits = {"normal": workers} if workers else {}
    expect("train", batches=4, samples=8, epochs=1, starts=workers, exits=exits)
    return list(named(loader, "train"))


class Written(Sampler[int]):
    """Writes down when it is asked for what."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __iter__(self) -> Iterator[int]:
        self.calls.append("iter")
        for index in range(6):
            self.calls.append(f"gives {index}")
            yield index
        self.calls.append("ends")

    def __len__(self) -> int:
        self.calls.append("len")
        return 6


@case(each(workers=[0, 1, 2]))
def when_a_sampler_is_asked(workers: int) -> object:
    sampler = Written()
    loader = DataLoader(Calls(), sampler=sampler, num_workers=workers, prefetch_factor=None)
    sampler.calls.append("made")
    iterator = iter(loader)
    sampler.calls.append("iterator made")
    for _ in iterator:
        sampler.calls.append("delivered")
    return sampler.calls


@case(each(workers=[0, 2]))
def an_epoch_set_between_epochs(workers: int) -> object:
    sampler: DistributedSampler[Any] = DistributedSampler(Numbers(), num_replicas=2, rank=0)
    loader = loader_of(sampler=sampler, num_workers=workers, batch_size=5)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(loader))
    return epochs
