"""The job that runs cases, one after another, as it is told; and what cases call in it."""

from __future__ import annotations

import faulthandler
import gc
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch.utils.data import DataLoader

from tests.shapes.records import (
    leftovers,
    own_frames,
    plain,
    randomness,
    seed,
    steady,
    told,
    warned,
)
from tests.shapes.table import Case, table

MARK = "SHAPES "
READY = "ready"

_Loader = TypeVar("_Loader", bound="DataLoader[Any]")

_answers: list[int] = []
"""The descriptor on which the driver is told things."""

_expected: dict[str, dict[str, Any]] = {}


def main() -> None:
    """Run the cases whose ids come on standard input, a line each."""
    _answers.append(os.dup(1))
    faulthandler.register(signal.SIGUSR1, file=_answers[0])  # asked when a case hangs
    # A forkserver imports it once, not every worker anew, for seconds; spawn's workers do.
    multiprocessing.set_forkserver_preload(["torch"])
    cases = table()
    if _observed():
        from dlmon.shim import _session

        _session.LOCK_SECONDS = 30  # no thread that is slow costs another its observation
    gc.freeze()  # else every look at what is left walks all that torch's import has made
    _answer({READY: _observed()})
    while line := sys.stdin.readline():
        _answer({"record": run(cases[line.strip()])})


# ── for cases ────────────────────────────────────────────────────────────────────────────────────


def named(loader: _Loader, name: str) -> _Loader:
    """Give a loader the name under which `expect` looks for it."""
    if instrumented():
        import dlmon

        dlmon.name(loader, name)
    return loader


def expect(loader: str, **counts: Any) -> None:
    """Say what dlmon must have counted for a loader in this case, when the case has ended.

    Args:
        loader: Its name.
        counts: By `driver.COUNTED`; what is left out must be zero, None may be anything.
    """
    _expected[loader] = counts


def look(**expected: Mapping[str, Any]) -> None:
    """Have dlmon's counts looked at now: by loader, what is expected as in `expect`."""
    _answer({"look": expected})
    sys.stdin.readline()


def instrumented() -> bool:
    """Return whether dlmon is at work in this process. No case's result may depend on it."""
    return "DLMON_STRICT" in os.environ


@contextmanager
def uninstrumented() -> Iterator[None]:
    """Take dlmon's hooks out for a while, if this job has them."""
    if not instrumented():
        yield
        return
    import dlmon

    dlmon.uninstrument()
    try:
        yield
    finally:
        dlmon.instrument()


# ── running them ─────────────────────────────────────────────────────────────────────────────────


def run(case: Case) -> dict[str, Any]:
    """Run a case and return all that can be seen of it."""
    _expected.clear()
    record: dict[str, Any] = {}
    before = leftovers()
    seed()
    swallowed = _swallowed()
    own = 0
    with _captured() as printed, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        process = os.getpid()
        try:
            record["returned"] = plain(case.function(**case.parameters))
        except BaseException as error:  # noqa: BLE001  # what a case raises is what it tells
            record["raised"] = told(error)
            own = own_frames(error)
        if os.getpid() != process:  # a child that a case made, and lost
            os._exit(70)
        gc.collect()
    record["random"] = randomness()
    record["warned"] = warned(caught)
    if case.noisy:
        del printed["stderr"]
    record["printed"] = printed
    after = leftovers()
    record["left"] = {key: (before[key], after[key]) for key in after if before[key] != after[key]}
    record["expected"] = dict(_expected)
    return {"same": record, "swallowed": _swallowed() - swallowed, "own_frames": own}


def _observed() -> bool:
    """Return whether dlmon's hooks are in this process."""
    patch = sys.modules.get("dlmon.shim._patch")
    return patch is not None and patch.session() is not None


def _swallowed() -> int:
    guard = sys.modules.get("dlmon.shim._guard")
    return guard.errors if guard is not None else 0


@contextmanager
def _captured() -> Iterator[dict[str, list[str]]]:
    """Collect the lines that this process and its children print, by stream, in no order."""
    printed: dict[str, list[str]] = {}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        saved = _onto({1: out.fileno(), 2: err.fileno()})
        try:
            yield printed
        finally:
            for descriptor in _onto(saved).values():
                os.close(descriptor)
            for descriptor in saved.values():
                os.close(descriptor)
            for name, file in (("stdout", out), ("stderr", err)):
                file.seek(0)
                printed[name] = sorted(steady(file.read()).splitlines())


def _onto(targets: Mapping[int, int]) -> dict[int, int]:
    """Put others in the place of descriptors (1, 2), and return duplicates of what they were."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in targets}
    for number, target in targets.items():
        os.dup2(target, number)
    return saved


def _answer(said: Mapping[str, Any]) -> None:
    """Tell the driver something, in one write, on what was standard output at first."""
    os.write(_answers[0], f"{MARK}{json.dumps(said)}\n".encode())
