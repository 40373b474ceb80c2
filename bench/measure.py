"""Measure variants in blocks that alternate with bare ones, in one process.

CPU time, not wall time: what a loop does while it waits for workers is no cost. Of the training
process it is that of all its threads; of a worker what its own clock says at each batch. Everything
allocated so far is frozen out of the garbage collector, whose full collections would else come
more often with whatever allocates, and be measured instead.

Every block of a variant has a bare block right before and right after it, with which it is
compared, so that what drifts (other load, clock frequency, caches) cancels.

With workers, the training process is pinned to one core and its workers to the others, in every
block alike. No job is run like that; but what the scheduler decides moves the cost of a batch by
tens of per cent, at random, the bare loop's too: handing a batch over to another core costs far
more than to a process on the same one. Pinning cannot hide microseconds: dlmon has no thread and
makes no system call for a batch, so that what it does is done on the core that the loop is on. It
does decide of what they are a share. Apart is where a scheduler puts processes that keep a machine
busy, and where the bare loop is dearest; `--pin together` measures on one core, where it is
cheapest and the share largest, and `--pin no` leaves all to the scheduler.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader

from bench.variants import BARE, Variant
from bench.workloads import Clocked, Cores, Size, Trivial, Workload

Block = Mapping[str, float]
"""CPU microseconds per batch, by where: `main`, and with workers `worker` and `job`, their sum."""

Measure = Callable[[Variant, Size, str], Block]
"""Measures one block of a variant; segments go into the directory given."""

Series = Sequence[tuple[str, Block]]
"""Blocks in the order in which they were measured, by the name of their variant."""

Told = Callable[[int, float], None]
"""Is told how many rounds are done, and for how many seconds it has been measuring."""

FEWEST_ROUNDS = 2
PEERS_EVERY = 4
"""In which rounds there are peers: what they cost is too much to need many blocks."""


def iteration(workload: Workload, cores: Cores) -> Measure:
    """Return what measures a loop over a loader, in the process that iterates and in workers."""

    def measure(variant: Variant, size: Size, directory: str) -> Block:
        dataset = workload.dataset(size)
        loader = workload.loader(dataset, cores)
        with variant.place(size, directory) as watch, cores.pinned():
            iterator = iter(loader)
            watch.loop(iterator, size.warm_up)
            begun = time.process_time_ns()
            watch.loop(iterator, size.batches)
            spent = time.process_time_ns() - begun
            watch.check(iterator, size.total, size.total)
            del iterator
        main = spent / size.batches / 1000
        if not isinstance(dataset, Clocked):
            return {"main": main}
        worker = dataset.per_batch(size, workload.batch_size, workload.workers)
        return {"main": main, "worker": worker, "job": main + worker}

    return measure


def fetch_alone(variant: Variant, size: Size, directory: str) -> Block:
    """Measure a fetch, called as the loop of a worker calls it."""
    with variant.place(size, directory) as watch:
        iterator: Any = iter(DataLoader(Trivial(size.total), batch_size=1))
        next(iterator)  # from here on its fetcher is recorded, in the same way as a worker's
        fetcher, indices = vars(iterator)["_dataset_fetcher"], [0]
        for _ in range(size.warm_up):
            fetcher.fetch(indices)
        begun = time.process_time_ns()
        for _ in range(size.batches):
            fetcher.fetch(indices)
        spent = time.process_time_ns() - begun
        watch.check(iterator, 1, 1 + size.total)
        del iterator
    return {"worker": spent / size.batches / 1000}


def alternate(
    measure: Measure,
    variants: Sequence[Variant],
    size: Size,
    seconds: float,
    directory: str,
    told: Told,
) -> Series:
    """Measure variants in turn, a bare block before and after each, for about so many seconds.

    The order of the variants is another in every round.

    Args:
        measure: What measures a block.
        variants: Without the bare one.
        size: Of a block.
        seconds: When to stop; at least FEWEST_ROUNDS are measured.
        directory: For segments.
        told: Is told how far it is.

    Raises:
        NotRecordedError: A variant did not record what was iterated.
    """
    series: list[tuple[str, Block]] = []

    def block(variant: Variant) -> None:
        gc.collect()
        series.append((variant.name, measure(variant, size, directory)))

    for variant in (BARE, *variants):  # imports, caches, segments
        measure(variant, Size(size.warm_up, max(10, size.batches // 10)), directory)
    gc.collect()
    gc.freeze()
    try:
        begun, spent, rounds = time.monotonic(), 0.0, 0
        block(BARE)
        while rounds < FEWEST_ROUNDS or spent < seconds:
            first = rounds % len(variants)
            for variant in (*variants[first:], *variants[:first]):
                if not variant.peer or rounds % PEERS_EVERY == 0:
                    block(variant)
                    block(BARE)
            rounds, spent = rounds + 1, time.monotonic() - begun
            told(rounds, spent)
    finally:
        gc.unfreeze()
    return series
