"""The hooks go in and out without a trace, whatever is missing, and cost nothing until wanted."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.utils.data.dataloader as torch_dataloader
from torch.utils.data import DataLoader
from torch.utils.data._utils import fetch as torch_fetch
from torch.utils.data._utils import worker as torch_worker

import dlmon
from dlmon.shim import _guard, _patch, _torch
from dlmon.shim import _session as session_module
from dlmon.shim._torch_names import DATALOADER
from tests.jobs import JobStarter
from tests.observing import facts, loader, observe, only_rank

HOOKED: list[tuple[Any, str]] = [
    (torch_dataloader.DataLoader, "__init__"),
    (torch_dataloader._BaseDataLoaderIter, "__init__"),
    (torch_dataloader._BaseDataLoaderIter, "_reset"),
    (torch_dataloader._BaseDataLoaderIter, "__next__"),
    (torch_dataloader._MultiProcessingDataLoaderIter, "_shutdown_workers"),
    (torch_worker, "_worker_loop"),
    (torch_fetch._MapDatasetFetcher, "fetch"),
    (torch_fetch._IterableDatasetFetcher, "fetch"),
]
OWNERS = list(dict.fromkeys(owner for owner, _ in HOOKED))


@pytest.fixture(autouse=True)
def uninstrumented(segment_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave torch as it was."""
    monkeypatch.setenv("DLMON_DIR", str(segment_dir))
    yield
    dlmon.uninstrument()


def numbers(count: int) -> Any:
    """Return a dataset: torch accepts a list, its types do not."""
    return list(range(count))


def vars_of_owners() -> list[dict[str, Any]]:
    return [dict(vars(owner)) for owner in OWNERS]


def test_uninstrument_restores_what_was_there_in_any_order_and_number() -> None:
    before = vars_of_owners()
    for steps in itertools.product((dlmon.instrument, dlmon.uninstrument), repeat=4):
        for step in steps:
            step()
        if steps[-1] is dlmon.instrument:
            assert all(vars(owner)[name] is not None for owner, name in HOOKED)
            assert vars_of_owners() != before
        dlmon.uninstrument()
        assert vars_of_owners() == before


def test_a_hook_covered_by_another_patch_passes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    dlmon.instrument()
    ours = torch_dataloader._BaseDataLoaderIter.__next__
    calls = []

    def theirs(self: Any) -> Any:
        calls.append(1)
        return ours(self)

    monkeypatch.setattr(torch_dataloader._BaseDataLoaderIter, "__next__", theirs)
    dlmon.uninstrument()
    assert torch_dataloader._BaseDataLoaderIter.__next__ is theirs
    assert [int(b) for b in DataLoader(numbers(5))] == list(range(5))
    assert len(calls) == 6


def test_live_iterators_go_on_after_uninstrument() -> None:
    dlmon.instrument()
    iterator = iter(DataLoader(numbers(6), num_workers=1))
    first = [int(next(iterator)) for _ in range(2)]
    dlmon.uninstrument()
    assert first + [int(batch) for batch in iterator] == list(range(6))


