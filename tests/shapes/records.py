"""What a case did, as plain data that can be compared: values, exceptions, warnings, leftovers."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
import random
import re
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

LARGE = 64
"""Arrays with more elements are compared by a digest."""

SOON_SECONDS = 5.0

_OWN_FRAME = re.compile(
    r'^(?P<indent> *)File "[^"\n]*/dlmon/shim/[^"\n]*", line \d+, in .*\n(?:(?P=indent)  .*\n)*',
    re.MULTILINE,
)
_CHANGING = (
    (re.compile(r"0x[0-9a-f]{6,}"), "0x…"),
    (re.compile(r"\bpids?(\(s\))?:? \d+(, \d+)*"), "pid …"),
    (re.compile(r"torch_\d+_\d+(_\d+)?"), "torch_…"),
    (re.compile(r"(/[\w.-]+)+/job\d+\.py"), "job.py"),
    (re.compile(r"USDT:\S+ \S+ \d+:\d+"), "USDT"),  # torch's profiler
    (re.compile(r"line \d+, in _next_data"), "in _next_data"),  # two, by what has come already
)
_PLAIN = (type(None), bool, int, float, str)


def plain(value: Any) -> Any:
    """Return `value` as JSON that tells its type, contents and order."""
    if isinstance(value, _PLAIN) and type(value) in _PLAIN:
        return value
    kind = type(value).__name__
    if isinstance(value, torch.Tensor | np.ndarray):
        return [kind, *_array(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return [kind, [[f.name, plain(getattr(value, f.name))] for f in fields]]
    if isinstance(value, Mapping):
        return [kind, [[plain(key), plain(item)] for key, item in value.items()]]
    if isinstance(value, (set, frozenset)):
        return [kind, sorted((plain(item) for item in value), key=repr)]
    if isinstance(value, (list, tuple)):
        return [kind, *(plain(item) for item in value)]
    if isinstance(value, BaseException):
        return told(value)
    return [kind, steady(repr(value))]


def _array(value: Any) -> list[Any]:
    described = [str(value.dtype), list(value.shape)]
    if isinstance(value, np.ndarray):
        return [*described, _elements(value)]
    shared = value.is_shared()
    return [*described, shared, _elements(value.detach().to_dense().numpy())]


def _elements(array: np.ndarray[Any, Any]) -> Any:
    if array.dtype.kind in "Oc":  # objects and complex numbers are not JSON's
        return steady(repr(array.tolist()))
    if array.size <= LARGE:
        return array.tolist()
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def told(error: BaseException) -> dict[str, Any]:
    """Return what a user sees of an exception, its traceback without dlmon's own frames."""
    shown = "".join(traceback.format_exception(error))
    return {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "args": steady(repr(error.args)),
        "text": steady(shown),
    }


def own_frames(error: BaseException) -> int:
    """Return how many frames of dlmon's a user sees in an exception's text."""
    return len(_OWN_FRAME.findall("".join(traceback.format_exception(error))))


def steady(text: str) -> str:
    """Return text without what differs between any two runs, and without dlmon's own frames.

    In a repr() a newline is two characters: there frames are cut as well.
    """
    if "\\n" in text and "\n" not in text:
        return steady(text.replace("\\n", "\n")).replace("\n", "\\n")
    text = _OWN_FRAME.sub("", text if text.endswith("\n") else f"{text}\n")
    for pattern, instead in _CHANGING:
        text = pattern.sub(instead, text)
    return text.rstrip("\n")


def warned(caught: list[warnings.WarningMessage]) -> list[list[Any]]:
    """Return each warning's category, text and the place it is blamed on."""
    return [
        [w.category.__name__, steady(str(w.message)), f"{Path(w.filename).name}:{w.lineno}"]
        for w in caught
    ]


def seed() -> None:
    """Put every random number generator into a known state."""
    torch.manual_seed(20)
    random.seed(20)
    np.random.seed(20)


def randomness() -> str:
    """Return a digest of the state of every random number generator."""
    numpys = [np.asarray(part).tobytes() for part in np.random.get_state(legacy=True)]
    state = (torch.get_rng_state().numpy().tobytes(), random.getstate(), numpys)
    return hashlib.sha256(repr(state).encode()).hexdigest()[:16]


def leftovers() -> dict[str, Any]:
    """Return what is still there once nothing should be: threads, children, open files."""
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":  # of a queue that was closed: it is about to end
            thread.join(timeout=SOON_SECONDS)
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "children": sorted(_children()),
        "files": dict(sorted(_files().items())),
    }


def _children() -> list[str]:
    """Return the names of living child processes."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        try:
            pids = (task / "children").read_text().split()
        except OSError:  # the thread has ended
            continue
        for pid in pids:
            try:
                name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            except OSError:
                continue
            if rest.split()[0] != "Z":
                found.append(name.partition("(")[2])
    return found


def _files() -> Counter[str]:
    """Return how many descriptors of which kind are open, without those of segments."""
    segments = os.environ.get("DLMON_DIR", "none")
    kinds: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the listing's own
            continue
        if not link.startswith(segments):
            kinds[re.sub(r"pym-.*|\d+", "…", link)] += 1
    return kinds
