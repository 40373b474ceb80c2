"""What is asked of torch: by name, at install and when something unusual happens.

torch is the job's: nothing here imports it. Its private names stand in `_torch_names`.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Iterator
from types import CodeType
from typing import Any

from dlmon.shim._torch_names import CALLS, DATALOADER, NAMES, TORCHDATA, WORKER_LOOP, Name, Place

WORKER_ID = "worker_id"
WORKER_ID_POSITION = 10
"""Where `_worker_loop` takes its worker id, should a patch on it not tell."""

MAX_LENGTH = 128
"""Of a label's value, in characters."""

MOST_FRAMES = 6
"""How far up the stack a caller is looked for."""


def loaded(name: str) -> bool:
    """Return whether a module has been imported, wholly."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    return module is not None and not getattr(spec, "_initializing", False)


def owner(place: Place) -> Any | None:
    """Return the class or module that a place is in, None if there is none (yet)."""
    found: Any = sys.modules.get(place.module)
    return getattr(found, place.owner, None) if place.owner else found


def fits(place: Place, function: Any) -> bool:
    """Return whether `function` takes what the hook will give it.

    What another library has put there may take anything.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    if any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        return True
    names = tuple(parameters)
    if place.takes[0] == "...":
        return place.takes[1] in names
    if place.takes[-1] != "...":
        return len(names) == len(place.takes)
    known = place.takes[:-1]
    return len(names) == len(known) or names[: len(known)] == known


def own(place: Place, function: Any) -> bool:
    """Return whether `function` is torch's or torchdata's own code, and no patch on it."""
    code = getattr(function, "__code__", None)
    package = os.path.dirname(getattr(sys.modules.get(place.module), "__file__", None) or "")
    return code is not None and os.path.dirname(code.co_filename) == package


def version() -> str:
    """Return torch's version, "" if it is not imported."""
    return str(getattr(sys.modules.get("torch"), "__version__", ""))


def distributed() -> tuple[int, int] | None:
    """Return (rank, world size) of torch.distributed, None unless it has been initialised."""
    module: Any = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return int(module.get_rank()), int(module.get_world_size())


def worker_id(worker_loop: Any, args: tuple[Any, ...], kwargs: Any) -> int:
    """Return the worker id among the arguments with which `_worker_loop` is called."""
    if WORKER_ID in kwargs:
        return int(kwargs[WORKER_ID])
    parameters = list(inspect.signature(worker_loop).parameters)
    position = parameters.index(WORKER_ID) if WORKER_ID in parameters else WORKER_ID_POSITION
    return int(args[position])


def family(iterator: Any) -> str:
    """Return the module whose hooks an iterator goes through, besides those of all."""
    theirs = any(kind.__module__ == TORCHDATA for kind in type(iterator).__mro__)
    return TORCHDATA if theirs else DATALOADER


def resuming() -> bool:
    """Return whether `next()` is called by torchdata, to skip what a resumed iteration has had."""
    frame = sys._getframe(1)
    for _ in range(MOST_FRAMES):
        if frame.f_code.co_name == "__init__" and frame.f_globals.get("__name__") == TORCHDATA:
            return True
        if frame.f_back is None:
            break
        frame = frame.f_back
    return False


def has_all_names(hook: str) -> bool:
    """Return whether torch has every name that a hook needs besides the places it goes to."""
    if hook == "worker_loop" and hasattr(sys.modules.get(DATALOADER), WORKER_LOOP):
        return False  # not looked up where we put ours
    return all(_has(name) for name in (*NAMES, *CALLS) if name.hook == hook)


def _has(name: Name) -> bool:
    """Return whether a class or function sets or uses a name: whether its code mentions it."""
    owner: Any = sys.modules.get(name.module)
    for part in name.owner.split("."):
        owner = getattr(owner, part, None)
    functions = vars(owner).values() if isinstance(owner, type) else (owner,)
    return any(name.name in names for function in functions for names in _names_in(function))


def _names_in(function: Any) -> Iterator[tuple[str, ...]]:
    """Find the names that a function uses, and what it wraps."""
    codes = []
    while function is not None:
        codes.append(getattr(function, "__code__", None))
        function = getattr(function, "__wrapped__", None)
    while codes:
        code = codes.pop()
        if isinstance(code, CodeType):
            yield code.co_names
            codes.extend(c for c in code.co_consts if isinstance(c, CodeType))


def iterable(loader: Any) -> bool:
    """Return whether a loader's dataset is iterable."""
    kind = getattr(sys.modules.get("torch.utils.data"), "IterableDataset", ())
    return isinstance(getattr(loader, "dataset", None), kind)


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
    return not _raised_under(error, ("_try_get_data", "_get_data"))


def error_kind(error: BaseException) -> str:
    """Return which of `layout.ERRORS` an exception out of `next()` is."""
    text = _text(error)
    if "in pin memory thread" in text:
        return "pin_memory"
    if _raised_under(error, ("reraise", "fetch")):  # first: a dataset's own may have torch's words
        return "fetch"
    text = text if isinstance(error, RuntimeError) else ""
    if text.startswith("DataLoader timed out after"):
        return "timeout"
    if text.startswith("DataLoader worker (pid") and ("exited" in text or "killed" in text):
        return "worker_died"
    if isinstance(error, (OSError, EOFError)) and not consumed_task(error):
        return "worker_died"  # the other end of its result's connection is gone
    return "pin_memory" if text.startswith("Pin memory thread exited") else "other"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's class
        return ""


def _raised_under(error: BaseException, functions: tuple[str, ...]) -> bool:
    """Return whether a function of one of these names is in an exception's traceback."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name in functions:
            return True
        trace = trace.tb_next
    return False


def config(loader: Any) -> dict[str, str]:
    """Return the labels of `dlmon_loader_info` for a DataLoader, unknown ones empty."""

    def text(name: str) -> str:
        value = getattr(loader, name, None)
        if isinstance(value, bool):
            return str(value).lower()
        return "" if value is None else str(value)[:MAX_LENGTH]

    context = getattr(loader, "multiprocessing_context", None)
    method = ""
    if getattr(loader, "num_workers", 0):
        multiprocessing = sys.modules.get("multiprocessing")
        source = context if context is not None else multiprocessing
        method = str(source.get_start_method()) if source is not None else ""
    return {
        "dataset": type(getattr(loader, "dataset", None)).__name__[:MAX_LENGTH],
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


def read_ahead(caller: str) -> str:
    """Return the label of that name: how far deliveries are ahead of the loop that uses them.

    Args:
        caller: The module that asked for the iterator.
    """
    if threading.current_thread() is not threading.main_thread():
        return "thread"
    return "1" if caller == "accelerate.data_loader" else ""


def _batch_size(loader: Any) -> str:
    size = getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
    return "" if size is None else str(size)[:MAX_LENGTH]
