"""The queues between loop and workers: timeouts, order, prefetching, what cannot be sent."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.shapes.datasets import Numbers, loader_of, worker_of
from tests.shapes.job import expect, look, named
from tests.shapes.records import told
from tests.shapes.table import case, each

FOREVER_SECONDS = 60
SOON_SECONDS = 1


class Waits(Dataset[torch.Tensor]):
    """One sample is not given before an event."""

    def __init__(self, event: Any, at: int, length: int = 6) -> None:
        self.event, self.at, self.length = event, at, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == self.at:
            self.event.wait(FOREVER_SECONDS)
        return torch.tensor(index)


def patient(dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
    """Return a loader whose iterators have a timeout, of SOON_SECONDS once they are told.

    Not from the start: on a busy machine it takes workers longer to start and to deliver.
    """
    return DataLoader(dataset, timeout=FOREVER_SECONDS, **options)


@case(each(workers=[1, 2]), counted=True)
def a_timeout_that_fires(workers: int) -> object:
    event = multiprocessing.Event()
    loader = named(patient(Waits(event, at=2), num_workers=workers), "train")
    iterator: Any = iter(loader)
    seen: list[object] = [next(iterator), next(iterator)]
    iterator._timeout = SOON_SECONDS
    try:
        next(iterator)
    except RuntimeError as error:
        seen.append(told(error))
    look(train={"batches": 2, "samples": None, "epochs": 1, "starts": workers,
                "errors": {"timeout": 1}, "timeouts": 1, "alive": workers})  # fmt: skip
    event.set()
    del iterator
    expect(
        "train",
        batches=2,
        samples=None,
        epochs=1,
        errors={"timeout": 1},
        timeouts=1,
        starts=workers,
        exits={"normal": workers},
    )
    return seen


@case(counted=True)
def going_on_after_a_timeout() -> object:
    """The batch is not lost: the next `next()` has it."""
    event = multiprocessing.Event()
    loader = named(patient(Waits(event, at=1), num_workers=1), "train")
    iterator: Any = iter(loader)
    seen: list[object] = [next(iterator)]
    iterator._timeout = SOON_SECONDS
    for _ in range(2):
        try:
            next(iterator)
        except RuntimeError as error:
            seen.append(told(error))
    event.set()
    iterator._timeout = FOREVER_SECONDS
    seen += list(iterator)
    expect(
        "train",
        batches=6,
        samples=6,
        epochs=1,
        errors={"timeout": 2},
        timeouts=2,
        starts=1,
        exits={"normal": 1},
    )
    return seen


@case(each(workers=[1, 2], persistent=[False, True]), counted=True)
def a_timeout_that_does_not_fire(workers: int, persistent: bool) -> object:
    options = {"num_workers": workers, "persistent_workers": persistent, "timeout": 50.0}
    loader = named(loader_of(7, **options), "train")
    seen = list(loader)
    expect("train", batches=7, samples=7, epochs=1, starts=workers, exits={"normal": workers})
    del loader
    return seen


class InTurn(Dataset[Any]):
    """Worker 0 gives nothing before worker 1 has given all of its own."""

    def __init__(self) -> None:
        self.done = multiprocessing.Semaphore(0)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[int, int]:
        worker = worker_of()[0]
        if worker == 0 and index == 0:
            self.done.acquire(timeout=FOREVER_SECONDS)
        if worker == 1 and index == 7:
            self.done.release()
        return worker, index


@case(each(in_order=[True, False]), counted=True)
def order(in_order: bool) -> object:
    """In order worker 1 waits with what it has; out of order it is given all that is left."""
    dataset = InTurn() if not in_order else Numbers(8)
    loader = named(DataLoader(dataset, num_workers=2, in_order=in_order), "train")
    seen = list(loader)
    expect("train", batches=8, samples=8, epochs=1, starts=2, exits={"normal": 2}, fetched=8)
    return seen if in_order else sorted(map(str, seen))


class StreamInTurn(IterableDataset[Any]):
    """Out of order: worker 0 waits for the end of worker 1."""

    def __init__(self) -> None:
        self.done = multiprocessing.Event()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        worker = worker_of()[0]
        for number in range(4):
            if worker == 0 and number == 1:
                self.done.wait(FOREVER_SECONDS)
            yield worker, number
        if worker == 1:
            self.done.set()


@case(counted=True)
def streams_out_of_order() -> object:
    loader = named(DataLoader(StreamInTurn(), num_workers=2, in_order=False), "train")
    seen = sorted(map(str, loader))
    expect("train", batches=8, samples=8, epochs=1, starts=2, exits={"normal": 2})
    return seen


class Counting(Dataset[torch.Tensor]):
    """Counts over all processes how many samples were fetched."""

    def __init__(self, fetched: Any) -> None:
        self.fetched = fetched

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        with self.fetched.get_lock():
            self.fetched.value += 1
        return torch.tensor(index)


@case(each(workers=[1, 2], prefetch=[1, 2, 5]), counted=True)
def how_far_workers_read_ahead(workers: int, prefetch: int) -> object:
    """After n deliveries, n + workers x prefetch were asked for, and no more."""
    fetched = multiprocessing.Value("q", 0)
    loader = DataLoader(Counting(fetched), num_workers=workers, prefetch_factor=prefetch)
    iterator = iter(named(loader, "train"))
    seen = [next(iterator) for _ in range(4)]
    ahead = workers * prefetch
    while fetched.value < 4 + ahead:
        pass
    look(
        train={
            "batches": 4,
            "samples": None,
            "epochs": 1,
            "starts": workers,
            "outstanding": ahead,
            "capacity": ahead,
        }
    )
    seen += list(iterator)
    expect(
        "train",
        batches=40,
        samples=40,
        epochs=1,
        fetched=40,
        starts=workers,
        exits={"normal": workers},
    )
    return seen, fetched.value


class Unsendable(Numbers):
    """A sample that does not pickle: its worker prints why, and the batch never comes."""

    def __getitem__(self, index: int) -> Any:
        return (lambda: index) if index == 2 else super().__getitem__(index)


def unbatched(samples: Any) -> Any:
    return samples[0]


@case(counted=True)
def what_cannot_be_sent() -> object:
    loader = patient(Unsendable(4), num_workers=1, collate_fn=unbatched)
    iterator: Any = iter(named(loader, "train"))
    seen: list[object] = [next(iterator), next(iterator)]
    # The sample behind it has come: why this one cannot be sent was printed before.
    iterator._worker_result_queue._reader.poll(FOREVER_SECONDS)
    iterator._timeout = SOON_SECONDS
    try:
        next(iterator)
    except RuntimeError as error:
        seen.append(told(error))
    del iterator
    expect(
        "train",
        batches=2,
        samples=None,
        epochs=1,
        errors={"timeout": 1},
        timeouts=1,
        starts=1,
        exits={"normal": 1},
    )
    return seen
