"""How workers are started: method, context, what they are initialised with."""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from tests.shapes.datasets import KINDS, Numbers, Stream, as_they_are, loader_of, loading, worker_of
from tests.shapes.job import expect, named
from tests.shapes.table import case, each


def slow(method: str, kind: str = "map", persistent: bool = False, **_: object) -> bool:
    """Leave most of what imports torch in every worker to `make full`."""
    return method == "spawn" and (kind != "map" or persistent)


@case(
    each(method=["fork", "forkserver", "spawn"], kind=list(KINDS), persistent=[False, True]),
    counted=True,
    slow=slow,
)
def epochs_by_method(method: str, kind: str, persistent: bool) -> object:
    options = {"num_workers": 2, "batch_size": 4, "multiprocessing_context": method}
    loader = named(loading(KINDS[kind](), persistent_workers=persistent, **options), "train")
    epochs = [list(loader) for _ in range(1 + persistent)]
    starts = 2
    expect(
        "train",
        batches=sum(map(len, epochs)),
        samples=23 * len(epochs),
        epochs=len(epochs),
        starts=starts,
        exits={"normal": starts},
    )
    return epochs


@case(each(method=["fork", "forkserver", "spawn"]), slow=lambda method: method == "spawn")
def a_context_object(method: str) -> object:
    context = multiprocessing.get_context(method)
    loader = loader_of(5, num_workers=1, multiprocessing_context=context)
    return loader.multiprocessing_context is context, list(loader)


@case(each(method=["fork", "spawn"]), slow=slow)
def a_context_of_torch(method: str) -> object:
    loader = loader_of(4, num_workers=1)
    loader.multiprocessing_context = torch.multiprocessing.get_context(method)
    return list(loader)


class Process(multiprocessing.get_context("fork").Process):  # type: ignore[misc]
    """A process of the user's own class."""

    def run(self) -> None:
        print(f"{type(self).__name__} {self._target.__class__ is not None} starts")
        super().run()


class Context(multiprocessing.context.ForkContext):
    """A context that makes them."""

    Process = Process


@case(counted=True)
def a_context_with_its_own_process() -> object:
    loader = named(loader_of(4, num_workers=2, multiprocessing_context=Context()), "train")
    expect("train", batches=4, samples=4, epochs=1, starts=2, exits={"normal": 2})
    return list(loader)


@case()
def the_default_method_changed() -> object:
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        return list(loader_of(4, num_workers=1))
    finally:
        multiprocessing.set_start_method(before, force=True)


def initialise(worker: int, factor: int = 1) -> None:
    """Change the dataset of this worker, as `worker_init_fn` is there for."""
    info = get_worker_info()
    assert info is not None
    dataset: Any = info.dataset
    dataset.length = 8
    dataset.offset = factor * (worker + 1)
    torch.manual_seed(worker)


class Initialised(Numbers):
    offset = 0

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, self.offset, torch.initial_seed()])


@case(each(method=["fork", "forkserver"], partial=[False, True], persistent=[False, True]))
def a_worker_init_fn(method: str, partial: bool, persistent: bool) -> object:
    loader = DataLoader(
        Initialised(8),
        num_workers=2,
        worker_init_fn=functools.partial(initialise, factor=10) if partial else initialise,
        multiprocessing_context=method,
        persistent_workers=persistent,
    )
    return list(loader), list(loader)


class Surroundings(Stream):
    """What a worker sees around it."""

    def __iter__(self) -> Any:
        info = get_worker_info()
        assert info is not None
        process = multiprocessing.current_process()
        yield {
            "worker": worker_of(),
            "dataset": info.dataset is self,
            "process": process.name.rpartition("-")[0],
            "daemon": process.daemon,
            "main thread": open("/proc/self/comm").read().strip(),  # noqa: SIM115
            "parent": os.getppid() == getattr(self, "parent", os.getppid()),
            "threads": torch.get_num_threads(),
            "argv": len(sys.argv),
            "path": [entry for entry in sys.path if "dlmon/shim" not in entry],
        }


@case(each(method=["fork", "forkserver", "spawn"]), slow=lambda method: method == "spawn")
def what_a_worker_sees(method: str) -> object:
    dataset: Any = Surroundings()
    if method == "fork":
        dataset.parent = os.getpid()
    loader = DataLoader(
        dataset,
        num_workers=2,
        multiprocessing_context=method,
        collate_fn=as_they_are,
        batch_size=None,
    )
    return list(loader)


@case(each(method=["fork", "forkserver"]))
def workers_as_their_parent_sees_them(method: str) -> object:
    iterator: Any = iter(loader_of(4, num_workers=2, multiprocessing_context=method))
    workers = iterator._workers
    seen = [[w.name.rpartition("-")[0], w.daemon, w.is_alive(), w.exitcode] for w in workers]
    seen.append([type(worker).__qualname__ for worker in workers])
    list(iterator)
    seen.append([worker.exitcode for worker in workers])
    seen.append([worker.is_alive() for worker in workers])
    return seen


@case()
def a_lambda_cannot_be_sent_to_a_forkserver() -> object:
    loader = loader_of(
        4, num_workers=1, multiprocessing_context="forkserver", collate_fn=lambda batch: batch
    )
    return list(loader)
