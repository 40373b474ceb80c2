"""Whole epochs, in every configuration: what is delivered, in which order, and how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.shapes.datasets import KINDS, Numbers, as_they_are, loader_of, loading, size, worker_of
from tests.shapes.job import expect, named
from tests.shapes.records import told
from tests.shapes.table import case, each, possible

BATCHES: list[dict[str, Any]] = [
    {"batch_size": 4},
    {"batch_size": 4, "drop_last": True},
    {"batch_size": None},
]


@case(each(kind=list(KINDS), batches=BATCHES, workers=[0, 1, 3]), counted=True)
def two_epochs(kind: str, batches: Mapping[str, Any], workers: int) -> object:
    loader = named(loading(KINDS[kind](), num_workers=workers, **batches), "train")
    epochs = [list(loader) for _ in range(2)]
    delivered = [batch for epoch in epochs for batch in epoch]
    expect(
        "train",
        batches=len(delivered),
        samples=sum(size(batch) for batch in delivered),
        epochs=2,
        startups=2,
        fetched=len(delivered),
        starts=2 * workers,
        exits={"normal": 2 * workers} if workers else {},
    )
    return epochs


@case(
    each(kind=list(KINDS), batches=BATCHES, workers=[1, 2], prefetch=[1, 2, 5]),
    counted=True,
    slow=lambda kind, workers, prefetch, **_: kind == "many" or workers == 1 or prefetch == 1,
)
def three_persistent_epochs(
    kind: str, batches: Mapping[str, Any], workers: int, prefetch: int
) -> object:
    options = {"prefetch_factor": prefetch, "persistent_workers": True, **batches}
    loader = named(loading(KINDS[kind](), num_workers=workers, **options), "train")
    epochs = [list(loader) for _ in range(3)]
    delivered = [batch for epoch in epochs for batch in epoch]
    expect(
        "train",
        batches=len(delivered),
        samples=sum(size(batch) for batch in delivered),
        epochs=3,
        startups=3,
        fetched=len(delivered),
        starts=workers,
        exits={"normal": workers},
    )
    return epochs


@case(
    each(workers=[0, 2], persistent=[False, True], length=[0, 1, 3], where=possible), counted=True
)
def hardly_any_samples(workers: int, persistent: bool, length: int) -> object:
    options = {"num_workers": workers, "persistent_workers": persistent, "batch_size": 4}
    loader = named(loader_of(length, **options), "train")
    epochs = [list(loader) for _ in range(2)]
    starts = workers if persistent else 2 * workers
    expect(
        "train",
        batches=2 * bool(length),
        samples=2 * length,
        epochs=2,
        startups=2 * bool(length),
        starts=starts,
        exits={"normal": starts} if starts else {},
    )
    return epochs


@case(each(workers=[0, 1, 2], kind=list(KINDS)))
def lengths(workers: int, kind: str) -> object:
    loader = loading(KINDS[kind](), num_workers=workers, batch_size=5)
    found: list[object] = []
    for sized in (loader, iter(loader)):
        try:
            found.append(len(sized))
        except TypeError as error:
            found.append(told(error))  # the error itself would keep the iterator
    return found


def in_its_worker(samples: list[torch.Tensor]) -> tuple[list[int], int]:
    return [int(sample) for sample in samples], worker_of()[0]


@case(each(workers=[1, 2, 3], batch=[1, 5]))
def which_worker_has_which_batch(workers: int, batch: int) -> object:
    return list(loader_of(num_workers=workers, batch_size=batch, collate_fn=in_its_worker))


@case(each(workers=[0, 2], persistent=[False, True], where=possible))
def batches_are_not_the_same_object_twice(workers: int, persistent: bool) -> object:
    loader = loader_of(num_workers=workers, persistent_workers=persistent)
    batches = [*loader, *loader]
    return len({id(batch) for batch in batches}), len({batch.data_ptr() for batch in batches})


@case(each(workers=[0, 2]), counted=True)
def a_dataset_that_grows(workers: int) -> object:
    numbers = Numbers(4)
    loader = named(DataLoader(numbers, num_workers=workers), "train")
    before = len(loader), list(loader)
    numbers.length = 6
    after = len(loader), list(loader)
    exits = {"normal": 2 * workers} if workers else {}
    expect("train", batches=10, samples=10, epochs=2, starts=2 * workers, exits=exits)
    return before, after


class Offset(Numbers):
    offset = 0

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index) + self.offset


@case(each(workers=[0, 1], persistent=[False, True], where=possible))
def a_dataset_that_changes_between_epochs(workers: int, persistent: bool) -> object:
    numbers = Offset(4)
    loader = DataLoader(numbers, num_workers=workers, persistent_workers=persistent)
    epochs = []
    for offset in (0, 10, 100):
        numbers.offset = offset
        epochs.append(list(loader))
    return epochs


@case(each(workers=[0, 2]))
def workers_changed_on_the_loader(workers: int) -> object:
    """`num_workers` is an attribute that torch lets its user set."""
    loader = loader_of(6, num_workers=workers)
    epochs = [list(loader)]
    loader.num_workers = 2 - workers
    loader.prefetch_factor = 2
    epochs.append(list(loader))
    return epochs


@case(each(workers=[0, 2], pin=[False, True], collate=[None, as_they_are]))
def options_that_change_nothing(workers: int, pin: bool, collate: Any) -> object:
    return list(loader_of(num_workers=workers, pin_memory=pin, collate_fn=collate, batch_size=3))
