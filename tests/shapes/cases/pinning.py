"""The thread that pins memory: torch starts it where there is an accelerator, here it is told so.

What it does to a batch is the batch's own `pin_memory()`: no accelerator is needed for that.
"""

from __future__ import annotations

import threading
from typing import Any
from unittest import mock

import torch

from tests.accelerators import accelerator
from tests.shapes.datasets import Numbers, Stream, loader_of, loading, shut
from tests.shapes.job import expect, named
from tests.shapes.records import told
from tests.shapes.table import case, each, possible


class Batch:
    """A batch that knows how it was pinned."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.pinned = ""

    def pin_memory(self) -> Batch:
        self.pinned = threading.current_thread().name.partition("-")[0]
        return self

    def __repr__(self) -> str:
        return f"Batch({self.numbers}, {self.pinned})"


def batch_of(samples: list[torch.Tensor]) -> Batch:
    return Batch([int(sample) for sample in samples])


class Stubborn(Batch):
    """One that cannot be pinned."""

    def pin_memory(self) -> Batch:
        if 5 in self.numbers:
            raise ValueError("not to be pinned")
        return super().pin_memory()


def stubborn_of(samples: list[torch.Tensor]) -> Batch:
    return Stubborn([int(sample) for sample in samples])


def exits(workers: int) -> dict[str, int]:
    return {"normal": workers} if workers else {}


@case(
    each(kind=[Numbers, Stream], workers=[0, 1, 2], persistent=[False, True], where=possible),
    counted=True,
)
def pinned(kind: Any, workers: int, persistent: bool) -> object:
    with accelerator():
        loader = loading(
            kind(11),
            batch_size=2,
            num_workers=workers,
            persistent_workers=persistent,
            pin_memory=True,
            collate_fn=batch_of,
        )
        epochs = [list(named(loader, "train")) for _ in range(2)]
        del loader
    starts = workers if persistent else 2 * workers
    expect(
        "train",
        batches=12,
        samples=22,
        epochs=2,
        starts=starts,
        exits=exits(starts),
    )
    return epochs


@case(each(workers=[1, 2], persistent=[False, True]), counted=True)
def left_early(workers: int, persistent: bool) -> object:
    with accelerator():
        loader = loader_of(
            num_workers=workers,
            persistent_workers=persistent,
            pin_memory=True,
            collate_fn=batch_of,
        )
        iterator: Any = iter(named(loader, "train"))
        thread = iterator._pin_memory_thread
        seen = [next(iterator) for _ in range(3)]
        alive = thread.is_alive(), thread.daemon
        del iterator, loader
        seen_after = thread.is_alive()
    expect("train", batches=3, samples=None, epochs=1, starts=workers, exits=exits(workers))
    return seen, alive, seen_after


@case(each(workers=[0, 2]), counted=True)
def an_error_while_pinning(workers: int) -> object:
    """With workers it is raised in the thread, and comes to the loop in the batch's place."""
    with accelerator():
        loader = named(
            loader_of(8, num_workers=workers, pin_memory=True, collate_fn=stubborn_of), "train"
        )
        iterator = iter(loader)
        seen: list[object] = []
        for _ in range(8):
            try:
                seen.append(next(iterator))
            except ValueError as error:
                seen.append(told(error))
        shut(iterator)
    errors = {"pin_memory": 1} if workers else {"other": 1}
    expect(
        "train", batches=7, samples=8, epochs=1, errors=errors, starts=workers, exits=exits(workers)
    )
    return seen


class PinningError(BaseException):
    """Ends the thread."""


class Fatal(Batch):
    def pin_memory(self) -> Batch:
        if 0 in self.numbers:  # at once: torch gives up what is ready when it sees the thread dead
            raise PinningError
        return super().pin_memory()


def fatal_of(samples: list[torch.Tensor]) -> Batch:
    return Fatal([int(sample) for sample in samples])


@case(counted=True)
def a_thread_that_dies() -> object:
    with accelerator(), mock.patch("threading.excepthook"):
        loader = named(loader_of(5, num_workers=1, pin_memory=True, collate_fn=fatal_of), "train")
        iterator: Any = iter(loader)
        seen: list[object] = []
        try:
            next(iterator)
        except RuntimeError as error:
            seen.append(told(error))
        shut(iterator)
    expect(
        "train",
        batches=0,
        samples=None,
        epochs=1,
        errors={"pin_memory": 1},
        starts=1,
        exits={"normal": 1},
    )
    return seen


@case(each(workers=[1]))
def what_else_can_be_pinned(workers: int) -> object:
    with accelerator():
        samples = [{"a": Batch([n]), "b": (n, [str(n)])} for n in range(3)]
        loader = loading(
            samples,
            num_workers=workers,
            pin_memory=True,
            batch_size=None,
        )
        return list(loader)


@case()
def zipped_with_another() -> object:
    with accelerator():
        options = {"num_workers": 1, "pin_memory": True, "collate_fn": batch_of}
        one, two = loader_of(4, **options), loader_of(3, batch_size=2, **options)
        return list(zip(one, two, strict=False))
