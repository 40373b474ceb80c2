"""What `uninstrument()` takes out, and who may be in the middle of what when it is called."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

import dlmon
from tests.shim import patching
from tests.shim.patching import State, changes
from tests.shim.probing import NUMBERS, Probe, depths, epoch, numbers
from tests.shim.processes import in_child
from tests.shim.threads import Doing, at_once

pytestmark = pytest.mark.usefixtures("torch_own")

TOGGLES: dict[str, tuple[Callable[[], None], ...]] = {
    "undo": (dlmon.uninstrument,),
    "undo and redo": (dlmon.uninstrument, dlmon.instrument),
    "undo twice": (dlmon.uninstrument, dlmon.instrument, dlmon.uninstrument),
}


def test_every_hook_is_called_once_and_none_after_undo() -> None:
    assert set(depths()) == {0}
    dlmon.instrument()
    assert 0 < min(depths()) <= max(depths()) <= 4  # 4 in a worker: its stand-in takes two
    dlmon.uninstrument()
    assert set(depths()) == {0}


def test_a_hundred_cycles_do_not_nest() -> None:
    dlmon.instrument()
    once = depths()
    for _ in range(100):
        dlmon.instrument()
        dlmon.uninstrument()
        dlmon.uninstrument()
        dlmon.instrument()
    assert depths() == once


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(NUMBERS)


LOADERS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "iterable": {"dataset": Stream()},
    "one by one": {"batch_size": None},
    "two workers": {"num_workers": 2},
    "iterable and a worker": {"dataset": Stream(), "num_workers": 1},
    "persistent": {"num_workers": 1, "persistent_workers": True},
}


@pytest.mark.parametrize("options", LOADERS.values(), ids=LOADERS)
def test_live_iterators_go_on(options: dict[str, Any]) -> None:
    loader: Any = DataLoader(**{"dataset": numbers(), **options})
    for toggles in ((dlmon.instrument,), *TOGGLES.values(), (dlmon.instrument,)):
        batches = []
        for batch in loader:
            batches.append(int(batch))
            if len(batches) == 3:
                for toggle in toggles:
                    toggle()
        assert batches == NUMBERS


@pytest.mark.parametrize("toggles", TOGGLES.values(), ids=TOGGLES)
def test_workers_on_their_way_are_not_lost(toggles: tuple[Callable[[], None], ...]) -> None:
    """A spawned worker looks for its segment seconds after it was told which."""
    dlmon.instrument()
    iterator = iter(DataLoader(numbers(), num_workers=1, multiprocessing_context="spawn"))
    for toggle in toggles:
        toggle()
    assert [int(batch) for batch in iterator] == NUMBERS


# ── in the middle of something ───────────────────────────────────────────────────────────────────


class Toggling(Dataset[int]):
    """Calls something in the middle of whatever asks for its length, indices or third sample."""

    def __init__(self, where: str, toggles: tuple[Callable[[], None], ...]) -> None:
        self._where = where
        self._toggles = toggles

    def at(self, where: str) -> None:
        if where == self._where:
            for toggle in self._toggles:
                toggle()

    def __len__(self) -> int:
        self.at("length")
        return len(NUMBERS)

    def __getitem__(self, index: int) -> int:
        if index == 2:
            self.at("dataset")
        return NUMBERS[index]

    def __iter__(self) -> Iterator[list[int]]:
        self.at("sampler")
        return iter([[index] for index in range(len(NUMBERS))])

    def collate(self, samples: list[int]) -> int:
        self.at("collate")
        return samples[0]

    def init(self, _: int) -> None:
        self.at("worker_init_fn")


@pytest.mark.parametrize("toggles", TOGGLES.values(), ids=TOGGLES)
@pytest.mark.parametrize("where", ["length", "sampler", "dataset", "collate"])
def test_undo_within_what_the_rank_calls(
    torch_own: State, where: str, toggles: tuple[Callable[[], None], ...]
) -> None:
    dlmon.instrument()
    data: Any = Toggling(where, toggles)
    for _ in range(2):
        loader = DataLoader(data, collate_fn=data.collate)
        assert list(loader) == NUMBERS
        loader = DataLoader(data, batch_sampler=data, collate_fn=data.collate)
        assert list(loader) == NUMBERS
    assert bool(changes(torch_own)) == (toggles[-1] is dlmon.instrument)


@pytest.mark.parametrize("where", ["dataset", "collate", "worker_init_fn"])
def test_undo_in_a_worker_is_the_workers_alone(where: str) -> None:
    dlmon.instrument()
    instrumented = patching.state()
    data: Any = Toggling(where, (dlmon.uninstrument,))
    loader: Any = DataLoader(data, collate_fn=data.collate, num_workers=2, worker_init_fn=data.init)
    assert list(loader) == NUMBERS
    assert not changes(instrumented)


def test_a_worker_that_undid_has_no_hook() -> None:
    def undo(_: int) -> None:
        dlmon.uninstrument()

    dlmon.instrument()
    probe: Any = Probe()
    options: Any = {"batch_sampler": probe, "collate_fn": max, "num_workers": 1}
    with_hooks = max(DataLoader(probe, **options))
    assert max(DataLoader(probe, worker_init_fn=undo, **options)) < with_hooks


def test_undo_in_a_forked_child_is_the_childs_alone(torch_own: State) -> None:
    def undo() -> None:
        dlmon.uninstrument()
        assert not changes(torch_own)
        assert [*map(int, iterator)] == NUMBERS[2:]
        assert epoch() == NUMBERS

    dlmon.instrument()
    instrumented, once = patching.state(), depths()
    iterator = iter(DataLoader(numbers()))
    assert [int(next(iterator)) for _ in range(2)] == NUMBERS[:2]
    in_child(undo)
    assert [*map(int, iterator)] == NUMBERS[2:]
    assert not changes(instrumented)
    assert depths() == once


def test_instrument_in_a_forked_child_is_the_childs_alone(torch_own: State) -> None:
    def instrument() -> None:
        dlmon.instrument()
        assert changes(torch_own)
        assert epoch() == NUMBERS

    dlmon.instrument()
    assert epoch() == NUMBERS
    dlmon.uninstrument()
    in_child(instrument)
    assert not changes(torch_own)


# ── threads ──────────────────────────────────────────────────────────────────────────────────────


class Waiting(Dataset[int]):
    """Its third sample waits until it may be had."""

    def __init__(self, asked: Any, may: Any) -> None:
        self._asked = asked
        self._may = may

    def __len__(self) -> int:
        return len(NUMBERS)

    def __getitem__(self, index: int) -> int:
        if index == 2:
            self._asked.set()
            assert self._may.wait(60)
        return NUMBERS[index]


@pytest.mark.parametrize("toggles", TOGGLES.values(), ids=TOGGLES)
@pytest.mark.parametrize("workers", [0, 1])
def test_undo_while_another_thread_is_in_next(
    torch_own: State, workers: int, toggles: tuple[Callable[[], None], ...]
) -> None:
    """Undo waits for nobody, and who was in the middle of a `next()` gets its batch."""
    new: Callable[[], threading.Event | Event]
    new = torch.multiprocessing.Event if workers else threading.Event
    asked, may = new(), new()
    dlmon.instrument()
    loader = DataLoader(Waiting(asked, may), num_workers=workers)
    batches = Doing(lambda: [int(batch) for batch in loader])
    assert asked.wait(60)
    for toggle in toggles:
        toggle()
    assert bool(changes(torch_own)) == (toggles[-1] is dlmon.instrument)
    may.set()
    assert batches.result() == NUMBERS


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads that take turns a hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_eight_threads_while_others_iterate() -> None:
    """1,600 calls. Whoever iterates meanwhile gets its data, and what is left is torch's own."""
    over = threading.Event()

    def toggle(number: int) -> None:
        for step in range(200):
            (dlmon.uninstrument if (step + number) % 3 else dlmon.instrument)()

    def iterate(**options: Any) -> int:
        epochs = 0
        while not over.is_set() or not epochs:
            assert epoch(**options) == NUMBERS
            epochs += 1
        return epochs

    iterating = [Doing(iterate), Doing(lambda: iterate(num_workers=1))]
    try:
        at_once(functools.partial(toggle, number) for number in range(8))
    finally:
        over.set()
    assert all(one.result() for one in iterating)
