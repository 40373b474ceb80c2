"""Users' own loaders and iterators: subclasses, overrides, odd classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import (
    _BaseDataLoaderIter,
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from tests.shapes.datasets import Numbers, loader_of
from tests.shapes.job import expect, named
from tests.shapes.table import case, each


def exits(count: int) -> dict[str, int]:
    return {"normal": count} if count else {}


class Wrapped(DataLoader[Any]):
    """`__iter__` is a generator around torch's."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            yield batch + 100


class OwnInit(DataLoader[Any]):
    """Sets things before and after torch's constructor, which must not be called twice."""

    def __init__(self, length: int, **options: Any) -> None:
        self.before = "set before"
        super().__init__(Numbers(length), **options)
        self.after = "set after"


class Doubling(_SingleProcessDataLoaderIter):
    """Overrides the step that fetches."""

    def _next_data(self) -> Any:
        return super()._next_data() * 2  # type: ignore[no-untyped-call]


class DoublingWorkers(_MultiProcessingDataLoaderIter):
    def _next_data(self) -> Any:
        return super()._next_data() * 2  # type: ignore[no-untyped-call]


class Doubled(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return Doubling(self) if self.num_workers == 0 else DoublingWorkers(self)


class Countdown(_SingleProcessDataLoaderIter):
    """Overrides `__next__` itself, and calls torch's."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self.left = 3

    def __next__(self) -> Any:
        if self.left == 0:
            raise StopIteration
        self.left -= 1
        return super().__next__()


class CountdownLoader(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return Countdown(self)


class Foreign(_BaseDataLoaderIter):
    """One that fetches in its own way, with nothing of torch's but the base."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self.given = 0

    def _next_data(self) -> Any:
        if self.given == 4:
            raise StopIteration
        self.given += 1
        return torch.tensor(self.given)


class ForeignLoader(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return Foreign(self)


class NoInit(_SingleProcessDataLoaderIter):
    """Does not call torch's constructor at all."""

    def __init__(self, _loader: Any) -> None:
        self._profile_name = "mine"
        self._sampler_iter = iter([0, 1, 2])
        self._dataset_kind = 0
        self._num_yielded = 0

    def _next_data(self) -> Any:
        return next(self._sampler_iter)


class NoInitLoader(DataLoader[Any]):
    def _get_iterator(self) -> Any:
        return NoInit(self)


class Unhashable(DataLoader[Any]):
    """Equal to others like it, so that it has no hash; and of no truth."""

    def __eq__(self, other: object) -> bool:
        raise TypeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise TypeError("neither true nor false")


class Attributes(DataLoader[Any]):
    """Answers any name it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"made up: {name}"


class EndlessLoader(DataLoader[Any]):
    """Starts again by itself, as timm's and ultralytics' do, with one iterator for ever."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        object.__setattr__(self, "batch_sampler", Repeating(self.batch_sampler))
        self.iterator = super().__iter__()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for _ in range(3):
            yield next(self.iterator)


class Repeating:
    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)


@case(each(workers=[0, 2]), counted=True)
def a_wrapped_loader(workers: int) -> object:
    loader = named(Wrapped(Numbers(5), num_workers=workers), "train")
    seen = [list(loader), [b for b, _ in zip(loader, range(2), strict=False)]]
    starts = 2 * workers
    samples = None if workers else 8
    expect("train", batches=8, samples=samples, epochs=2, starts=starts, exits=exits(starts))
    return seen


@case(each(workers=[0, 1]), counted=True)
def an_own_constructor(workers: int) -> object:
    loader = named(OwnInit(5, num_workers=workers), "train")
    seen = list(loader)
    expect("train", batches=5, samples=5, epochs=1, starts=workers, exits=exits(workers))
    return seen, sorted(vars(loader)), loader.before, loader.after


@case(each(workers=[0, 2]), counted=True)
def an_overridden_next_data(workers: int) -> object:
    loader = named(Doubled(Numbers(5), num_workers=workers), "train")
    iterator = iter(loader)
    seen = list(iterator)
    expect("train", batches=5, samples=5, epochs=1, starts=workers, exits=exits(workers))
    return seen, type(iterator).__name__


@case(counted=True)
def an_overridden_next() -> object:
    """It ends in its own way, which nobody hears of before the iterator goes."""
    loader = named(CountdownLoader(Numbers(9)), "train")
    seen = [list(loader), list(loader)]
    expect("train", batches=6, samples=6, epochs=2)
    return seen


@case(counted=True)
def a_foreign_iterator() -> object:
    loader = named(ForeignLoader(Numbers(9)), "train")
    seen = list(loader)
    expect("train", batches=4, samples=None, epochs=1)
    return seen


@case()
def an_iterator_without_torchs_constructor() -> object:
    return list(NoInitLoader(Numbers(9)))


@case(each(kind=[Unhashable, Attributes], workers=[0, 1]), counted=True)
def odd_loaders(kind: type[DataLoader[Any]], workers: int) -> object:
    loader = named(kind(Numbers(4), num_workers=workers), "train")
    seen = [list(loader), list(loader)]
    starts = 2 * workers
    expect("train", batches=8, samples=8, epochs=2, starts=starts, exits=exits(starts))
    return seen


@case(each(workers=[0, 1]), counted=True)
def an_endless_loader(workers: int) -> object:
    loader = named(EndlessLoader(Numbers(2), num_workers=workers), "train")
    seen = [list(loader) for _ in range(3)]
    del loader
    expect("train", batches=9, samples=None, epochs=1, starts=workers, exits=exits(workers))
    return seen


@case(each(workers=[0, 1]))
def a_patched_instance(workers: int) -> object:
    """Methods set on one iterator or one loader, as debugging code does."""
    loader = loader_of(4, num_workers=workers)
    iterator: Any = iter(loader)
    calls: list[str] = []

    def traced(original: Any = iterator._next_data) -> Any:
        calls.append("next_data")
        return original()

    iterator._next_data = traced
    return list(iterator), calls


@case(each(workers=[0, 1]))
def a_patched_class(workers: int) -> object:
    """Another library's patch above dlmon's, and taken out again."""
    before = _BaseDataLoaderIter.__next__
    calls: list[str] = []

    def counted(self: Any) -> Any:
        calls.append("next")
        return before(self)

    _BaseDataLoaderIter.__next__ = counted  # type: ignore[method-assign]
    try:
        seen = list(loader_of(4, num_workers=workers))
    finally:
        _BaseDataLoaderIter.__next__ = before  # type: ignore[method-assign]
    return seen, calls, list(loader_of(2, num_workers=workers))


@case(each(workers=[0, 1]))
def a_patched_fetcher(workers: int) -> object:
    """A user's own `fetch` on the fetcher of an iterator that is running."""
    iterator: Any = iter(loader_of(6))
    seen = [next(iterator), next(iterator)]
    fetcher = iterator._dataset_fetcher
    original = fetcher.fetch
    fetcher.fetch = lambda indices: original(indices) + 50
    seen += list(iterator)
    return seen
