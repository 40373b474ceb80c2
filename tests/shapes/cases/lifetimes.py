"""How iterators end: used up, left, deleted, forgotten; and what of them stays."""

from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections.abc import Generator
from typing import Any

from torch.utils.data import DataLoader

from tests.shapes.datasets import KINDS, Stream, loader_of, loading
from tests.shapes.job import expect, look, named
from tests.shapes.table import case, each, possible

EVERY = each(workers=[0, 2], persistent=[False, True], where=possible)


def options(workers: int, persistent: bool) -> dict[str, Any]:
    return {"num_workers": workers, "persistent_workers": persistent}


def exits(count: int) -> dict[str, int]:
    return {"normal": count} if count else {}


@case(
    each(kind=list(KINDS), workers=[0, 2], persistent=[False, True], where=possible), counted=True
)
def left_early(kind: str, workers: int, persistent: bool) -> object:
    loader = loading(KINDS[kind](), **options(workers, persistent))
    loader = named(loader, "train")
    seen: list[Any] = []
    for stop in (1, 5):
        for number, batch in enumerate(loader, 1):
            seen.append(batch)
            if number == stop:
                break
    seen += list(loader)
    starts = workers if persistent else 3 * workers
    expect(
        "train",
        batches=29,
        samples=None if workers else 29,
        epochs=3,
        startups=3,
        starts=starts,
        exits=exits(starts),
    )
    return seen


@case(EVERY, counted=True)
def used_after_its_end(workers: int, persistent: bool) -> object:
    iterator = iter(named(loader_of(4, **options(workers, persistent)), "train"))
    seen: list[Any] = list(iterator)
    for _ in range(3):
        try:
            seen.append(next(iterator))
        except StopIteration as end:
            seen.append(["ends", end.args])
    seen.append(next(iterator, "default"))
    expect("train", batches=4, samples=4, epochs=1, starts=workers, exits=exits(workers))
    return seen


@case(EVERY)
def freed_at_once(workers: int, persistent: bool) -> object:
    """By reference counts, with no garbage collection; its workers are gone when it is."""
    loader = loader_of(6, **options(workers, persistent))
    gc.disable()
    try:
        seen = []
        for steps in (0, 1, 6, 7):
            iterator: Any = iter(loader)
            alive = weakref.ref(iterator)
            processes = getattr(iterator, "_workers", [])
            for _ in range(steps):
                next(iterator, None)
            if persistent:
                loader = loader_of(6, **options(workers, persistent))
            del iterator
            seen.append([alive() is None, [p.is_alive() for p in processes]])
            seen.append([p.exitcode for p in processes])
        return seen
    finally:
        gc.enable()


@case(EVERY)
def freed_after_an_error_in_the_loop(workers: int, persistent: bool) -> object:
    alive: weakref.ref[Any] | None = None

    def loop() -> None:
        nonlocal alive
        iterator = iter(loader_of(6, **options(workers, persistent)))
        alive = weakref.ref(iterator)
        for _ in iterator:
            raise ValueError("in the loop")

    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            loop()
        assert alive is not None
        return alive() is None
    finally:
        gc.enable()


@case(EVERY, counted=True)
def never_begun(workers: int, persistent: bool) -> object:
    loader = named(loader_of(6, **options(workers, persistent)), "train")
    first, second = iter(loader), iter(loader)
    same = first is second
    del first, second, loader
    starts = workers if persistent else 2 * workers
    expect("train", epochs=2, samples=None, starts=starts, exits=exits(starts))
    return same


@case(
    each(workers=[0, 1], persistent=[False, True], where=possible),
    slow=lambda persistent, **_: persistent,  # torch waits 5 s for a worker it did not tell
)
def in_a_cycle(workers: int, persistent: bool) -> object:
    loader = loader_of(4, **options(workers, persistent))
    iterator: Any = iter(loader)
    seen = list(iterator)
    iterator.myself = iterator
    alive = weakref.ref(iterator)
    del iterator, loader
    gc.collect()
    return seen, alive() is None


