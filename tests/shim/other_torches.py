"""Torches that do not exist yet: the installed one, with one thing that is different."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.shim.overlays import move_up, replace

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """A torch that differs from the installed one.

    Attributes:
        name: What is different.
        change: Applied to a copy of torch/utils/data.
        off: The hooks that must be told to be missing.
    """

    name: str
    change: Change
    off: frozenset[str]


def renamed(name: str, *off: str, files: tuple[str, ...] = ()) -> Case:
    """Return the case of an identifier that has another name, everywhere or in some files."""

    def change(data: Path) -> None:
        replace(data, rf"\b{name}\b", r"\g<0>_of_another_torch", *files)

    return Case(name.replace("\\", ""), change, frozenset(off))


def changed(name: str, *replacements: tuple[str, str, str], off: tuple[str, ...] = ()) -> Case:
    """Return the case of (file, pattern, replacement) all done."""

    def change(data: Path) -> None:
        for file, old, new in replacements:
            replace(data, old, new, file)

    return Case(name, change, frozenset(off))


def moved(owner: str, method: str, *off: str) -> Case:
    """Return the case of a method that is in a base class."""

    def change(data: Path) -> None:
        move_up(data, LOADER, owner, method)

    return Case(f"{owner}.{method} in a base class", change, frozenset(off))


def module(name: str, *off: str) -> Case:
    """Return the case of a module of `torch.utils.data._utils` that has another name."""

    def change(data: Path) -> None:
        there = data / "_utils" / f"{name}.py"
        there.rename(there.with_stem(f"{name}_of_another_torch"))
        replace(data, rf"\b{name}\b", r"\g<0>_of_another_torch", "_utils/__init__.py")
        replace(data, rf"_utils\.{name}\b", r"\g<0>_of_another_torch", LOADER)

    return Case(f"_utils.{name}", change, frozenset(off))


LOADER = "dataloader.py"
WORKER = "_utils/worker.py"
FETCH = "_utils/fetch.py"
FETCHES = ("map_fetch", "iterable_fetch")
ITERATOR = ("iterator", "dispatch")

RENAMED = [
    renamed("_BaseDataLoaderIter", *ITERATOR),
    moved("_BaseDataLoaderIter", "__init__", *ITERATOR),
    moved("_BaseDataLoaderIter", "_reset", *ITERATOR),
    moved("_BaseDataLoaderIter", "__next__", *ITERATOR),
    renamed("_reset", *ITERATOR),
    renamed("_MultiProcessingDataLoaderIter", "shutdown", "dispatch", "worker_loop"),
    renamed("_shutdown_workers", "shutdown"),
    moved("DataLoader", "__init__", "build"),
    renamed("_worker_loop", "worker_loop", *FETCHES),
    renamed("worker_id", "worker_loop"),
    renamed("_MapDatasetFetcher", "map_fetch"),
    renamed("_IterableDatasetFetcher", "iterable_fetch"),
    changed(
        "fetch",
        (FETCH, r"\bfetch\(", "fetch_of_another_torch("),
        (WORKER, r"\.fetch\(", ".fetch_of_another_torch("),
        (LOADER, r"\.fetch\(", ".fetch_of_another_torch("),
        off=FETCHES,
    ),
    renamed("_dataset_fetcher", *FETCHES),
    renamed("_persistent_workers", files=(LOADER,)),
    renamed("_dataset_kind"),
    renamed("_workers", "shutdown", files=(LOADER,)),
    renamed("_send_idx", "dispatch"),
    renamed("_task_info", "dispatch"),
    renamed("_workers_status", "dispatch"),
    renamed(r"self\.auto_collation", *FETCHES, files=(FETCH,)),
    renamed(r"self\.collate_fn", *FETCHES, files=(FETCH,)),
    renamed(r"self\.dataset", "map_fetch", files=(FETCH,)),
    renamed("dataset_iter", files=(FETCH,)),
]
"""Every name that the shim uses, one after the other, not there any more. Modules follow."""

MODULES = [module("worker", "worker_loop", *FETCHES), module("fetch", *FETCHES)]

SIGNATURES = [
    changed(
        "_worker_loop(added, …)",
        (WORKER, r"def _worker_loop\(", "def _worker_loop(added,"),
        (LOADER, r"args=\(\s*self\._dataset_kind", "args=(None, self._dataset_kind"),
    ),
    changed(
        "_worker_loop(…, added, worker_id, …)",
        (WORKER, r"(def _worker_loop\([^)]*)\bworker_id\b", r"\1added, worker_id"),
        (LOADER, r"self\._worker_init_fn,\s*i,", "self._worker_init_fn, None, i,"),
    ),
    changed(
        "_worker_loop(…, added=None)",
        (WORKER, r"(def _worker_loop\([^)]*[a-z]),?\s*\)", r"\1, added=None)"),
    ),
    changed(
        "fetch(self, added, index)",
        (FETCH, r"def fetch\(self, ", "def fetch(self, added, "),
        (WORKER, r"\.fetch\(", ".fetch(None, "),
        (LOADER, r"\.fetch\(", ".fetch(None, "),
        off=FETCHES,
    ),
    changed(
        "fetch(self, index, added=None)",
        (FETCH, r"(def fetch\(self, \w+)", r"\1, added=None"),
        off=FETCHES,
    ),
    changed(
        "_reset(self, added, loader, first_iter)",
        (LOADER, r"def _reset\(self, loader", "def _reset(self, added, loader"),
        (LOADER, r"\._reset\(", "._reset(None, "),
    ),
    changed(
        "__next__(self, added=None)",
        (LOADER, r"def __next__\(self", "def __next__(self, added=None"),
        off=ITERATOR,
    ),
    changed(
        "_BaseDataLoaderIter.__init__(self, added, loader)",
        (
            LOADER,
            r"(?s)(class _BaseDataLoaderIter.*?def __init__\(self), loader",
            r"\1, added, loader",
        ),
        (LOADER, r"super\(\).__init__\(loader\)", "super().__init__(None, loader)"),
        off=ITERATOR,
    ),
    changed(
        "_BaseDataLoaderIter.__init__(self, loader, added=None)",
        (
            LOADER,
            r"(?s)(class _BaseDataLoaderIter.*?def __init__\(self, loader[^)]*)\)",
            r"\1, added=None)",
        ),
    ),
    changed(
        "_shutdown_workers(self, added=None)",
        (LOADER, r"def _shutdown_workers\(self", "def _shutdown_workers(self, added=None"),
        off=("shutdown",),
    ),
]


CALLS = [
    changed(
        "_worker_loop imported by name",
        (LOADER, r"_utils\.worker\._worker_loop\b", "_worker_loop"),
        (LOADER, r"(\nclass _DatasetKind)", r"\n_worker_loop = _utils.worker._worker_loop\n\1"),
        off=("worker_loop",),
    ),
    changed(
        "fetch called by a helper of _worker_loop",
        (WORKER, r"fetcher\.fetch\(index\)", "_helper(fetcher, index)"),
        (
            WORKER,
            r"(\ndef _worker_loop)",
            r"\ndef _helper(one, index): return one.fetch(index)\n\1",
        ),
        off=FETCHES,
    ),
]

WORDED = [
    renamed("_get_data"),
    renamed("_try_get_data"),
    changed("timed out", (LOADER, "DataLoader timed out after", "No batch came for")),
    changed("worker died", (LOADER, r"DataLoader worker \(pid", "Workers are gone (pid")),
]
