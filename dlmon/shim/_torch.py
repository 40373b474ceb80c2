"""Every private name of torch that dlmon uses, and how it is found: by name, at install.

torch is the job's: nothing here imports it. A name that is missing costs what hangs on it
(`dlmon_shim_hook_active 0`), never an error.

| name | hook | for | run on |
|---|---|---|---|
| `dataloader.DataLoader.__init__` | build | a loader's default name | 2.13 |
| `dataloader._BaseDataLoaderIter.__init__`, `_reset`, `__next__` | iterator | phases | 2.13 |
| `dataloader._MultiProcessingDataLoaderIter._shutdown_workers` | shutdown | exits | 2.13 |
| `_utils.worker._worker_loop` | worker_loop | worker slots | 2.13 |
| `_utils.fetch._MapDatasetFetcher.fetch` | map_fetch | fetch times | 2.13 |
| `_utils.fetch._IterableDatasetFetcher.fetch` | iterable_fetch | fetch times | 2.13 |
| `_MultiProcessingDataLoaderIter`'s `_send_idx` | dispatch | outstanding batches | 2.13 |
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

DATALOADER = "torch.utils.data.dataloader"
WORKER = "torch.utils.data._utils.worker"
FETCH = "torch.utils.data._utils.fetch"

WORKER_LOOP = "_worker_loop"
WORKER_ID = "worker_id"
WORKER_ID_POSITION = 10
"""Where `_worker_loop` takes its worker id, should its signature not tell."""


def loaded() -> bool:
    """Return whether torch's DataLoader module has been imported, wholly."""
    module = sys.modules.get(DATALOADER)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)


def version() -> str:
    """Return torch's version, "" if it is not imported."""
    return str(getattr(sys.modules.get("torch"), "__version__", ""))


def find(module: str, *path: str) -> Any | None:
    """Return an attribute of an imported module, None if any part is missing."""
    found: Any = sys.modules.get(module)
    for name in path:
        if found is None:
            return None
        found = getattr(found, name, None)
    return found


def module(name: str) -> ModuleType | None:
    """Return an imported module, None if it is not imported."""
    return sys.modules.get(name)


def worker_id_position(worker_loop: Any) -> int:
    """Return at which position `_worker_loop` takes the worker id."""
    try:
        return list(inspect.signature(worker_loop).parameters).index(WORKER_ID)
    except (TypeError, ValueError):
        return WORKER_ID_POSITION


def iterable(owner: Any) -> bool:
    """Return whether a loader's or iterator's dataset is iterable (`_DatasetKind.Iterable`)."""
    return bool(getattr(owner, "_dataset_kind", 0))


def dispatched(iterator: Any, consumed: int) -> int:
    """Return how many tasks of this iteration came back from workers, or still can.

    At the end of an iterable dataset `_send_idx` goes on counting tasks of workers that have no
    data left; what waits in `_task_info` for a worker still active is counted instead.

    Args:
        iterator: A multi-process iterator.
        consumed: Tasks of this iteration that came back.

    Raises:
        AttributeError: This torch has no such names.
    """
    active = iterator._workers_status
    if False not in active:
        return int(iterator._send_idx)
    waiting = iterator._task_info.values()
    return consumed + sum(1 for task in waiting if len(task) == 2 or active[task[0]])


def consumed_task(error: BaseException) -> bool:
    """Return whether an exception out of `next()` took a task's place in the results.

    A timeout or a dead worker is raised where results are waited for; any other comes instead of
    a batch.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in ("_try_get_data", "_get_data"):
            return False
        trace = trace.tb_next
    return True


def error_kind(error: BaseException) -> str:
    """Return which of `layout.ERRORS` an exception out of `next()` is."""
    text = str(error) if isinstance(error, RuntimeError) else ""
    if text.startswith("DataLoader timed out after"):
        return "timeout"
    if text.startswith("DataLoader worker (pid") and ("exited" in text or "killed" in text):
        return "worker_died"
    if isinstance(error, (OSError, EOFError)) and not consumed_task(error):
        return "worker_died"  # the other end of its result's connection is gone
    if "in pin memory thread" in str(error) or text.startswith("Pin memory thread exited"):
        return "pin_memory"
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in ("reraise", "fetch"):
            return "fetch"
        trace = trace.tb_next
    return "other"


def config(loader: Any) -> dict[str, str]:
    """Return the labels of `dlmon_loader_info` for a DataLoader, unknown ones empty."""

    def text(name: str) -> str:
        value = getattr(loader, name, None)
        return (
            "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        )

    context = getattr(loader, "multiprocessing_context", None)
    method = ""
    if getattr(loader, "num_workers", 0):
        multiprocessing = sys.modules.get("multiprocessing")
        source = context if context is not None else multiprocessing
        method = str(source.get_start_method()) if source is not None else ""
    return {
        "dataset": type(getattr(loader, "dataset", None)).__name__,
        "num_workers": text("num_workers"),
        "prefetch_factor": text("prefetch_factor"),
        "batch_size": text("batch_size") or _batch_size(loader),
        "pin_memory": text("pin_memory"),
        "persistent_workers": text("persistent_workers"),
        "start_method": method,
        "timeout_seconds": text("timeout"),
        "in_order": text("in_order") or "true",
        "read_ahead": "",
    }


def _batch_size(loader: Any) -> str:
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return "" if size is None else str(size)
