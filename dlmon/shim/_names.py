"""What a loader is called: as its user said, else after the code that built it.

Runs in: rank. On failure: the name falls back to "loader".
"""

from __future__ import annotations

import os
import sys
import weakref
from types import FrameType
from typing import Any

MAX_LENGTH = 100
FALLBACK = "loader"
_OURS = ("torch", "torchdata", "dlmon")
_STORES = ("STORE_FAST", "STORE_NAME", "STORE_GLOBAL", "STORE_DEREF")

_given: dict[int, tuple[weakref.ref[Any], str]] = {}
_built: dict[int, tuple[weakref.ref[Any], str]] = {}


def give(loader: Any, name: str) -> None:
    """Call `loader` `name` from now on."""
    _remember(_given, loader, clean(name))


def built(loader: Any) -> None:
    """Remember where `loader` is being built; called from within its `__init__`."""
    if id(loader) not in _built or _built[id(loader)][0]() is not loader:
        _remember(_built, loader, _site_name(_user_frame()))


def of(loader: Any) -> str:
    """Return the name of `loader`, without regard to others of the same name."""
    for names in (_given, _built):
        entry = names.get(id(loader))
        if entry is not None and entry[0]() is loader:
            return entry[1]
    name = _place(_user_frame())  # built before instrument(): where it is first iterated
    _remember(_built, loader, name)
    return name


def clean(name: object) -> str:
    """Return `name` printable, without surrounding blanks, at most MAX_LENGTH characters long."""
    text = "".join(c if c.isprintable() else " " for c in str(name)).strip()
    return text[:MAX_LENGTH] or FALLBACK


def _remember(names: dict[int, tuple[weakref.ref[Any], str]], loader: Any, name: str) -> None:
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
        if module.partition(".")[0] not in _OURS or module.startswith("dlmon.demo"):
            return frame
        frame = frame.f_back
    return None


def _site_name(frame: FrameType | None) -> str:
    """Return what the call in `frame` is assigned to, else where it is."""
    import dis  # not at import: a job that builds no loader needs none

    if frame is None:
        return FALLBACK
    following = (i for i in dis.get_instructions(frame.f_code) if i.offset > frame.f_lasti)
    instruction = next(following, None)
    if instruction is not None and instruction.opname in ("STORE_ATTR", *_STORES):
        return clean(instruction.argval)
    if instruction is not None and instruction.opname.startswith("LOAD_"):
        store = next(following, None)  # self.x = DataLoader(...): the object, then STORE_ATTR
        if store is not None and store.opname == "STORE_ATTR":
            return clean(store.argval)
    return _place(frame)


def _place(frame: FrameType | None) -> str:
    if frame is None:
        return FALLBACK
    return clean(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
