"""What a sample or a batch can be: every type arrives as it would."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate, default_convert

from tests.shapes.datasets import as_they_are, loading
from tests.shapes.job import expect, named
from tests.shapes.table import case, each


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


@dataclasses.dataclass
class Record:
    number: int
    text: str


class Color(enum.Enum):
    RED = 1


class Frozen(Mapping[str, int]):
    """A mapping that is not a dict."""

    def __init__(self, items: Mapping[str, int]) -> None:
        self.items_ = dict(items)

    def __getitem__(self, key: str) -> int:
        return self.items_[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.items_)

    def __len__(self) -> int:
        return len(self.items_)


class Words(list[str]):
    """A list of a class of its own."""


SAMPLES: dict[str, list[Any]] = {
    "tensors": [torch.arange(6).view(2, 3) * n for n in range(4)],
    "floats": [0.5 * n for n in range(4)],
    "bools": [True, False, True, True],
    "strings": ["a", "bc", "", "def"],
    "bytes": [b"a", b"bc", b"", b"\0"],
    "arrays": [np.full((2, 2), n, dtype=np.float32) for n in range(4)],
    "scalars": [np.float16(n) for n in range(4)],
    "tuples": [(n, str(n), float(n)) for n in range(4)],
    "lists": [[n, n + 1] for n in range(4)],
    "dicts": [{"n": n, "deep": {"t": torch.ones(n + 1)[:1]}} for n in range(4)],
    "ordered": [collections.OrderedDict(b=n, a=-n) for n in range(4)],
    "default": [collections.defaultdict(int, a=n) for n in range(4)],
    "frozen": [Frozen({"n": n}) for n in range(4)],
    "pairs": [Pair(torch.zeros(2), n) for n in range(4)],
    "words": [Words(["a", "b"]) for _ in range(4)],
    "empty": [torch.empty(0) for _ in range(4)],
    "complex": [torch.complex(torch.tensor(1.0), torch.tensor(float(n))) for n in range(4)],
    "large": [torch.full((64, 1024), n) for n in range(4)],
}
REFUSED: dict[str, list[Any]] = {
    "nones": [None] * 4,
    "records": [Record(n, str(n)) for n in range(4)],
    "sets": [{n} for n in range(4)],
    "colors": [Color.RED] * 4,
    "ragged": [torch.zeros(n) for n in range(4)],
    "lengths": [[0] * (n + 1) for n in range(4)],
    "objects": [np.array([object()]) for _ in range(4)],
    "keys": [{"a": 1}, {"b": 2}, {"a": 3}, {"a": 4}],
}


@case(
    each(kind=list(SAMPLES), workers=[0, 2], batch=[3, None]),
    slow=lambda batch, **_: batch is None,
)
def collated(kind: str, workers: int, batch: int | None) -> object:
    loader = loading(SAMPLES[kind], num_workers=workers, batch_size=batch)
    return list(loader)


@case(each(kind=list(REFUSED), workers=[0, 1]))
def not_collated(kind: str, workers: int) -> object:
    loader = loading(REFUSED[kind], num_workers=workers, batch_size=2)
    iterator = iter(loader)
    seen: list[object] = []
    for _ in range(len(loader)):
        try:
            seen.append(next(iterator))
        except (TypeError, RuntimeError, KeyError) as error:
            seen.append(error)
    return seen, next(iterator, "the end")


@case(each(kind=[*SAMPLES, *REFUSED], workers=[0, 1]), slow=lambda workers, **_: workers > 0)
def not_to_be_collated(kind: str, workers: int) -> object:
    samples = {**SAMPLES, **REFUSED}[kind]
    loader = loading(
        samples,
        num_workers=workers,
        batch_size=3,
        collate_fn=as_they_are,
    )
    return list(loader)


def count(samples: list[Any]) -> int:
    return len(samples)


def lazily(samples: Any) -> Any:
    return iter(samples)


def nothing(samples: Any) -> None:
    return None


@case(each(collate=[count, lazily, nothing, default_collate, default_convert]), counted=True)
def a_collate_of_the_users(collate: Any) -> object:
    loader = named(
        loading(list(range(7)), batch_size=3, collate_fn=collate),
        "train",
    )
    expect("train", batches=3, samples=7, epochs=1)
    return [list(b) if collate is lazily else b for b in loader]


class Fifty:
    """Fifty megabytes, which go through shared memory."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((50, 1 << 18), index, dtype=torch.float32)


@case(each(workers=[0, 2]), counted=True)
def a_huge_batch(workers: int) -> object:
    loader = named(
        loading(Fifty(), batch_size=None, num_workers=workers),
        "train",
    )
    exits = {"normal": workers} if workers else {}
    expect("train", batches=3, samples=3, epochs=1, starts=workers, exits=exits)
    return [(b.shape, b.is_shared(), float(b.sum())) for b in loader]


@case(each(strategy=["file_descriptor", "file_system"], workers=[2]))
def a_sharing_strategy(strategy: str, workers: int) -> object:
    sharing: Any = torch.multiprocessing
    before = sharing.get_sharing_strategy()
    sharing.set_sharing_strategy(strategy)
    try:
        loader = loading(
            SAMPLES["tensors"],
            num_workers=workers,
        )
        kept = list(loader)
        return kept, [tensor.is_shared() for tensor in kept]
    finally:
        sharing.set_sharing_strategy(before)
