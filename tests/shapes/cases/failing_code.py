"""Errors in what else a user gives to a loader: collate, init, sampler, lengths, `__iter__`."""

from __future__ import annotations

import errno
import gc
import multiprocessing
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.shapes.cases.failures import through
from tests.shapes.datasets import Numbers, loader_of, loading, shut
from tests.shapes.job import expect, named
from tests.shapes.records import told
from tests.shapes.table import case, each


def refuse(samples: Any) -> Any:
    """A collate that does not take the second batch."""
    if any(int(sample) == 3 for sample in samples):
        raise TypeError(f"batch of {len(samples)}: no threes")
    return samples


@case(each(workers=[0, 1]), counted=True)
def collate(workers: int) -> object:
    loader = named(loader_of(6, num_workers=workers, batch_size=2, collate_fn=refuse), "train")
    seen = through(loader)
    exits = {"normal": workers} if workers else {}
    expect(
        "train", batches=2, samples=4, epochs=1, errors={"fetch": 1}, starts=workers, exits=exits
    )
    return seen


def convert(sample: Any) -> Any:
    raise ValueError(f"not {int(sample)}")


@case(each(workers=[0, 1]))
def convert_without_batches(workers: int) -> object:
    return through(loader_of(2, num_workers=workers, batch_size=None, collate_fn=convert))


def second_fails(worker: int) -> None:
    if worker == 1:
        raise RuntimeError("this worker cannot begin")


@case(each(persistent=[False, True]))
def worker_init(persistent: bool) -> object:
    """A worker that could not be initialised tells it with its first batch, and breaks down."""
    loader = loader_of(4, num_workers=2, worker_init_fn=second_fails, persistent_workers=persistent)
    iterator = iter(loader)
    seen: list[object] = [next(iterator)]
    try:
        next(iterator)
    except RuntimeError as error:
        seen.append(told(error))
    shut(iterator)
    return seen


class Breaks:
    """A sampler that fails after some indices."""

    def __init__(self, after: int, error: Exception) -> None:
        self.after, self.error = after, error

    def __iter__(self) -> Iterator[int]:
        yield from range(self.after)
        raise self.error

    def __len__(self) -> int:
        return 9


@case(each(workers=[0, 1, 2], after=[5, 7]))
def sampler(workers: int, after: int) -> object:
    """torch asks ahead of the loop: with workers the error comes early."""
    broken = Breaks(after, ValueError("no more indices"))
    return through(loader_of(sampler=broken, num_workers=workers))


@case(
    each(workers=[0, 1], after=[0, 1]),
    counted=True,
    noisy=True,  # the iterator's queues are closed while their threads begin
    slow=lambda workers, **_: workers > 0,  # torch waits 5 s for workers it has not told
)
def sampler_from_the_start(workers: int, after: int) -> object:
    """With workers, out of iter(): they are running by then, and the iterator is never born."""
    loader = loader_of(sampler=Breaks(after, ValueError("no indices")), num_workers=workers)
    seen: list[object] = []
    try:
        iterator = iter(named(loader, "train"))
        seen.append(next(iterator))
        next(iterator)
    except ValueError as error:
        seen.append(told(error))
    gc.collect()
    expect(
        "train",
        batches=len(seen) - 1,
        samples=None,
        epochs=1,
        errors=None,
        starts=workers,
        exits=None,
    )
    return seen


@case(each(workers=[0, 1]))
def sampler_of_wrong_indices(workers: int) -> object:
    return through(loading(["a", "b"], sampler=[0, 7, 1], num_workers=workers))


class Unsized(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


class Angry(Numbers):
    def __len__(self) -> int:
        raise RuntimeError("nobody knows")


class Negative(Numbers):
    def __len__(self) -> int:
        return -1  # noqa: PLE0303  # wrong on purpose


@case(each(kind=[Unsized, Angry, Negative], workers=[0, 1]))
def lengths(kind: type[Dataset[Any]], workers: int) -> object:
    found: list[object] = []
    try:
        loader = DataLoader(kind(), num_workers=workers)
    except Exception as error:  # noqa: BLE001
        return told(error)
    for ask in (len, iter, list):
        try:
            ask(loader)
            found.append("no error")
        except Exception as error:  # noqa: BLE001
            found.append(told(error))
    return found


class NoIterator(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        raise OSError("the bucket is empty")


class NotAnIterator(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return 3


@case(each(kind=[NoIterator, NotAnIterator], workers=[0, 2]))
def streams_that_do_not_begin(kind: type[IterableDataset[Any]], workers: int) -> object:
    try:
        iterator = iter(DataLoader(kind(), num_workers=workers))
    except (OSError, TypeError) as error:
        return "from iter()", told(error)
    try:
        next(iterator)
    except (OSError, TypeError) as error:
        return "from next()", told(error)
    finally:
        shut(iterator)
    return "never"


@case(each(workers=[0]), counted=True)
def an_iteration_that_never_began(workers: int) -> object:
    """The constructor of the iterator raised: the next iteration is as if it were the first."""
    loader = named(DataLoader(Fickle(), num_workers=workers), "train")
    try:
        iter(loader)
    except OSError as error:
        seen = told(error)
    batches = list(loader)
    expect("train", batches=3, samples=3, epochs=None, startups=1)
    return seen, batches


class Fickle(IterableDataset[int]):
    """Works the second time."""

    tried = False

    def __iter__(self) -> Iterator[int]:
        if not self.tried:
            self.tried = True
            raise OSError("try again")
        return iter(range(3))


@case(each(method=["spawn", "forkserver"]))
def what_does_not_pickle(method: str) -> object:
    """The iterator is half made when it fails; what there is of it is thrown away."""
    numbers: Any = Numbers(3)
    numbers.unpicklable = lambda: None
    loader = DataLoader(numbers, num_workers=2, multiprocessing_context=method)
    try:
        iter(loader)
    except (AttributeError, TypeError) as error:
        return told(error)
    return "pickled"


@case(each(workers=[0, 2]))
def recursion(workers: int) -> object:
    iterator = iter(DataLoader(Deep(), num_workers=workers))
    try:
        return next(iterator)
    except RecursionError as error:
        return type(error).__name__, str(error).count("maximum recursion depth exceeded")
    finally:
        shut(iterator)


class Deep(Numbers):
    def __getitem__(self, index: int) -> Any:
        return self[index]


@case()
def in_the_loops_body() -> object:
    seen: list[object] = []
    loader = loader_of(4, num_workers=1)
    for _ in range(2):
        try:
            for batch in loader:
                seen.append(batch)
                raise ValueError("in the loop")
        except ValueError as error:
            seen.append(told(error))
    return seen


class SecondRefuses(multiprocessing.context.ForkProcess):
    """A process that cannot be started: no more of them are allowed, or no memory."""

    started = 0

    def start(self) -> None:
        SecondRefuses.started += 1
        if SecondRefuses.started % 2 == 0:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        super().start()


class Limited(multiprocessing.context.ForkContext):
    Process = SecondRefuses


@case(each(persistent=[False, True]))
def a_worker_that_cannot_be_started(persistent: bool) -> object:
    """The first one runs already; the iterator is thrown away half made."""
    loader = loader_of(
        4, num_workers=2, multiprocessing_context=Limited(), persistent_workers=persistent
    )
    seen = []
    for _ in range(2):
        try:
            iter(loader)
        except BlockingIOError as error:
            seen.append(told(error))
        gc.collect()
    return seen
