"""What a loader is called: as its user said, else after the code that built it.

Runs in: rank. On failure: the name falls back to "loader".
"""

from __future__ import annotations

import functools
import os
import sys
import weakref
from types import CodeType, FrameType
from typing import Any

MAX_LENGTH = 100
FALLBACK = "loader"
_OURS = ("torch", "torchdata", "dlmon")
_STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF")

Names = dict[int, "tuple[weakref.ref[Any], str]"]
"""By id() of a loader, which need not be hashable, with a reference that tells if it still is."""

_given: Names = {}
_built: Names = {}
_assigned: Names = {}


def give(loader: Any, name: str) -> None:
    """Call `loader` `name` from now on."""
    _remember(_given, loader, clean(name))
    _assigned.pop(id(loader), None)


def built(loader: Any) -> None:
    """Remember where `loader` is being built; called from within its `__init__`."""
    if _recall(_built, loader) is None:
        _remember(_built, loader, _site_name(_user_frame()))


def of(loader: Any) -> str:
    """Return the name of `loader`, without regard to others of the same name."""
    name = _recall(_given, loader) or _recall(_built, loader)
    if name is None:  # built before instrument(): where it is first iterated
        name = _place(_user_frame())
        _remember(_built, loader, name)
    return name


def assigned(loader: Any) -> str | None:
    """Return the name `loader` was given among others of its name, None if it was not yet."""
    return _recall(_assigned, loader)


def assign(loader: Any, name: str) -> None:
    """Have `loader` keep this name, so that two of one place do not exchange theirs."""
    if assigned(loader) != name:
        _remember(_assigned, loader, name)


def clean(name: object) -> str:
    """Return `name` printable, without surrounding blanks, at most MAX_LENGTH characters long."""
    text = "".join(c if c.isprintable() else " " for c in str(name)).strip()
    return text[:MAX_LENGTH] or FALLBACK


def _recall(names: Names, loader: Any) -> str | None:
    entry = names.get(id(loader))
    return entry[1] if entry is not None and entry[0]() is loader else None


def _remember(names: Names, loader: Any, name: str) -> None:
    key = id(loader)

    def forget(gone: weakref.ref[Any]) -> None:
        if key in names and names[key][0] is gone:
            del names[key]

    names[key] = (weakref.ref(loader, forget), name)


def _user_frame() -> FrameType | None:
    """Return the nearest frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _OURS:
            return frame
        frame = frame.f_back
    return None


def _site_name(frame: FrameType | None, depth: int = 4) -> str:
    """Return what the call in `frame` is assigned to, else where it is."""
    if frame is None:
        return FALLBACK
    first, second = _following(frame.f_code, frame.f_lasti)
    in_init = frame.f_code.co_name == "__init__" and first[0] == "POP_TOP"
    if depth and (in_init or first[0] == "RETURN_VALUE"):
        return _site_name(frame.f_back, depth - 1)  # a function that builds loaders, a subclass
    if first[0] in _STORES:
        return clean(first[1])
    if first[0].startswith("LOAD_") and second[0] == "STORE_ATTR":  # self.x = DataLoader(…)
        return clean(second[1])
    return _place(frame)


@functools.lru_cache(maxsize=256)
def _following(code: CodeType, offset: int) -> tuple[tuple[str, object], tuple[str, object]]:
    """Return (name, argument) of the two instructions after the one at `offset`."""
    import dis  # not at import: a job that builds no loader needs none

    after = [i for i in dis.get_instructions(code) if i.offset > offset][:2]
    none = ("", None)
    first, second, *_ = [*((i.opname, i.argval) for i in after), none, none]
    return first, second


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return FALLBACK
    return clean(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
