"""Install the hooks as soon as torch's DataLoader is there, without importing torch.

Runs in: rank.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from dlmon.shim import _guard, _patch, _torch

_waiting: _Finder | None = None


def request(run: str | None, rank: str | int | None, directory: str | None) -> None:
    """Hook torch now if it is imported, else when it is."""
    global _waiting
    chosen = {"run": run, "rank": None if rank is None else str(rank), "dir": directory}
    if _torch.loaded():
        _patch.install().choose(**chosen)
    elif _waiting is None:
        _waiting = _Finder(chosen)
        sys.meta_path.insert(0, _waiting)
    else:
        _waiting.chosen.update({key: value for key, value in chosen.items() if value})


def withdraw() -> None:
    """Take the hooks out, or stop waiting for torch."""
    global _waiting
    if _waiting is not None:
        _waiting.remove()
        _waiting = None
    _patch.uninstall()


class _Finder:
    """Waits on `sys.meta_path` for torch's DataLoader module, and then goes away."""

    def __init__(self, chosen: dict[str, str | None]) -> None:
        self.chosen = chosen
        self._searching = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find the module, and be told when it has been executed."""
        if name != _torch.DATALOADER or self._searching:
            return None
        self._searching = True
        try:
            spec = find_spec(name)
        finally:
            self._searching = False
        try:
            if spec is not None and spec.loader is not None:
                _run_after(spec.loader, self._imported)
        except Exception:
            _guard.swallow()
        return spec

    def remove(self) -> None:
        """Stop waiting."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _imported(self) -> None:
        global _waiting
        try:
            self.remove()
            if _waiting is self:
                _waiting = None
                _patch.install().choose(**self.chosen)
        except Exception:
            _guard.swallow()


def _run_after(loader: Any, callback: Any) -> None:
    """Call `callback` when this one loader instance has executed its module."""
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module  # the instance is as it was again
        execute(module)
        callback()

    loader.exec_module = exec_module
