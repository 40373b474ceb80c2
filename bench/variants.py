"""What is compared: the bare loop, dlmon, and what else people put into a loop to see it.

Each is a context in which one loader is iterated. Loops are written as users write them, and all
alike: `next()` for each batch, then what the variant wants done.
"""

from __future__ import annotations

import cProfile
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from types import CodeType
from typing import Any
from unittest.mock import patch

import torch
from prometheus_client import CollectorRegistry, Gauge, Histogram
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils.data._utils.fetch import _MapDatasetFetcher

import dlmon
from bench.recorded import require, require_by_dlmon
from bench.workloads import Size

Batches = Iterator[torch.Tensor]
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch.profiler tells of every start and stop

FETCH = _MapDatasetFetcher.fetch
"""torch's own: this is imported before anything is instrumented."""


def bare_loop(iterator: Batches, batches: int) -> None:
    """Iterate, and no more."""
    for _ in range(batches):
        next(iterator)


def unchecked(_iterator: Batches, _delivered: int, _fetched: int) -> None:
    """Have nothing to show."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A variant in place.

    Attributes:
        loop: Takes so many batches from an iterator.
        check: Given the iterator, and how many batches were delivered and fetched, raises
            NotRecordedError if the variant has not recorded that.
    """

    loop: Callable[[Batches, int], None] = bare_loop
    check: Callable[[Batches, int, int], None] = unchecked


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a table.

    Attributes:
        name: The row's.
        about: What it is, for the legend.
        place: Has it in place for a block of that size; segments go into that directory.
        peer: It is here for comparison, and is measured in fewer rounds.
    """

    name: str
    about: str
    place: Callable[[Size, str], AbstractContextManager[Watch]]
    peer: bool = False


@contextmanager
def _bare(_size: Size, _directory: str) -> Iterator[Watch]:
    yield Watch()


@contextmanager
def _dlmon(_size: Size, directory: str) -> Iterator[Watch]:
    dlmon.instrument(run="bench", dir=directory)
    try:
        yield Watch(check=require_by_dlmon)
    finally:
        dlmon.uninstrument()


@contextmanager
def _dlmon_next(size: Size, directory: str) -> Iterator[Watch]:
    def check(iterator: Batches, delivered: int, _fetched: int) -> None:
        require_by_dlmon(iterator, delivered, 0)

    with ExitStack() as stack:
        stack.enter_context(_dlmon(size, directory))
        stack.enter_context(patch.object(_MapDatasetFetcher, "fetch", FETCH))
        yield Watch(check=check)


@contextmanager
def _prometheus(_size: Size, _directory: str) -> Iterator[Watch]:
    registry = CollectorRegistry()
    wait = Histogram("wait_seconds", "", ["loader"], registry=registry).labels("train")
    last = Gauge("last_batch", "", ["loader"], registry=registry).labels("train")

    def loop(iterator: Batches, batches: int) -> None:
        for _ in range(batches):
            begun = time.perf_counter()
            next(iterator)
            wait.observe(time.perf_counter() - begun)
            last.set(time.time())

    def check(_iterator: Batches, delivered: int, _fetched: int) -> None:
        observed = registry.get_sample_value("wait_seconds_count", {"loader": "train"})
        require("prometheus_client", "waits", int(observed or 0), delivered)

    yield Watch(loop, check)


@contextmanager
def _torch_profiler(size: Size, _directory: str) -> Iterator[Watch]:
    """Profile as torch's tutorial does, active in the measured batches.

    Making events out of what was recorded comes after the block and is not measured.
    """
    steps = schedule(wait=0, warmup=size.warm_up, active=size.batches + 1, repeat=1)
    profiler = profile(activities=[ProfilerActivity.CPU], schedule=steps)

    def loop(iterator: Batches, batches: int) -> None:
        for _ in range(batches):
            next(iterator)
            profiler.step()

    def check(_iterator: Batches, _delivered: int, _fetched: int) -> None:
        stopped.close()
        results = profiler.profiler.kineto_results if profiler.profiler is not None else None
        names = [event.name() for event in results.events()] if results is not None else []
        seen = sum(1 for name in names if name.startswith("enumerate(DataLoader)"))
        require("torch.profiler", "batches", seen, size.batches)

    with ExitStack() as stopped:
        profiler.start()
        stopped.callback(profiler.stop)
        yield Watch(loop, check)


@contextmanager
def _cprofile(_size: Size, _directory: str) -> Iterator[Watch]:
    """Profile as `python -m cProfile` does: workers that are forked are profiled too."""
    profiler = cProfile.Profile()

    def check(_iterator: Batches, delivered: int, _fetched: int) -> None:
        profiler.disable()
        seen = sum(entry.callcount for entry in profiler.getstats() if _is_next(entry.code))
        require("cProfile", "calls of __next__", seen, delivered)

    profiler.enable()
    try:
        yield Watch(check=check)
    finally:
        profiler.disable()


def _is_next(code: Any) -> bool:
    """Return whether code is that of torch's `_BaseDataLoaderIter.__next__`."""
    return (
        isinstance(code, CodeType)
        and code.co_name == "__next__"
        and code.co_filename.endswith("dataloader.py")
    )


BARE = Variant("bare", "the loop as it is", _bare)
NULL = Variant("null", "the bare loop once more: what this machine cannot resolve", _bare)
DLMON = Variant("dlmon", "dlmon.instrument()", _dlmon)
DLMON_NEXT = Variant("dlmon, next() alone", "the same without the hook of fetch()", _dlmon_next)
PEERS = (
    Variant(
        "prometheus_client",
        "the naive way: a Histogram of waits and a Gauge, in the loop",
        _prometheus,
        peer=True,
    ),
    Variant(
        "torch.profiler", "profile(activities=[CPU]), a step per batch", _torch_profiler, peer=True
    ),
    Variant("cProfile", "the interpreter's own profiler", _cprofile, peer=True),
)
