"""Put the hooks into torch, and take them out again without a trace.

Every wrapper asks at call time whether it is still wanted, so that one that another library has
wrapped in turn, and that therefore cannot be taken out, passes through.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from dlmon.segment.layout import HOOKS
from dlmon.shim import _guard, _importlib_bootstrap, _torch
from dlmon.shim._session import Session
from dlmon.shim._torch_names import DYNAMO_DISABLE, MODULES, OF_ALL, PLACES, WORKER_LOOP, Place

lock = threading.RLock()
_session: Session | None = None
_patches: dict[Place, _Patch] = {}
_originals: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
_at_fork = False


class _Patch(NamedTuple):
    owner: Any
    original: Any
    replacement: Any


def session() -> Session | None:
    """Return what this process records into, None while not instrumented."""
    return _session


def install() -> Session:
    """Put the hooks in place where they are not, and return what they record into.

    Called again when a module with further places has been imported.

    Runs in: rank, worker. torch's DataLoader module must have been imported.
    """
    global _session, _at_fork
    with lock:
        session = _session or Session()
        if not _at_fork:
            _at_fork = True
            os.register_at_fork(after_in_child=_after_fork)
        for place in PLACES:
            try:
                if _torch.has_all_names(place.hook):
                    _apply(place, session)
            except Exception:
                _guard.swallow()
        _complete_or_none()
        session.hooks = {family: _bits(family) for family in MODULES}
        _session = session
        session.open = True  # last: until now the hooks pass through
        return session


def uninstall() -> None:
    """Take the hooks out, wherever nobody has patched on top of them; the others pass through."""
    global _session
    with lock:
        for place in reversed(list(_patches)):
            _remove(place)
        if _session is not None:
            _session.close()
        _session = None


def original_worker_loop(module: str) -> Callable[..., Any]:
    """Return the `_worker_loop` of a module, as it is without our hook."""
    loop = vars(importlib.import_module(module))[WORKER_LOOP]
    original: Callable[..., Any] = _unhooked(loop)
    return original


def _unhooked(function: Any) -> Any:
    """Return what is below our own hooks, placed now or left over from before."""
    while function in _originals:
        function = _originals[function]
    return function


def _after_fork() -> None:
    global lock
    try:
        lock = threading.RLock()  # another thread of the parent may have held it
        if _session is not None:
            _session.forget()
    except Exception:
        _guard.swallow()


def _apply(place: Place, session: Session) -> None:
    """Place one hook, unless it is there or this torch has nothing like it."""
    owner = _torch.owner(place)
    now = vars(owner).get(place.name) if owner is not None else None
    original = _unhooked(now)
    if original is None or not _torch.fits(place, original):
        return
    placed = _patches.get(place)
    if placed is not None and now is placed.replacement:
        return
    if placed is not None and now not in _originals and not _torch.own(place, now):
        return  # another library's patch, on top of ours
    new = _replacement(place, session, original)
    _originals[new] = original
    _patches[place] = _Patch(owner, original, new)
    setattr(owner, place.name, new)


def _complete_or_none() -> None:
    """Take out what is hooked of iterators if a part of it is missing.

    A phase that one place opens another closes.
    """
    places = [place for place in PLACES if place.hook == "iterator"]
    missing = [f"{place.owner}.{place.name}" for place in places if place not in _patches]
    if missing:
        for place in places:
            if place in _patches:
                _remove(place)
        _guard.warn_once(
            f"DataLoaders are not observed: torch {_torch.version()} has no {missing[0]} like the "
            "one that dlmon knows; upgrade dlmon"
        )


def _remove(place: Place) -> None:
    patch = _patches.pop(place)
    if vars(patch.owner).get(place.name) is patch.replacement:
        setattr(patch.owner, place.name, patch.original)


def _replacement(place: Place, session: Session, original: Any) -> Any:
    if place.name == WORKER_LOOP:
        from dlmon.shim._worker import WorkerLoop  # which needs this module

        return WorkerLoop(place.module, original, session)
    new = _HOOKS[f"{place.owner}.{place.name}"](session, original)
    setattr(new, DYNAMO_DISABLE, True)
    new.__signature__ = inspect.signature(original)  # `inspect.getfullargspec` asks for it
    return new


def _bits(family: str) -> int:
    """Return the hooks in place for iterators of one family, as the cell `hooks` has them."""
    own = {place.hook for place in PLACES if place.module == family}
    missing = {
        place.hook
        for place in PLACES
        if place not in _patches
        and (place.module == family or (place.module in OF_ALL and place.hook not in own))
    }
    if "iterator" in missing or not _torch.has_all_names("dispatch"):
        missing.add("dispatch")
    return sum(1 << i for i, hook in enumerate(HOOKS) if hook not in missing)


_HOOKS: dict[str, Callable[[Session, Any], Any]] = {
    "DataLoader.__init__": _importlib_bootstrap.hook_build,
    "StatefulDataLoader.__init__": _importlib_bootstrap.hook_build,
    "_BaseDataLoaderIter.__init__": _importlib_bootstrap.hook_init,
    "_BaseDataLoaderIter._reset": _importlib_bootstrap.hook_reset,
    "_BaseDataLoaderIter.__next__": _importlib_bootstrap.hook_next,
    "_MultiProcessingDataLoaderIter._shutdown_workers": _importlib_bootstrap.hook_shutdown,
    "_StatefulMultiProcessingDataLoaderIter._shutdown_workers": _importlib_bootstrap.hook_shutdown,
    "_MapDatasetFetcher.fetch": functools.partial(_importlib_bootstrap.hook_fetch, iterable=False),
    "_IterableDatasetFetcher.fetch": functools.partial(
        _importlib_bootstrap.hook_fetch, iterable=True
    ),
}
"""What stands in for a method; for a module's `_worker_loop` it is a WorkerLoop."""
