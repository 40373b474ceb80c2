"""Loaders and iterators built in every place and by every means that Python has.

dlmon looks at the code that builds a loader, to find a name for it: whatever that code is.
"""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import functools
import operator
from collections.abc import Iterator
from typing import Any, Generic, Protocol, TypeVar

from torch.utils.data import DataLoader
from torch.utils.data.dataloader import (
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from tests.shapes.datasets import Numbers, loader_of, shut
from tests.shapes.job import expect, named
from tests.shapes.table import case, each


class InClassBody:
    loader = DataLoader(Numbers(2))
    many = tuple(DataLoader(Numbers(number)) for number in range(1, 3))


@dataclasses.dataclass
class InField:
    loader: DataLoader[Any] = dataclasses.field(default_factory=lambda: DataLoader(Numbers(2)))


class InProperty:
    @functools.cached_property
    def loader(self) -> DataLoader[Any]:
        return DataLoader(Numbers(2))

    def __getattr__(self, name: str) -> DataLoader[Any]:
        return DataLoader(Numbers(len(name)))


def generated() -> Iterator[DataLoader[Any]]:
    yield DataLoader(Numbers(2))
    with_it = yield DataLoader(Numbers(3))
    assert with_it is None


async def awaited() -> DataLoader[Any]:
    await asyncio.sleep(0)
    return DataLoader(Numbers(2))


def decorated(dataset: Numbers) -> DataLoader[Any]:
    return DataLoader(dataset)


def recursive(depth: int) -> DataLoader[Any]:
    return recursive(depth - 1) if depth else DataLoader(Numbers(2))


def executed() -> DataLoader[Any]:
    names: dict[str, Any] = {"DataLoader": DataLoader, "Numbers": Numbers}
    exec("a = b = c = DataLoader(Numbers(2)); (d, e), *f = (a, b), c", names)
    loader: DataLoader[Any] = names["f"][0]
    return loader


def without_init() -> DataLoader[Any]:
    loader: DataLoader[Any] = object.__new__(DataLoader)
    loader.__dict__.update(vars(loader_of(2)))
    return loader


@case()
def places() -> object:
    holder: dict[Any, Any] = {}
    holder["key"] = DataLoader(Numbers(1))
    holder[0], holder.setdefault(1, []).append(DataLoader(Numbers(2)))
    one, (two, *rest) = DataLoader(Numbers(1)), [DataLoader(Numbers(n)) for n in (2, 3, 4)]
    if (walrus := DataLoader(Numbers(2))) and f"{DataLoader(Numbers(1))}":
        holder["walrus"] = walrus
    built: list[DataLoader[Any]] = [
        *(holder["key"], one, two, *rest, walrus),
        *map(DataLoader, [Numbers(1), Numbers(2)]),
        functools.partial(DataLoader, num_workers=0)(Numbers(2)),
        functools.reduce(lambda _, n: DataLoader(Numbers(n)), [1, 2], DataLoader(Numbers(3))),
        operator.call(DataLoader, Numbers(2)) if hasattr(operator, "call") else one,
        InClassBody.loader,
        *InClassBody.many,
        InField().loader,
        InProperty().loader,
        InProperty().abc,
        *generated(),
        asyncio.run(awaited()),
        decorated(Numbers(2)),
        recursive(30),
        eval("DataLoader(Numbers(2))"),
        executed(),
        without_init(),
        *[DataLoader(Numbers(n)) if n else DataLoader(Numbers(3)) for n in range(2)],
    ]
    return [[int(batch) for batch in loader] for loader in built]


Item = TypeVar("Item")


class Mixin:
    """Takes its own argument out of the options, and passes the others on."""

    def __init__(self, *args: Any, mine: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.mine = mine


class Mixed(Mixin, DataLoader[Any]):
    pass


class Abstract(abc.ABC, DataLoader[Item]):
    @abc.abstractmethod
    def answer(self) -> int: ...


class Concrete(Abstract[Any]):
    def answer(self) -> int:
        return 42


class HasLength(Protocol):
    def __len__(self) -> int: ...


class Typed(DataLoader[Item], Generic[Item]):
    pass


class Meta(type):
    """Makes every loader twice, and gives back the second."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        super().__call__(*args, **options)
        return super().__call__(*args, **options)


class Made(DataLoader[Any], metaclass=Meta):
    pass


class InitTwice(DataLoader[Any]):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        vars(self).clear()
        super().__init__(*args, **options)


class Slots(DataLoader[Any]):
    __slots__ = ("extra",)


CLASSES: list[type[DataLoader[Any]]] = [Mixed, Concrete, Typed, Made, InitTwice, Slots]


@case(each(kind=CLASSES, workers=[0, 1]), counted=True)
def classes(kind: type[DataLoader[Any]], workers: int) -> object:
    loader = named(kind(Numbers(3), num_workers=workers), "train")
    seen = [list(loader), list(loader)]
    exits = {"normal": 2 * workers} if workers else {}
    expect("train", batches=6, samples=6, epochs=2, starts=2 * workers, exits=exits)
    return seen, [c.__name__ for c in type(loader).__mro__], sorted(vars(loader))


@case(each(workers=[0, 1]), counted=True)
def iterators_by_hand(workers: int) -> object:
    """As frameworks do that go past `iter()`."""
    loader = named(loader_of(3, num_workers=workers), "train")
    kind: Any = _MultiProcessingDataLoaderIter if workers else _SingleProcessDataLoaderIter
    seen = [
        list(kind(loader)),
        list(loader._get_iterator()),
        list(DataLoader.__iter__(loader)),
        [type(it).__next__(it) for it in [iter(loader)] for _ in range(3)],
    ]
    exits = {"normal": 4 * workers} if workers else {}
    expect("train", batches=12, samples=12, epochs=4, starts=4 * workers, exits=exits)
    return seen


@case(each(workers=[0, 1]), counted=True)
def an_iterator_reset_by_hand(workers: int) -> object:
    """`_reset` starts it anew; with one that fetches itself nobody else does that."""
    loader = named(loader_of(4, num_workers=workers), "train")
    iterator: Any = iter(loader)
    seen = [next(iterator), next(iterator)]
    iterator._reset(loader)
    seen += list(iterator)
    exits = {"normal": workers} if workers else {}
    samples = None if workers else 6
    expect("train", batches=6, samples=samples, epochs=2, starts=workers, exits=exits)
    return seen


@case(each(workers=[0, 1]), counted=True)
def an_iterator_made_twice(workers: int) -> object:
    """Its constructor is called again, on the same object."""
    loader = named(loader_of(4, num_workers=workers), "train")
    iterator: Any = iter(loader)
    seen = [next(iterator), next(iterator)]
    shut(iterator)
    iterator.__init__(loader)
    seen += list(iterator)
    exits = {"normal": 2 * workers} if workers else {}
    samples = None if workers else 6
    expect("train", batches=6, samples=samples, epochs=2, starts=2 * workers, exits=exits)
    return seen
