"""Install the hooks as soon as torch's DataLoader is there, without importing torch.

Runs in: rank.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from dlmon.shim import _guard, _patch, _run, _torch

_waiting: _Finder | None = None


def request(run: str | None, rank: str | int | None, directory: str | None) -> None:
    """Hook torch now if it is imported, else when it is."""
    global _waiting
    if _patch.session() is not None or _waiting is not None:
        return
    chosen = (run, None if rank is None else str(rank), directory)
    if _torch.loaded():
        _patch.install(_identity(*chosen))
    else:
        _waiting = _Finder(chosen)
        sys.meta_path.insert(0, _waiting)


def withdraw() -> None:
    """Take the hooks out, or stop waiting for torch."""
    global _waiting
    if _waiting is not None:
        _waiting.remove()
        _waiting = None
    _patch.uninstall()


def _identity(run: str | None, rank: str | None, directory: str | None) -> dict[str, Any]:
    from dlmon import __version__

    env = os.environ
    pid = os.getpid()
    return {
        "run": run or _run.run(env),
        "rank": rank or _run.rank(env),
        "dir": directory or env.get("DLMON_DIR"),
        "root": f"{pid}-{_run.start_ticks(pid)}",
        **_run.facts(env, _torch.version(), __version__),
    }


class _Finder:
    """Waits on `sys.meta_path` for torch's DataLoader module, and then goes away."""

    def __init__(self, chosen: tuple[str | None, str | None, str | None]) -> None:
        self._chosen = chosen
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
        if spec is not None and spec.loader is not None:
            _run_after(spec.loader, self._imported)
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
                _patch.install(_identity(*self._chosen))
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
