"""Put the hooks into torch, and take them out again without a trace.

Every wrapper asks at call time whether it is still wanted, so that one that another library has
wrapped in turn, and that therefore cannot be taken out, passes through.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from dlmon.segment.layout import HOOKS
from dlmon.shim import _fetch, _guard, _names, _recorder, _torch
from dlmon.shim._session import Session

_lock = threading.RLock()
_session: Session | None = None
_patches: list[_Patch] = []
_at_fork = False


@dataclass(frozen=True, slots=True)
class _Patch:
    owner: Any
    name: str
    original: Any
    replacement: Any
    hook: str


def session() -> Session | None:
    """Return what this process records into, None while not instrumented."""
    return _session


def install() -> Session:
    """Put the hooks in place, unless they are, and return what they record into.

    Runs in: rank, worker. torch's DataLoader module must have been imported.
    """
    global _session, _at_fork
    with _lock:
        if _session is not None:
            return _session
        _session = Session()
        if not _at_fork:
            _at_fork = True
            os.register_at_fork(after_in_child=_after_fork)
        try:
            for hook, owner, name, replacement in _plan(_session):
                _apply(hook, owner, name, replacement)
        except Exception:
            _guard.swallow()
        placed = {patch.hook for patch in _patches}
        hooks = placed | ({"dispatch"} if "iterator" in placed else set())
        _session.hooks = sum(1 << i for i, hook in enumerate(HOOKS) if hook in hooks)
        return _session


def uninstall() -> None:
    """Take the hooks out, wherever nobody has patched on top of them; the others pass through."""
    global _session
    with _lock:
        for patch in reversed(_patches):
            if vars(patch.owner).get(patch.name) is patch.replacement:
                setattr(patch.owner, patch.name, patch.original)
        _patches.clear()
        if _session is not None:
            _session.forget_fetchers()
            for recorder in list(_session.live.values()):
                recorder.gone()
            _session.live.clear()
        _session = None


def original_worker_loop(module: str) -> Callable[..., Any]:
    """Return torch's own `_worker_loop`, hooked or not."""
    for patch in _patches:
        if patch.hook == "worker_loop" and patch.owner is _torch.module(module):
            original: Callable[..., Any] = patch.original
            return original
    loop: Callable[..., Any] = sys.modules[module]._worker_loop
    return loop


def _after_fork() -> None:
    try:
        if _session is not None:
            _session.forget()
    except Exception:
        _guard.swallow()


def _plan(session: Session) -> list[tuple[str, Any, str, Callable[[Any], Any]]]:
    """Return (hook, owner, name, make a replacement from the original) for every hook."""
    from dlmon.shim._worker import WorkerLoop

    iterator = _torch.find(_torch.DATALOADER, "_BaseDataLoaderIter")
    multiprocess = _torch.find(_torch.DATALOADER, "_MultiProcessingDataLoaderIter")
    return [
        ("build", _torch.find(_torch.DATALOADER, "DataLoader"), "__init__", _hook_build),
        ("iterator", iterator, "__init__", functools.partial(_hook_init, session)),
        ("iterator", iterator, "_reset", functools.partial(_hook_reset, session)),
        ("iterator", iterator, "__next__", functools.partial(_recorder.hooked, session)),
        ("shutdown", multiprocess, "_shutdown_workers", functools.partial(_hook_shutdown, session)),
        (
            "worker_loop",
            _torch.module(_torch.WORKER),
            "_worker_loop",
            lambda original: WorkerLoop(_torch.WORKER, original, session),
        ),
        (
            "map_fetch",
            _torch.find(_torch.FETCH, "_MapDatasetFetcher"),
            "fetch",
            functools.partial(_fetch.hooked, session),
        ),
        (
            "iterable_fetch",
            _torch.find(_torch.FETCH, "_IterableDatasetFetcher"),
            "fetch",
            functools.partial(_fetch.hooked, session),
        ),
    ]


def _apply(hook: str, owner: Any, name: str, replacement: Callable[[Any], Any]) -> None:
    original = vars(owner).get(name) if owner is not None else None
    if original is None:
        return  # this torch has no such name: the metric is missing, the job is not affected
    new = replacement(original)
    _patches.append(_Patch(owner, name, original, new, hook))
    setattr(owner, name, new)


def _hook_build(original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if _session is not None:
            try:
                _names.built(self)
            except Exception:
                _guard.swallow()
        original(self, *args, **kwargs)

    return __init__


def _hook_init(session: Session, original: Any) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
        if _session is session:
            try:
                session.begin(self, loader)
            except Exception:
                _guard.swallow()
        original(self, loader, *args, **kwargs)

    return __init__


def _hook_reset(session: Session, original: Any) -> Any:
    @functools.wraps(original)
    def _reset(self: Any, *args: Any, **kwargs: Any) -> Any:
        recorder = session.live.get(id(self))
        if recorder is not None:
            try:
                recorder.reset(self, monotonic_ns(), list(session.live.values()))
                session.building.segment = None
            except Exception:
                _guard.swallow()
        return original(self, *args, **kwargs)

    return _reset


def _hook_shutdown(session: Session, original: Any) -> Any:
    @functools.wraps(original)
    def _shutdown_workers(self: Any) -> Any:
        recorder = session.live.get(id(self))
        if recorder is None:
            return original(self)
        try:
            return recorder.shutting_down(original, self)
        finally:
            session.shut_down(self)

    return _shutdown_workers
