"""torch's names that may be hooked, as they are now, and other libraries that patch them too."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import dlmon

MODULES = (
    "torch.utils.data.dataloader",
    "torch.utils.data._utils.worker",
    "torch.utils.data._utils.fetch",
    "torch.utils.data._utils.pin_memory",
)

Place = tuple[str, str, str]
"""Module, class ("" for none) and name."""

PLACES: tuple[Place, ...] = (
    ("torch.utils.data.dataloader", "DataLoader", "__init__"),
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter", "__init__"),
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter", "_reset"),
    ("torch.utils.data.dataloader", "_BaseDataLoaderIter", "__next__"),
    ("torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter", "_shutdown_workers"),
    ("torch.utils.data._utils.worker", "", "_worker_loop"),
    ("torch.utils.data._utils.fetch", "_MapDatasetFetcher", "fetch"),
    ("torch.utils.data._utils.fetch", "_IterableDatasetFetcher", "fetch"),
)
"""What is hooked."""

NOT_OURS = ("__warningregistry__", "__slotnames__")
"""Left by each warning shown, and by pickling."""

DLMON = str(Path(dlmon.__file__).parent)

State = dict[tuple[Any, str], Any]


def owner(module: str, name: str) -> Any:
    """Return the class or module that has a place."""
    found = sys.modules[module]
    return getattr(found, name) if name else found


def state() -> State:
    """Return all attributes of torch's DataLoader modules and of the classes in them."""
    found: State = {}
    for module in map(sys.modules.__getitem__, MODULES):
        classes = [one for one in vars(module).values() if _is_class_of(one, module)]
        for one in (module, *classes):
            found.update({(one, name): value for name, value in vars(one).items()})
            for other in NOT_OURS:
                found.pop((one, other), None)
    return found


def _is_class_of(value: object, module: Any) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def changes(before: State) -> dict[str, Any]:
    """Return what is not now the very object that it was, by readable name."""
    now = state()
    return {
        f"{getattr(one, '__qualname__', one.__name__)}.{name}": now.get((one, name))
        for one, name in before.keys() | now.keys()
        if (one, name) not in before or now.get((one, name)) is not before[one, name]
    }


def restore(before: State) -> None:
    """Put torch's own back where another library left something."""
    for module, cls, name in PLACES:
        one = owner(module, cls)
        setattr(one, name, before[one, name])


def ours() -> list[str]:
    """Return the places where now something of dlmon's is."""
    here = [(cls or module, name, vars(owner(module, cls))[name]) for module, cls, name in PLACES]
    return [f"{where}.{name}" for where, name, now in here if _code_of(now).startswith(DLMON)]


def depth() -> int:
    """Return how many calls of dlmon's the calling code is within."""
    return sum(1 for frame in _frames(sys._getframe(1)) if _is_ours(frame))


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(DLMON)


def _code_of(function: Any) -> str:
    """Return the file with the code that a function, or an instance that is called, runs."""
    code = getattr(function, "__code__", None) or type(function).__call__.__code__
    return str(code.co_filename)


class Patch:
    """Another library's patch of one place, on top of whatever is there.

    Attributes:
        place, owner: The place, and the class or module that has it.
        inner: What was there.
        replacement: What is there now.
        calls: How often it was called, in this process.
    """

    def __init__(self, module: str, cls: str, name: str, *, wraps: bool = True) -> None:
        self.place = (module, cls, name)
        self.owner = owner(module, cls)
        self.inner: Callable[..., Any] = vars(self.owner)[name]
        self.calls = 0

        def replacement(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return self.inner(*args, **kwargs)

        # `wraps` copies the attributes of what it wraps, whatever they say of that.
        self.replacement = functools.wraps(self.inner)(replacement) if wraps else replacement
        setattr(self.owner, name, self.replacement)

    def undo(self) -> None:
        """Put back what was there, whoever has patched on top since."""
        setattr(self.owner, self.place[2], self.inner)

    def replaced(self) -> bool:
        """Return whether it was called in this process, or could only be called in another."""
        return self.calls > 0 or self.place[2] in ("_worker_loop", "fetch")


class WithoutUs:
    """What other libraries' patches would leave in each place if we were not there."""

    def __init__(self) -> None:
        self._top: dict[Place, Patch | None] = dict.fromkeys(PLACES)
        self._found: dict[Patch, Patch | None] = {}

    def patched(self, *patches: Patch) -> None:
        """Remember patches, in the order in which they were made."""
        for patch in patches:
            self._found[patch] = self._top[patch.place]
            self._top[patch.place] = patch

    def undone(self, *patches: Patch) -> None:
        """Have patches put back what they found."""
        for patch in patches:
            self._top[patch.place] = self._found.pop(patch)

    def differences(self, torch_own: State) -> list[Place]:
        """Return the places where now something else is."""
        found = []
        for place, top in self._top.items():
            one, name = owner(*place[:2]), place[2]
            expected = torch_own[one, name] if top is None else top.replacement
            if vars(one)[name] is not expected:
                found.append(place)
        return found
