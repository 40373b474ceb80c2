"""What the shim costs per batch, beside a bare loop and the naive way.

CPU microseconds of the process that does the work, in blocks that alternate within one process,
with everything allocated so far frozen out of the garbage collector. "null" is the bare loop a
second time: what it differs from the first is what this machine cannot resolve.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from prometheus_client import CollectorRegistry, Gauge, Histogram
from torch.utils.data import DataLoader, Dataset

import dlmon

SAMPLE = torch.zeros(1)


class Trivial(Dataset[torch.Tensor]):
    """Samples that cost nothing, so that what remains is the DataLoader's own work."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        return SAMPLE


class WorkerClock(Trivial):
    """Samples that say how much CPU time their worker has used, in nanoseconds."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(time.process_time_ns())


Wrap = Callable[[DataLoader[torch.Tensor]], Iterator[torch.Tensor]]


def bare(loader: DataLoader[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Iterate as it is."""
    return iter(loader)


class Naive:
    """What people write first: a Histogram of waits and a Gauge, per batch, in the loop."""

    def __init__(self, loader: DataLoader[torch.Tensor]) -> None:
        registry = CollectorRegistry()
        self._wait = Histogram("wait_seconds", "", ["loader"], registry=registry).labels("train")
        self._last = Gauge("last_batch", "", ["loader"], registry=registry).labels("train")
        self._iterator = iter(loader)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        begun = time.perf_counter()
        batch: torch.Tensor = next(self._iterator)
        self._wait.observe(time.perf_counter() - begun)
        self._last.set(time.time())
        return batch


@contextmanager
def nothing(_: str) -> Iterator[None]:
    """Change nothing."""
    yield


@contextmanager
def instrumented(directory: str) -> Iterator[None]:
    """Have dlmon's hooks in place."""
    dlmon.instrument(run="bench", dir=directory)
    try:
        yield
    finally:
        dlmon.uninstrument()


VARIANTS: dict[str, tuple[Callable[[str], AbstractContextManager[None]], Wrap]] = {
    "bare": (nothing, bare),
    "null": (nothing, bare),
    "dlmon": (instrumented, bare),
    "naive": (nothing, Naive),
}


def main_process(workers: int, batches: int, directory: str, variant: str) -> float:
    """Return CPU microseconds per batch in the process that iterates."""
    surroundings, wrap = VARIANTS[variant]
    warm_up = batches if workers == 0 else batches // 10  # CPython specialises its bytecode anew
    with surroundings(directory):
        loader = DataLoader(Trivial(warm_up + batches), batch_size=1, num_workers=workers)
        iterator = wrap(loader)
        for _ in range(warm_up):
            next(iterator)
        begun = time.process_time_ns()
        for _ in range(batches):
            next(iterator)
        spent = time.process_time_ns() - begun
        del iterator
    return spent / batches / 1000


def fetch_alone(_: int, batches: int, directory: str, variant: str) -> float:
    """Return CPU microseconds per fetch, as the loop of a worker calls it."""
    surroundings, _wrap = VARIANTS[variant]
    with surroundings(directory):
        iterator: Any = iter(DataLoader(Trivial(batches), batch_size=1))
        next(iterator)  # from here on its fetcher is recorded, in the same way as a worker's
        fetcher, indices = vars(iterator)["_dataset_fetcher"], [0]
        for _number in range(batches):
            fetcher.fetch(indices)
        begun = time.process_time_ns()
        for _number in range(batches):
            fetcher.fetch(indices)
        spent = time.process_time_ns() - begun
    return spent / batches / 1000


def worker_process(workers: int, batches: int, directory: str, variant: str) -> float:
    """Return CPU microseconds per batch in the worker processes."""
    surroundings, wrap = VARIANTS[variant]
    with surroundings(directory):
        loader = DataLoader(WorkerClock(batches), batch_size=1, num_workers=workers)
        clocks = [int(batch) for batch in wrap(loader)]
    first = batches // 10 // workers * workers
    spans = [
        (
            clocks[first + w + (len(clocks) - first - workers) // workers * workers]
            - clocks[first + w]
        )
        for w in range(workers)
    ]
    per_worker = (len(clocks) - first - workers) // workers
    return sum(spans) / workers / per_worker / 1000


def interval(differences: list[float]) -> tuple[float, float]:
    """Return the 95 % confidence interval of the median, by bootstrap."""
    source = random.Random(0)
    medians = sorted(
        statistics.median(source.choices(differences, k=len(differences))) for _ in range(1000)
    )
    return medians[25], medians[974]


def compare(
    title: str,
    measure: Callable[[int, int, str, str], float],
    workers: int,
    batches: int,
    blocks: int,
    variants: Sequence[str] = tuple(VARIANTS),
) -> None:
    """Measure variants in alternating blocks and print what each adds to the bare loop."""
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory(prefix="dlmon-bench-", dir="/dev/shm") as directory:
        for variant in variants:
            measure(workers, batches // 4, directory, variant)
        gc.collect()
        gc.freeze()
        for block in range(blocks):
            first = block % len(variants)
            for variant in (*variants[first:], *variants[:first]):
                times[variant].append(measure(workers, batches, directory, variant))
        gc.unfreeze()
    base = statistics.median(times["bare"])
    print(f"\n{title}: {blocks} blocks of {batches} batches, CPU µs per batch")
    print(f"  {'':8} {'median':>8} {'added':>8} {'95 % interval':>18} {'ratio':>7}")
    for variant in variants:
        added = [t - b for t, b in zip(times[variant], times["bare"], strict=True)]
        low, high = interval(added)
        middle = statistics.median(added)
        print(
            f"  {variant:8} {statistics.median(times[variant]):8.2f} {middle:+8.2f} "
            f"{f'[{low:+.2f}, {high:+.2f}]':>18} {1 + middle / base:7.3f}",
            flush=True,
        )


def main() -> None:
    """Print what the shim adds, in the process that iterates and in workers."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--blocks", type=int, default=30, help="blocks per variant")
    parser.add_argument("--batches", type=int, default=4000, help="batches per block")
    args = parser.parse_args()
    blocks, batches = args.blocks, args.batches
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, dlmon {dlmon.__version__}")
    in_worker = ("bare", "null", "dlmon")
    compare("a fetch alone, as in a worker", fetch_alone, 0, batches, blocks, in_worker)
    compare("main process, num_workers=0 (it fetches too)", main_process, 0, batches, blocks)
    # With workers, scheduling alone moves CPU times by more than what is looked for.
    compare("main process, num_workers=2", main_process, 2, batches // 2, blocks // 2)
    compare("worker, num_workers=2", worker_process, 2, batches // 2, blocks // 2, in_worker)


if __name__ == "__main__":
    main()
