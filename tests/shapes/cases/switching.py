"""dlmon is switched on and off while loaders live: none of them notices."""

from __future__ import annotations

from typing import Any

from tests.shapes.datasets import loader_of
from tests.shapes.job import expect, named, uninstrumented
from tests.shapes.table import case, each, possible

EVERY = each(workers=[0, 1, 2], persistent=[False, True], where=possible)


def exits(count: int) -> dict[str, int]:
    return {"normal": count} if count else {}


def options(workers: int, persistent: bool) -> dict[str, Any]:
    return {"num_workers": workers, "persistent_workers": persistent}


@case(EVERY, counted=True)
def a_loader_from_before(workers: int, persistent: bool) -> object:
    with uninstrumented():
        loader = named(loader_of(6, **options(workers, persistent)), "train")
    seen = [list(loader), list(loader)]
    starts = workers if persistent else 2 * workers
    del loader
    expect("train", batches=12, samples=12, epochs=2, starts=starts, exits=exits(starts))
    return seen


@case(EVERY, counted=True)
def an_iterator_from_before(workers: int, persistent: bool) -> object:
    """It stays unobserved; the next iterator of a loader that is not persistent is observed."""
    with uninstrumented():
        loader = named(loader_of(6, **options(workers, persistent)), "train")
        iterator = iter(loader)
        seen = [next(iterator)]
    seen += list(iterator)
    del iterator
    again = list(loader)
    del loader
    if persistent:
        expect("train")
    else:
        expect("train", batches=6, samples=6, epochs=1, starts=workers, exits=exits(workers))
    return seen, again


@case(EVERY, counted=True)
def an_iterator_that_outlives_it(workers: int, persistent: bool) -> object:
    loader = named(loader_of(6, **options(workers, persistent)), "train")
    iterator = iter(loader)
    seen = [next(iterator), next(iterator)]
    with uninstrumented():
        seen += list(iterator)
        del iterator
        again = list(loader)
        del loader
    expect("train", batches=2, samples=None, epochs=1, starts=workers, exits=None, errors=None)
    return seen, again


@case(EVERY, counted=True)
def off_and_on_within_an_epoch(workers: int, persistent: bool) -> object:
    loader = named(loader_of(8, **options(workers, persistent)), "train")
    iterator = iter(loader)
    seen = [next(iterator)]
    for _ in range(3):
        with uninstrumented():
            seen.append(next(iterator))
        seen.append(next(iterator))
    seen += list(iterator)
    del iterator
    again = list(loader)
    del loader
    expect("train", batches=None, samples=None, epochs=None, starts=None, exits=None)
    return seen, again


@case(each(workers=[0, 1]), counted=True)
def off_and_on_between_epochs(workers: int) -> object:
    """Counters go on where they were: they never go down."""
    loader = named(loader_of(5, num_workers=workers), "train")
    seen = [list(loader)]
    with uninstrumented():
        seen.append(list(loader))
    seen.append(list(loader))
    starts = 2 * workers
    expect("train", batches=10, samples=10, epochs=2, starts=starts, exits=exits(starts))
    return seen


@case(each(workers=[0, 1]))
def an_error_across(workers: int) -> object:
    loader = loader_of(4, num_workers=workers)
    iterator = iter(loader)
    next(iterator)
    with uninstrumented():
        try:
            for _ in iterator:
                raise ValueError("in the loop")
        except ValueError as error:
            seen = str(error)
    return seen, list(iterator)
