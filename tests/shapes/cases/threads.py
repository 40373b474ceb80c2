"""Loaders in threads, coroutines, and workers that are threads."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.context import SpawnContext
from typing import Any

from torch.utils.data import DataLoader

from tests.shapes.datasets import KINDS, loader_of, loading
from tests.shapes.job import expect, look, named
from tests.shapes.records import seed, told
from tests.shapes.table import case, each, possible


def exits(count: int) -> dict[str, int]:
    return {"normal": count} if count else {}


def in_threads(function: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
    """Call a function for each argument, in a thread each, all at once.

    A worker forked from a thread of a ThreadPoolExecutor ends with status 1: it joins itself.
    """
    results: dict[int, Future[Any]] = {number: Future() for number in range(len(arguments))}

    def call(number: int) -> None:
        try:
            results[number].set_result(function(arguments[number]))
        except Exception as error:  # noqa: BLE001
            results[number].set_exception(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [result.result() for result in results.values()]


def in_thread(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function in a thread of its own."""
    return in_threads(function, [argument])[0]


@case(each(workers=[0, 1], persistent=[False, True], where=possible), counted=True)
def two_threads_two_loaders(workers: int, persistent: bool) -> object:
    options = {"num_workers": workers, "persistent_workers": persistent}
    loaders = [named(loader_of(10 + n, **options), f"loader {n}") for n in range(2)]
    start = threading.Barrier(2)

    def loop(loader: DataLoader[Any]) -> list[Any]:
        start.wait()
        return [*loader, *loader]

    seen = in_threads(loop, loaders)
    starts = workers if persistent else 2 * workers
    del loaders
    for n in range(2):
        expect(
            f"loader {n}",
            batches=2 * (10 + n),
            samples=2 * (10 + n),
            epochs=2,
            starts=starts,
            exits=exits(starts),
        )
    return seen


@case(each(workers=[0, 1]), counted=True, slow=lambda workers: workers > 0)
def four_threads_one_loader(workers: int) -> object:
    """An iterator each: each has a segment of its own, and the loader has their sum."""
    loader = named(loader_of(12, num_workers=workers), "train")
    begun = threading.Barrier(4)
    looked = threading.Barrier(4)

    def loop(number: int) -> list[Any]:
        iterator = iter(loader)
        seen = [next(iterator)]
        begun.wait()
        if number == 0:
            look(train={"batches": 4, "samples": None, "epochs": 4, "starts": 4 * workers})
        looked.wait()
        return [*seen, *iterator]

    seen = in_threads(loop, range(4))
    expect("train", batches=48, samples=48, epochs=4, starts=4 * workers, exits=exits(4 * workers))
    return seen


@case(counted=True)
def workers_of_a_pools_thread() -> object:
    """They end with status 1, though their loop ended in order, which is what counts."""
    loader = named(loader_of(5, num_workers=1), "train")
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(list, loader).result()
    expect("train", batches=5, samples=5, epochs=1, starts=1, exits={"normal": 1})
    return seen


