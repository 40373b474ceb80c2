"""Nothing is fetched, asked or computed earlier, later or more often than without dlmon."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from tests.shapes.datasets import Calls, as_they_are, loading
from tests.shapes.table import case, each


@case(each(batch=[1, 4, None], shuffle=[False, True]))
def calls_of_a_map_dataset(batch: int | None, shuffle: bool) -> object:
    dataset = Calls()
    seen = [list(dataset.calls)]
    loader = DataLoader(dataset, batch_size=batch, shuffle=shuffle)
    seen.append(list(dataset.calls))
    iterator = iter(loader)
    seen.append(list(dataset.calls))
    for _ in iterator:
        seen.append(list(dataset.calls))  # noqa: PERF401  # between one batch and the next
    seen.append(list(dataset.calls))
    return seen


class Attributes(Calls):
    """Writes down which attributes are looked up that it does not have."""

    def __getattr__(self, name: str) -> Any:
        if name != "calls":
            self.calls.append(f"no {name}")
        raise AttributeError(name)


@case()
def the_dataset_is_left_alone_in_the_loop() -> object:
    """dlmon looks once per iteration whether it has __getitems__, as torch does at every batch."""
    dataset = Attributes(4)
    loader = DataLoader(dataset)
    list(loader)
    return set(dataset.calls)


class Stages(IterableDataset[int]):
    """Writes down when it goes from stage to stage."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __iter__(self) -> Iterator[int]:
        self.calls.append("begins")
        for number in range(5):
            self.calls.append(f"gives {number}")
            yield number
        self.calls.append("ends")


@case(each(batch=[2, 5, None]))
def calls_of_a_stream(batch: int | None) -> object:
    dataset = Stages()
    loader = DataLoader(dataset, batch_size=batch)
    dataset.calls.append("loader")
    iterator = iter(loader)
    dataset.calls.append("iterator")
    for _ in iterator:
        dataset.calls.append("delivered")
    next(iterator, None)
    return dataset.calls


class Sample:
    """Something that can be watched going away."""


class Watched:
    """Gives samples that nobody but the loop should hold."""

    def __init__(self) -> None:
        self.alive: list[weakref.ref[Sample]] = []

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        sample = Sample()
        self.alive.append(weakref.ref(sample))
        return sample


@case(each(batch=[1, 2, None]))
def nobody_holds_a_batch(batch: int | None) -> object:
    dataset = Watched()
    loader = loading(
        dataset,
        batch_size=batch,
        collate_fn=as_they_are,
    )
    gc.disable()
    try:
        seen = []
        for given in loader:
            del given
            seen.append([reference() is not None for reference in dataset.alive])
        return seen
    finally:
        gc.enable()


@case()
def nobody_holds_what_a_failed_batch_held() -> object:
    dataset = Watched()

    def collate(samples: Any) -> Any:
        raise ValueError("no batch of these")

    loader = loading(
        dataset,
        collate_fn=collate,
    )
    iterator = iter(loader)
    gc.disable()
    try:
        seen = []
        for _ in range(3):
            with contextlib.suppress(ValueError):
                next(iterator)
            seen.append([reference() is not None for reference in dataset.alive])
        return seen
    finally:
        gc.enable()
