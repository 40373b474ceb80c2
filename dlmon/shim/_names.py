"""What a loader is called: as its user said, else after the code that built it.

Runs in: rank. On failure: the name falls back to "loader".

A name is used again when it is free: only loaders that iterate at the same time get #2, #3 and so
on, because frameworks build a loader anew for every evaluation and keep the old one. Where a place
evidently builds several, a comprehension or `loaders[key] = DataLoader(…)`, all of its loaders that
live have names of their own, numbered as they were built, whichever is iterated first.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import weakref
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

from dlmon.shim import _site

MAX_LENGTH = 100
FALLBACK = "loader"
MOST_CALLERS = 4
"""Functions that return a loader, one to the other, before the place itself is the name."""

_OURS = ("torch", "torchdata", "dlmon")
_LIBRARY = re.compile(r"/(site|dist)-packages/")
_TELLING = re.compile(
    r"(?<![a-z])(train|val|valid|validation|eval|test|predict)_?(data_?)?loaders?$"
)

Names = dict[int, "tuple[weakref.ref[Any], str]"]
"""By id() of a loader, which need not be hashable, with a reference that tells if it still is."""

_given: Names = {}
_built: Names = {}
_assigned: Names = {}
_inherited: Names = {}  # loaders whose name a library's own over the same dataset has now
_places: dict[str, tuple[object, ...]] = {}  # which place of the code has a name
_collecting: set[str] = set()  # names of places that build several loaders to be kept


def give(loader: Any, name: str) -> None:
    """Call `loader` `name` from now on."""
    _remember(_given, loader, clean(name))
    _assigned.pop(id(loader), None)


def built(loader: Any, dataset: Any) -> None:
    """Remember where `loader` is being built; called from within its `__init__`."""
    if _recall(_built, loader) is None:
        _remember(_built, loader, _derive(_builder(), dataset))


def unique(loader: Any, iterating: Collection[str]) -> str:
    """Return the name of a loader that begins to iterate.

    Args:
        loader: The loader.
        iterating: Names of other loaders that iterate at this moment.
    """
    given = _recall(_given, loader)
    if given is None and _recall(_built, loader) is None:
        # Built before instrument(), or a copy: after the place where it is first iterated.
        frame = _user_frame()
        _remember(_built, loader, _place(_outside(frame)[0] if frame is not None else None))
    own = _recall(_assigned, loader)
    if own is None or own in iterating:
        base = given or _recall(_built, loader) or FALLBACK
        taken = set(iterating)
        if given is None and base in _collecting:
            taken |= _number(base)
            own = _recall(_assigned, loader)
        if own is None or own in iterating:
            own = _free(base, taken)
            _remember(_assigned, loader, own)
    return own


def user_module() -> str:
    """Return the module of the nearest caller that is neither torch's nor ours."""
    frame = _user_frame()
    return str(frame.f_globals.get("__name__", "")) if frame is not None else ""


def clean(name: object) -> str:
    """Return `name` printable, without surrounding blanks, at most MAX_LENGTH characters long."""
    text = "".join(c if c.isprintable() else " " for c in str(name)).strip()
    return text[:MAX_LENGTH] or FALLBACK


# ── tables ──────────────────────────────────────────────────────────────────────────────────────


def _recall(names: Names, loader: Any) -> str | None:
    entry = names.get(id(loader))
    return entry[1] if entry is not None and entry[0]() is loader else None


def _remember(names: Names, loader: Any, name: str) -> None:
    key = id(loader)

    def forget(gone: weakref.ref[Any]) -> None:
        if key in names and names[key][0] is gone:
            del names[key]

    names[key] = (weakref.ref(loader, forget), name)


def _living(names: Names, name: str | None = None) -> Iterator[Any]:
    """Find the living loaders in a table, in the order of building, all or those of one name."""
    for reference, its in list(names.values()):
        if name in (None, its) and (loader := reference()) is not None:
            yield loader


def _number(base: str) -> set[str]:
    """Name every living loader of one place that has no name yet; return the names of all."""
    loaders = [one for one in _living(_built, base) if _recall(_given, one) is None]
    known = {name for one in loaders if (name := _recall(_assigned, one)) is not None}
    free = (name for name in _numbered(base) if name not in known)
    for one in loaders:
        if _recall(_assigned, one) is None:
            _remember(_assigned, one, next(free))
    return {name for one in loaders if (name := _recall(_assigned, one)) is not None}


def _free(base: str, taken: Collection[str]) -> str:
    return next(name for name in _numbered(base) if name not in taken)