@case(EVERY)
def kept_by_its_user(workers: int, persistent: bool) -> object:
    """An attribute of one's own, and a weak reference with a callback."""
    loader = loader_of(4, **options(workers, persistent))
    iterator: Any = iter(loader)
    iterator.mine = "kept"
    gone: list[str] = []
    watch = weakref.ref(iterator, lambda _: gone.append("gone"))
    weakref.finalize(iterator, gone.append, "finalized")
    seen = [next(iterator), iterator.mine, watch() is iterator]
    del iterator, loader
    return seen, gone


@case(EVERY, counted=True)
def wrapped_in_a_generator(workers: int, persistent: bool) -> object:
    loader = named(loader_of(9, **options(workers, persistent)), "train")
    log: list[str] = []

    def wrapper(source: DataLoader[Any]) -> Generator[Any]:
        try:
            yield from source
        finally:
            log.append("closed")

    generator = wrapper(loader)
    seen = [next(generator) for _ in range(3)]
    generator.close()
    log.append("after")
    again = list(itertools.islice(wrapper(loader), 4))
    starts = workers if persistent else 2 * workers
    del loader, generator
    expect(
        "train",
        batches=7,
        samples=None if workers else 7,
        epochs=2,
        starts=starts,
        exits=None,  # the generator holds the loader of a persistent iterator for a while
    )
    return seen, log, again


@case(EVERY, counted=True)
def made_anew_under_the_same_name(workers: int, persistent: bool) -> object:
    """`iterator = iter(loader)` makes the new one before the old one goes."""
    loader = named(loader_of(5, **options(workers, persistent)), "train")
    seen: list[Any] = []
    iterator = iter(loader)
    for _ in range(4):
        seen.append(next(iterator))
        iterator = iter(loader)
    seen += list(iterator)
    starts = workers if persistent else 5 * workers
    del iterator, loader
    expect(
        "train",
        batches=9,
        samples=None if workers else 9,
        epochs=5,
        starts=starts,
        exits=exits(starts),
    )
    return seen


@case(each(workers=[0, 1, 2]), counted=True)
def standard_tools(workers: int) -> object:
    loader = named(loader_of(8, num_workers=workers), "train")
    seen = [
        list(itertools.islice(loader, 3)),
        list(zip(loader, "abc", strict=False)),
        [*map(int, loader)],
        sum(int(batch) for batch in loader),
        max(loader, key=int),
        list(itertools.chain(loader, loader)),
        dict(enumerate(loader)),
        next(filter(lambda batch: int(batch) == 5, loader)),
        [int(batch) for batch in reversed(list(loader))],
        5 in [int(batch) for batch in loader],
    ]
    epochs = 11
    batches = 3 + 4 + 8 * 8 + 6
    expect(
        "train",
        batches=batches,
        samples=None if workers else batches,
        epochs=epochs,
        starts=epochs * workers,
        exits=exits(epochs * workers),
    )
    return seen


@case(each(workers=[0, 1]), counted=True)
def a_loop_with_an_else(workers: int) -> object:
    loader = named(loader_of(3, num_workers=workers), "train")
    log: list[str] = []
    for stop in (2, 9):
        for batch in loader:
            log.append(f"batch {int(batch)}")
            if int(batch) == stop:
                break
        else:
            log.append("else")
    expect("train", batches=6, samples=6, epochs=2, starts=2 * workers, exits=exits(2 * workers))
    return log


@case(counted=True)
def what_is_counted_meanwhile() -> object:
    """What the agent sees while workers are alive, and the loop stands still."""
    loader = named(DataLoader(Stream(100), num_workers=2, prefetch_factor=3), "train")
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(10)]
    look(
        train={
            "batches": 10,
            "samples": None,
            "epochs": 1,
            "starts": 2,
            "capacity": 6,
            "outstanding": 6,
            "alive": 2,
        }
    )
    del iterator
    expect("train", batches=10, samples=None, epochs=1, starts=2, exits={"normal": 2}, alive=0)
    return seen