@pytest.mark.parametrize(
    ("owner", "name"), HOOKED, ids=lambda part: getattr(part, "__name__", part)
)
def test_a_name_that_torch_does_not_have_costs_its_hook_only(
    owner: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is found on a copy without it: torch itself needs all of them."""
    find = _torch.owner

    class Without:
        """Stands for an owner that lacks the name."""

    monkeypatch.setattr(
        _torch, "owner", lambda place: Without if find(place) is owner else find(place)
    )
    dlmon.instrument()
    session = _patch.session()
    assert session is not None
    assert session.hooks[DATALOADER] != (1 << 7) - 1
    assert sum(int(b) for b in DataLoader(numbers(7), num_workers=1)) == 21
    assert sum(int(b) for b in DataLoader(numbers(7))) == 21


def test_errors_in_the_shim_are_swallowed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_guard, "strict", False)

    def broken(*_: object) -> None:
        raise RuntimeError("a bug in the shim")

    before = _guard.errors
    monkeypatch.setattr(session_module.Session, "begin", broken)
    monkeypatch.setattr(session_module.Session, "adopt_fetcher", lambda *_, **__: None)
    dlmon.instrument()
    assert [int(b) for b in DataLoader(numbers(4))] == [0, 1, 2, 3]
    assert _guard.errors == before + 1


def test_no_thread_and_no_object_per_batch() -> None:
    dlmon.instrument()
    threads = threading.active_count()
    iterator = iter(DataLoader(numbers(2000), collate_fn=_first))
    for _ in range(100):
        next(iterator)
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        next(iterator)
    gc.collect()
    assert len(gc.get_objects()) - before < 20
    assert threading.active_count() == threads


def _first(samples: list[int]) -> int:
    return samples[0]


def test_disabled_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    before = vars_of_owners()
    monkeypatch.setenv("DLMON_DISABLE", "1")
    dlmon.instrument()
    assert vars_of_owners() == before


ORDER = """
    import dlmon

    {before}
    import torch
    from torch.utils.data import DataLoader
    {after}

    train_loader = DataLoader(list(range(5)))
    again = DataLoader(list(range(5)))


    class Trainer:
        def __init__(self):
            self.val_loader = DataLoader(list(range(5)))


    trainer = Trainer()
    for one in (train_loader, trainer.val_loader, dlmon.name(again, "a name")):
        for batch in one:
            pass
    print("FACTS {{}}", flush=True)
    input()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_instrument_before_or_after_torch_and_loaders_named_by_assignment(
    when: str, run_job: JobStarter, segment_dir: Path
) -> None:
    places = {"before": "", "after": "", when: "dlmon.instrument()"}
    job = run_job(ORDER.format(**places))
    facts(job)
    rank = only_rank(observe(segment_dir))
    assert [one.name for one in rank.loaders] == ["a name", "train_loader", "val_loader"]
    assert all(rank.hooks.values())
    job.tell()
    job.finish()


FORKS = """
    import os

    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader

    loader = dlmon.name(DataLoader(list(range(10))), "train")
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    child = os.fork()
    if child == 0:
        rest = sum(1 for _ in iterator)  # the parent's iterator: unobserved here
        own = sum(1 for _ in loader)  # one of the child's own
        os._exit(0 if (rest, own) == (7, 10) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print("FACTS {}", flush=True)
    input()
"""


def test_a_forked_child_writes_cells_of_its_own(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(FORKS)
    facts(job)
    snapshot = observe(segment_dir)
    assert loader(snapshot, "train").batches == 3 + 10  # one rank, one loader, two segments
    assert snapshot.segments == 2
    job.tell()
    job.finish()


def test_a_patch_on_top_of_a_fetcher_is_not_bypassed(monkeypatch: pytest.MonkeyPatch) -> None:
    dlmon.instrument()
    ours: Any = torch_fetch._MapDatasetFetcher.fetch
    calls = []

    def theirs(self: Any, index: Any) -> Any:
        calls.append(index)
        return ours(self, index)

    monkeypatch.setattr(torch_fetch._MapDatasetFetcher, "fetch", theirs)
    assert [int(b) for b in DataLoader(numbers(5))] == list(range(5))
    assert len(calls) == 5


@pytest.mark.parametrize("collate", [None, _first], ids=["default collate", "own collate"])
def test_uninstrument_leaves_live_fetchers_as_they_were(collate: Any) -> None:
    dlmon.instrument()
    loader: Any = DataLoader(numbers(6), batch_size=1, collate_fn=collate)
    iterator = iter(loader)
    fetcher = iterator._dataset_fetcher
    before = dict(vars(fetcher))
    next(iterator)
    assert "fetch" in vars(fetcher)
    dlmon.uninstrument()
    assert vars(fetcher) == before
    assert [int(batch) for batch in iterator] == [1, 2, 3, 4, 5]