def _numbered(base: str) -> Iterator[str]:
    return itertools.chain([base], (f"{base}#{number}" for number in itertools.count(2)))


# ── places ──────────────────────────────────────────────────────────────────────────────────────


def _user_frame() -> FrameType | None:
    """Return the nearest frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] not in _OURS:
            return frame
        frame = frame.f_back
    return None


def _builder() -> FrameType | None:
    """Return the frame that builds a loader.

    A subclass that calls super().__init__() does not, nor does what wraps `DataLoader.__init__`.
    """
    frame = _user_frame()
    while frame is not None and (frame.f_code.co_name == "__init__" or _of_library(frame)):
        if not _site.target(frame.f_code, frame.f_lasti).dropped:
            break
        frame = frame.f_back
    return frame


def _derive(frame: FrameType | None, dataset: Any) -> str:
    """Return a name for a loader over `dataset` that `frame` builds."""
    if frame is None:
        return FALLBACK
    if not _of_library(frame):
        return _assigned_name(frame) or _place(frame)
    outer, functions = _outside(frame)
    users = _assigned_name(outer)
    if users is not None and not functions:
        return users  # the user builds an object of a library's class
    if (inherited := _inherit(dataset)) is not None:
        return inherited
    for function in functions:
        if told := _TELLING.search(function):
            return clean(told[0])
    return users or _assigned_name(frame) or _place(outer)


def _outside(frame: FrameType) -> tuple[FrameType, list[str]]:
    """Return the nearest frame that is of no installed library, the outermost if all are.

    And the functions of libraries on the way there, constructors left out.
    """
    functions = []
    while frame.f_back is not None and _of_library(frame):
        if frame.f_code.co_name != "__init__":
            functions.append(frame.f_code.co_name)
        frame = frame.f_back
    return frame, functions


def _inherit(dataset: Any) -> str | None:
    """Return the name of a loader over this dataset, which the one being built stands in for.

    Accelerate and Lightning make a loader of their own out of the user's.
    """
    for loader in _living(_built):
        its = vars(loader).get("dataset") if hasattr(loader, "__dict__") else None
        if its is dataset and dataset is not None and _recall(_inherited, loader) is None:
            _remember(_inherited, loader, "")
            return _recall(_given, loader) or _recall(_built, loader)
    return None


def _assigned_name(frame: FrameType) -> str | None:
    """Return the variable, attribute or key that what `frame` is calling is assigned to."""
    item, collected = None, False
    caller: FrameType | None = frame
    for _ in range(MOST_CALLERS):
        if caller is None:
            return None
        code = caller.f_code
        goes = _site.target(code, caller.f_lasti, item)
        if goes.name is not None:
            name = _distinct(caller, goes.name)
            if name is not None and (collected or goes.collected):
                _collecting.add(name)
            return name
        if not goes.returned:
            return None
        item, collected = goes.item, collected or goes.collected
        outer = caller.f_back
        if outer is not None and _of_library(outer) and not _of_library(caller):
            hook = code.co_name if item is None else f"{code.co_name}[{item}]"
            return _distinct(caller, hook)  # such as Lightning's train_dataloader
        caller = outer
    return None


def _distinct(frame: FrameType, name: str) -> str | None:
    """Return `name`, with its function if another one has a variable so called."""
    scope = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # from 3.11 on
    within = scope.removesuffix(".__init__").replace(".<locals>", "")
    where = (scope,) if scope == "<module>" else (_file(frame), scope)
    return next(
        (
            known
            for known in (clean(name), clean(f"{within}.{name}"))
            if _places.setdefault(known, where) == where
        ),
        None,
    )


def _place(frame: FrameType | None) -> str:
    """Return file and line of the call in `frame`, with the column for a second call there."""
    if frame is None:
        return FALLBACK
    code, offset = frame.f_code, frame.f_lasti
    line = f"{os.path.basename(_file(frame))}:{frame.f_lineno}"
    where = (_file(frame), frame.f_lineno, offset)
    if _places.setdefault(clean(line), where) == where:
        return clean(line)
    positions = getattr(code, "co_positions", None)  # from 3.11 on
    column = next(itertools.islice(positions(), offset // 2, None))[2] if positions else None
    return clean(f"{line}:{offset if column is None else column}")


def _file(frame: FrameType) -> str:
    """Return where code is: the file of a notebook's cell is another each time it is run."""
    module = frame.f_globals
    return frame.f_code.co_filename if "__file__" in module else str(module.get("__name__", ""))


def _of_library(frame: FrameType) -> bool:
    return _LIBRARY.search(frame.f_code.co_filename) is not None
