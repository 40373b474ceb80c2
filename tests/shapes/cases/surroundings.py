"""What is around a loop: other tools of Python and torch, the loop's own frames and contexts."""

from __future__ import annotations

import contextvars
import cProfile
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torch.utils.data.datapipes.iter import IterableWrapper

from tests.shapes.datasets import Numbers, as_they_are, loader_of
from tests.shapes.job import expect, named
from tests.shapes.table import case, each


@case(each(workers=[0, 1]))
def the_profilers_events(workers: int) -> object:
    """torch names each `next()`: once a batch, and once at the end."""
    loader = loader_of(5, num_workers=workers)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        list(loader)
    return sorted((e.key, e.count) for e in profile.key_averages() if "DataLoader" in e.key)


@case(each(workers=[0, 1]))
def under_a_profiler_of_python(workers: int) -> object:
    profile = cProfile.Profile()
    seen = profile.runcall(list, loader_of(5, num_workers=workers))
    return seen, sys.getprofile() is None


@case()
def under_a_trace_function() -> object:
    """A debugger's or coverage's: it sees dlmon's lines as well, and nothing breaks of it."""
    events = 0

    def trace(frame: Any, event: str, _: Any) -> Any:
        nonlocal events
        events += event == "call" and frame.f_code.co_name == "__getitem__"
        return trace

    sys.settrace(trace)
    try:
        seen = list(loader_of(4))
    finally:
        sys.settrace(None)
    return seen, events


SWITCH: contextvars.ContextVar[int] = contextvars.ContextVar("switch", default=0)


class Sees(Dataset[Any]):
    """Sees contexts of its caller, and sets one."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        before = SWITCH.get()
        SWITCH.set(index)
        handled = sys.exc_info()[0]
        return (
            before,
            handled.__name__ if handled else None,
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            str(torch.get_default_dtype()),
        )


@case(each(workers=[0, 1]))
def contexts(workers: int) -> object:
    loader = DataLoader(Sees(), num_workers=workers, collate_fn=as_they_are)
    seen: list[Any] = []
    with torch.no_grad():
        seen += loader
    with torch.inference_mode():
        for batch in loader:
            seen.append([batch, SWITCH.get()])
    try:
        raise LookupError
    except LookupError:
        seen += loader
    return seen, SWITCH.get()


class Reenters(Dataset[Any]):
    """Takes from the iterator that is just asking for a sample."""

    iterator: Any = None

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> Any:
        return [index, next(self.iterator)] if index % 2 == 0 and index < 6 else index


@case(counted=True)
def an_iterator_that_is_asked_by_its_own_dataset() -> object:
    """`next()` within `next()`: torch allows it where it fetches itself."""
    dataset = Reenters()
    loader = named(DataLoader(dataset, collate_fn=as_they_are), "train")
    dataset.iterator = iter(loader)
    seen = list(dataset.iterator)
    dataset.iterator = None
    expect("train", batches=7, samples=None, epochs=1)
    return seen


class Collates:
    """Iterates another loader while collating."""

    def __init__(self) -> None:
        self.other = loader_of(2)

    def __call__(self, samples: Any) -> Any:
        return samples, list(self.other)


@case(each(workers=[0, 1]))
def a_loader_in_a_collate(workers: int) -> object:
    return list(loader_of(3, num_workers=workers, collate_fn=Collates()))


class Chooses:
    """A sampler that asks another loader which index is next."""

    def __iter__(self) -> Iterator[int]:
        for batch in loader_of(4):
            yield 3 - int(batch)


@case(each(workers=[0, 2]))
def a_loader_in_a_sampler(workers: int) -> object:
    return list(loader_of(4, sampler=Chooses(), num_workers=workers))


@case(each(workers=[0, 1]))
def with_torch_distributed(workers: int) -> object:
    """A group of one: samplers and pipes ask it, torch shares a seed through it."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        sampled = loader_of(sampler=DistributedSampler(Numbers(5)), num_workers=workers)
        pipe = IterableWrapper(range(6)).shuffle().sharding_filter()
        piped: DataLoader[Any] = DataLoader(pipe, num_workers=workers)
        return list(sampled), list(piped)
    finally:
        distributed.destroy_process_group()


@case(each(dtype=["float64"], workers=[0, 1]))
def with_another_default_type(dtype: str, workers: int) -> object:
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        return list(DataLoader([0.5, 1.5], num_workers=workers))  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(before)


@case()
def on_the_meta_device() -> object:
    """torch itself cannot draw its seed there."""
    try:
        with torch.device("meta"):
            return list(loader_of(2))
    except RuntimeError as error:
        return str(error).partition("\n")[0]


@case(counted=True)
def more_workers_than_samples() -> object:
    loader = named(loader_of(3, num_workers=8), "train")
    seen = list(loader)
    expect("train", batches=3, samples=3, epochs=1, starts=8, exits={"normal": 8})
    return seen


@case()
def near_the_limit_of_recursion() -> object:
    """Hooks need a few frames of their own, no more."""
    room = 60
    depth = sys.getrecursionlimit() - room

    def down(levels: int) -> Any:
        return down(levels - 1) if levels else list(loader_of(2))

    return down(depth - len(traceback.extract_stack()))
