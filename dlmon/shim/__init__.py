"""Inside the job: patch DataLoader iterators so that they leave in shared memory what they do.

The public functions of dlmon. None of them raises into the job, starts a thread or needs an agent.
"""

from __future__ import annotations

import os
import sys
from typing import TypeVar

from dlmon.shim import _guard

_Loader = TypeVar("_Loader")


def instrument(
    *, run: str | None = None, rank: str | int | None = None, dir: str | None = None
) -> None:
    """Observe every DataLoader iterator that this process makes from now on.

    Works before or after `import torch`; a second call changes nothing. Where it cannot observe
    (not Linux, no usable directory) it says so once and the job runs on. `DLMON_DISABLE=1` turns it
    off.

    Runs in: rank. On failure: the job is not affected.

    Args:
        run: Names the training launch; default `DLMON_RUN`, else what the launcher says.
        rank: The global rank; default `DLMON_RANK`, else what the launcher says, else 0.
        dir: Where segments are kept (tmpfs); default `DLMON_DIR`, else /run/dlmon where it is,
            else /dev/shm/dlmon-<uid>.
    """
    try:
        if os.environ.get("DLMON_DISABLE") == "1":
            return
        if not sys.platform.startswith("linux"):
            _guard.warn_once(f"DataLoaders are observed on Linux only, this is {sys.platform}")
            return
        from dlmon.shim import _install

        _install.request(run, rank, dir)
    except Exception:
        _guard.swallow()


def uninstrument() -> None:
    """Take every hook out again; iterators that are alive go on working, unobserved.

    Runs in: rank. On failure: the hooks stay and pass through.
    """
    try:
        from dlmon.shim import _install

        _install.withdraw()
    except Exception:
        _guard.swallow()


def name(loader: _Loader, name: str) -> _Loader:
    """Give a loader the name it has in metrics and views.

    Args:
        loader: A DataLoader; it is not changed.
        name: Printable, at most 100 characters; cleaned and cut if it is not.

    Returns:
        The same loader, so that a call can be wrapped around where it is built.
    """
    try:
        from dlmon.shim import _names, _patch

        _names.give(loader, name)
        if (session := _patch.session()) is not None:
            session.rename(loader)
    except Exception:
        _guard.swallow()
    return loader