@case(each(workers=[0, 2]), counted=True)
def one_iterator_shared_under_a_lock(workers: int) -> object:
    iterator = iter(named(loader_of(60, num_workers=workers), "train"))
    lock = threading.Lock()
    seen: list[int] = []

    def take() -> None:
        while True:
            with lock:
                batch = next(iterator, None)
                if batch is None:
                    return
                seen.append(int(batch))

    threads = [threading.Thread(target=take) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect("train", batches=60, samples=60, epochs=1, starts=workers, exits=exits(workers))
    return seen


@case(each(workers=[0, 1], persistent=[False, True], where=possible), counted=True)
def made_here_used_there(workers: int, persistent: bool) -> object:
    loader = named(loader_of(6, num_workers=workers, persistent_workers=persistent), "train")
    iterator = in_thread(iter, loader)
    seen = [next(iterator), in_thread(next, iterator), in_thread(list, iterator)]
    again = in_thread(list, loader)
    starts = workers if persistent else 2 * workers
    del iterator, loader
    expect("train", batches=12, samples=12, epochs=2, starts=starts, exits=exits(starts))
    return seen, again


@case(each(workers=[0, 1]), counted=True)
def read_ahead_by_a_thread(workers: int) -> object:
    """As Lightning's, MONAI's and many users' prefetchers do."""
    loader = named(loader_of(9, num_workers=workers), "train")
    batches: queue.Queue[Any] = queue.Queue(maxsize=2)

    def fill() -> None:
        for batch in loader:
            batches.put(batch)
        batches.put(None)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    seen = list(iter(batches.get, None))
    thread.join()
    expect("train", batches=9, samples=9, epochs=1, starts=workers, exits=exits(workers))
    return seen


@case(each(workers=[0, 1]), counted=True)
def a_thread_that_ends_in_the_middle(workers: int) -> object:
    """Its iterator goes with it."""
    loader = named(loader_of(9, num_workers=workers), "train")

    def some(count: int) -> list[Any]:
        return [batch for _, batch in zip(range(count), loader, strict=False)]

    seen = [in_thread(some, 5), in_thread(some, 5)]
    starts = 2 * workers
    samples = None if workers else 10
    expect("train", batches=10, samples=samples, epochs=2, starts=starts, exits=exits(starts))
    return seen


@case(each(workers=[0, 2]), counted=True)
def in_coroutines(workers: int) -> object:
    loader = named(loader_of(7, num_workers=workers), "train")

    async def loop() -> list[Any]:
        iterator = iter(loader)
        seen = []
        while (batch := await asyncio.to_thread(next, iterator, None)) is not None:
            seen.append(batch)
        return seen

    async def both() -> list[list[Any]]:
        return list(await asyncio.gather(loop(), loop()))

    seen = asyncio.run(both())
    starts = 2 * workers
    expect("train", batches=14, samples=14, epochs=2, starts=starts, exits=exits(starts))
    return seen


class ThreadProcess(threading.Thread):
    """A thread that looks like a process to torch; MONAI's ThreadDataLoader does so."""

    @property
    def pid(self) -> int:
        return id(self)


class ThreadQueue(queue.Queue[Any]):
    """And its queue."""

    def close(self) -> None:
        pass

    def cancel_join_thread(self) -> None:
        pass


def thread_context() -> SpawnContext:
    context = SpawnContext()
    context.Process = ThreadProcess  # type: ignore[assignment,misc]
    context.Queue = ThreadQueue  # type: ignore[method-assign,assignment]
    return context


@case(
    each(
        kind=list(KINDS),
        workers=[1, 2],
        # threads share one `get_worker_info`: how a stream is dealt out is a matter of luck
        where=lambda kind, workers: kind != "stream" or workers == 1,
    ),
    counted=True,
)
def workers_that_are_threads(kind: str, workers: int) -> object:
    """No process of their own, no slot: what they fetch is not seen, what is delivered is."""
    loader = loading(KINDS[kind](), num_workers=workers, batch_size=4)
    loader.multiprocessing_context = thread_context()
    batches = list(named(loader, "train"))
    expect("train", batches=len(batches), samples=None, epochs=1, starts=None, exits=None)
    for thread in threading.enumerate():
        if isinstance(thread, ThreadProcess):
            thread.join()  # torch gives up on one after seconds
    seed()  # each of them has seeded this process, in no order
    return batches


class Ahead(DataLoader[Any]):
    """One whose `__iter__` is a generator that reads ahead in a thread."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        with ThreadPoolExecutor(1) as pool:
            iterator = super().__iter__()
            coming = pool.submit(next, iterator, None)
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, iterator, None)
                yield batch


@case(each(workers=[0, 1], stop=[3, 99]), counted=True)
def a_loader_that_reads_ahead(workers: int, stop: int) -> object:
    loader = named(Ahead(loader_of(8).dataset, num_workers=workers), "train")
    seen = [batch for _, batch in zip(range(stop), loader, strict=False)]
    batches = min(stop + 1, 8)
    samples = None if workers else batches
    expect(
        "train", batches=batches, samples=samples, epochs=1, starts=workers, exits=exits(workers)
    )
    return seen


@case()
def errors_in_a_thread() -> object:
    loader = loader_of(4, sampler=[0, "x"])
    try:
        in_thread(list, loader)
    except (TypeError, ValueError, RuntimeError) as error:
        return told(error)
    return "no error"


@case(each(workers=[0, 1]))
def a_lock_held_while_iterating(workers: int) -> object:
    """A finalizer or callback that iterates while this thread is in the middle of it."""
    seen: list[Any] = []

    class Sampler:
        def __iter__(self) -> Iterator[int]:
            seen.append(list(loader_of(2)))
            return iter(range(3))

        def __len__(self) -> int:
            return 3

    loader = loader_of(3, sampler=Sampler(), num_workers=workers)
    return list(loader), list(loader), seen


@case(each(workers=[0, 1]), counted=True)
def deleted_by_another_thread(workers: int) -> object:
    """An iterator goes where its last reference goes: in any thread."""
    loader = named(loader_of(9, num_workers=workers), "train")
    holder = [iter(loader)]
    seen = [next(holder[0]) for _ in range(3)]
    in_thread(list.clear, holder)
    in_thread(holder.append, in_thread(iter, loader))
    seen += [next(holder[0]), in_thread(next, holder.pop())]
    starts = 2 * workers
    samples = None if workers else 5
    expect("train", batches=5, samples=samples, epochs=2, starts=starts, exits=exits(starts))
    return seen
