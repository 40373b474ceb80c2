"""Install the hooks as soon as torch's DataLoader is there, without importing torch.

Runs in: rank.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from dlmon.shim import _guard, _patch, _torch
from dlmon.shim._torch_names import DATALOADER, MODULES

_chosen: dict[str, str | None] = {}


def request(run: object, rank: object, directory: object) -> None:
    """Hook torch now if it is imported, else when it is; likewise torchdata."""
    chosen = {"run": run, "rank": rank, "dir": directory}
    with _patch.lock:
        given = {key: str(value) for key, value in chosen.items() if value not in (None, "")}
        _chosen.update(given)
        awaited = [name for name in MODULES if not _torch.loaded(name)]
        if awaited:
            _stop_waiting()
            sys.meta_path.insert(0, _Finder(awaited))
        if _torch.loaded(DATALOADER):
            _patch.install().choose(**_chosen)


def withdraw() -> None:
    """Take the hooks out, or stop waiting for torch."""
    with _patch.lock:
        _chosen.clear()
        _stop_waiting()
        _patch.uninstall()


def _stop_waiting() -> None:
    """Take away every finder that waits for torch, also the one of `dlmon run`."""
    for finder in list(sys.meta_path):
        if getattr(finder, "dlmon_waits", False):
            sys.meta_path.remove(finder)


class _Finder:
    """Waits on `sys.meta_path` for modules that have hooks, and goes away after the last."""

    dlmon_waits = True

    def __init__(self, awaited: list[str]) -> None:
        self._awaited = awaited
        self._searching: set[tuple[int, str]] = set()  # by which thread, for what

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find the module, and be told when it has been executed."""
        search = (threading.get_ident(), name)
        if name not in self._awaited or search in self._searching:
            return None
        self._searching.add(search)
        try:
            spec = find_spec(name)
        finally:
            self._searching.discard(search)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            telling: Any = _Telling(spec, functools.partial(self._imported, name))
            spec.loader = telling
        return spec

    def _imported(self, name: str) -> None:
        try:
            with _patch.lock:
                wanted = self in sys.meta_path
                if name in self._awaited:
                    self._awaited.remove(name)
                if wanted and not self._awaited:
                    sys.meta_path.remove(self)
                # That module itself is not yet marked as loaded, but it is executed.
                if wanted and (name == DATALOADER or _torch.loaded(DATALOADER)):
                    _patch.install().choose(**_chosen)
        except Exception:
            _guard.swallow()


class _Telling:
    """A module's loader until it executes the module: then the real one is back in its place.

    The loader itself is left alone: it may be a class, or the loader of every module there is.
    """

    def __init__(self, spec: ModuleSpec, callback: Callable[[], None]) -> None:
        self._spec = spec
        self._loader: Any = spec.loader
        self._callback = callback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module as its own loader does, and tell."""
        self._spec.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._callback()
