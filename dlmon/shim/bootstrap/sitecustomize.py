# ruff: noqa: INP001  # found through PYTHONPATH: no part of a package
"""What `dlmon run` puts into every Python process of a job: instrument it when it imports torch.

Python's `site` imports this module at start, in launchers, ranks, spawned workers and resource
trackers alike. Which of them iterates DataLoaders cannot be known yet, so it does next to nothing:
it runs the sitecustomize that it hides, takes its own directory out of `sys.path`, and leaves a
finder that waits for `import torch`. A process that never imports torch never imports dlmon.

It has to parse on any Python 3: the job's interpreter need not be the one that dlmon is for.

Runs in: every Python process of the job. On failure: the job runs on, unobserved, and says so.
"""

import os
import sys

TYPE_CHECKING = False  # without importing typing, which most processes would pay for in vain
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

OLDEST_PYTHON = (3, 10)

_HERE = os.path.dirname(__file__)


def _chain() -> None:
    """Run the sitecustomize that this one hides, if there is one, as if this one were not there.

    Raises:
        Exception: Whatever that one raises, for `site` to report as it always does.
    """
    sys.path[:] = [entry for entry in sys.path if entry != _HERE]
    ours = sys.modules.pop(__name__)
    try:
        __import__(__name__)
    except ImportError as error:
        if error.name != __name__:
            raise
    finally:
        sys.modules.setdefault(__name__, ours)


def _attach() -> None:
    """Wait for torch, if the job may be observed."""
    # Last of all: a dlmon that the job can import by itself wins. On `sys.path`, not only in a
    # finder, because spawned workers inherit the one and not the other.
    sys.path.append(os.path.join(_HERE, "fallback"))
    if os.environ.get("DLMON_DISABLE") == "1":
        return
    if "torch" in sys.modules:
        _instrument()
    else:
        sys.meta_path.insert(0, _TorchWatcher())


def _instrument() -> None:
    try:
        if sys.version_info < OLDEST_PYTHON:
            needed = ".".join(map(str, OLDEST_PYTHON))
            _say(f"dlmon needs Python {needed} or newer, this is {sys.version.split()[0]}")
            return
        import dlmon

        dlmon.instrument()
    except Exception as error:
        _say(f"{type(error).__name__}: {error}")


def _say(reason: str) -> None:
    try:
        sys.stderr.write(f"dlmon: DataLoaders are not observed: {' '.join(reason.split())}\n")
    except Exception:  # noqa: S110  # closed, or none at all: nobody to tell
        pass


class _TorchWatcher:
    """Waits on `sys.meta_path` for the import of torch, and then goes away.

    `dlmon.uninstrument()` removes it by its mark.
    """

    dlmon_waits = True

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """Instrument this process when torch is looked for, and let the other finders find it."""
        if name != "torch":
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _instrument()
        # Asked here, because the caller iterates over the list that has just changed.
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)  # before 3.12 some have none
            spec: ModuleSpec | None = (
                find_spec(name, path, target) if find_spec is not None else None
            )
            if spec is not None:
                return spec
        return None


try:
    _chain()
finally:
    _attach()
