"""What torch's classes are, and what can be asked of them, is as it was."""

from __future__ import annotations

import inspect
import pickle
import typing
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, _utils, dataloader

from tests.shapes.datasets import KINDS, Numbers, loader_of, loading
from tests.shapes.records import steady
from tests.shapes.table import case, each, possible

_Base = dataloader._BaseDataLoaderIter
_Single = dataloader._SingleProcessDataLoaderIter
_Multiple = dataloader._MultiProcessingDataLoaderIter
CLASSES: list[type[Any]] = [
    DataLoader,
    _Base,
    _Single,
    _Multiple,
    _utils.fetch._MapDatasetFetcher,
    _utils.fetch._IterableDatasetFetcher,
]


@case(each(workers=[0, 1], persistent=[False, True], kind=list(KINDS), where=possible))
def an_iterators_class(workers: int, persistent: bool, kind: str) -> object:
    options = {"num_workers": workers, "persistent_workers": persistent}
    loader = loading(KINDS[kind](), **options)
    iterator = iter(loader)
    return {
        "class": [type(iterator) is c for c in (_Single, _Multiple)],
        "isinstance": [isinstance(iterator, c) for c in (_Base, _Single, _Multiple, Iterator)],
        "name": [type(iterator).__name__, type(iterator).__qualname__, type(iterator).__module__],
        "mro": [c.__name__ for c in type(iterator).__mro__],
        "itself": iter(iterator) is iterator,
        "kept": loader._iterator is iterator,
        "dir": sorted(dir(iterator)),
        "vars": sorted(vars(iterator)),
        "repr": steady(repr(iterator)),
        "equal": (iterator == iterator, hash(iterator) == hash(iterator)),  # noqa: PLR0124
    }


@case(each(workers=[0, 2], iterated=[False, True]))
def a_loaders_attributes(workers: int, iterated: bool) -> object:
    loader = loader_of(num_workers=workers)
    if iterated:
        list(loader)
    loader.collate_fn = loader.collate_fn
    return {**vars(loader), "dir": sorted(dir(loader)), "dataset": vars(loader.dataset)}


@case(each(number=range(len(CLASSES))))
def a_class(number: int) -> object:
    cls = CLASSES[number]
    methods = {name: value for name, value in vars(cls).items() if inspect.isroutine(value)}
    return {
        "members": sorted(vars(cls)),
        "names": [(cls.__name__, cls.__qualname__, cls.__module__, cls.__doc__)],
        "bases": [base.__name__ for base in cls.__bases__],
        "methods": {n: _method(getattr(cls, n)) for n, m in methods.items() if n != "__new__"},
        "annotations": sorted(getattr(cls, "__annotations__", {})),
    }


def _method(method: Any) -> object:
    try:
        signature = str(inspect.signature(method))
    except ValueError:
        return "builtin"
    return {
        "signature": signature,
        "named": [
            getattr(method, name, None) for name in ("__name__", "__qualname__", "__module__")
        ],
        "doc": method.__doc__,
        "function": inspect.isfunction(method),
        "async": inspect.iscoroutinefunction(method),
    }


@case()
def what_frameworks_ask_of_the_constructor() -> object:
    """Lightning and others find out what a loader was made with, to make it anew."""
    specification = inspect.getfullargspec(DataLoader.__init__)
    return {
        "signature": str(inspect.signature(DataLoader)),
        "bound": str(inspect.signature(loader_of().__init__)),  # type: ignore[misc]
        "full": [specification.args, specification.kwonlyargs, specification.varargs],
        "defaults": repr([specification.defaults, specification.kwonlydefaults]),
        "hints": sorted(typing.get_type_hints(DataLoader.__init__)),
        "source": inspect.getsource(DataLoader.__init__).partition("\n")[0],
        "unwrapped": inspect.unwrap(DataLoader.__init__).__code__.co_name,
    }


@case()
def functions_pickle_by_their_name() -> object:
    functions = [DataLoader.__init__, DataLoader.__iter__, _Base.__next__, _Base.__init__]
    return [pickle.loads(pickle.dumps(f)) is f for f in functions]


@case()
def the_worker_loop() -> object:
    loop: Any = _utils.worker._worker_loop
    return {
        "callable": callable(loop),
        "signature": str(inspect.signature(loop)),
        "name": getattr(loop, "__name__", None),
        "qualified": getattr(loop, "__qualname__", None),
        "module": getattr(loop, "__module__", None),
    }


@case()
def the_constructors_errors() -> object:
    wrong: list[dict[str, Any]] = [
        {"num_workers": -1},
        {"timeout": -1},
        {"prefetch_factor": 2},
        {"num_workers": 1, "prefetch_factor": -1},
        {"persistent_workers": True},
        {"batch_size": None, "drop_last": True},
        {"batch_size": 0},
        {"shuffle": True, "sampler": [1]},
        {"batch_sampler": [[1]], "batch_size": 2},
        {"num_workers": 1, "multiprocessing_context": "none"},
        {"num_workers": 1, "multiprocessing_context": 3},
        {"multiprocessing_context": "fork"},
        {"unknown": 1},
    ]
    found: list[object] = []
    for options in wrong:
        try:
            loader_of(**options)
        except (TypeError, ValueError, AssertionError) as error:
            found.append(error)
    try:
        DataLoader()  # type: ignore[call-arg]
    except TypeError as error:
        found.append(error)
    return found


class Sized(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@case()
def the_streams_errors() -> object:
    found: list[object] = []
    for options in ({"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}):
        try:
            DataLoader(Sized(), **options)
        except ValueError as error:
            found.append(error)
    return found


@case(each(name=["batch_size", "batch_sampler", "sampler", "drop_last", "dataset"]))
def attributes_that_are_fixed(name: str) -> object:
    loader = loader_of()
    try:
        setattr(loader, name, None)
    except ValueError as error:
        return error
    return "set"


class Typed(DataLoader[torch.Tensor]):
    """A generic one with its type given."""


@case()
def generic_classes() -> object:
    return [
        str(DataLoader[int]),
        Typed.__orig_bases__,  # type: ignore[attr-defined]
        [type(loader).__name__ for loader in (Typed(Numbers()), DataLoader[Any](Numbers()))],
    ]
