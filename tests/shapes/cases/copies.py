"""Loaders are copied and pickled with nothing of dlmon in them; iterators refuse, as always."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch

from tests.shapes.datasets import KINDS, loader_of, loading
from tests.shapes.job import expect, named
from tests.shapes.records import told
from tests.shapes.table import case, each, possible


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


WAYS: list[Callable[[Any], Any]] = [copy.copy, copy.deepcopy, pickled, saved]


@case(
    each(way=WAYS, workers=[0, 2], kind=list(KINDS), iterated=[False, True]),
    counted=True,
    slow=lambda kind, iterated, **_: kind == "many" or not iterated,
)
def a_loaders_copy(way: Callable[[Any], Any], workers: int, kind: str, iterated: bool) -> object:
    loader = loading(KINDS[kind](), num_workers=workers, batch_size=5)
    loader = named(loader, "original")
    if iterated:
        list(loader)
    other = named(way(loader), "copy")
    assert other is not loader
    batches = len(list(other))
    exits = {"normal": workers} if workers else {}
    expect("copy", batches=batches, samples=23, epochs=1, starts=workers, exits=exits)
    return type(other).__name__, vars(other), batches


@case(each(way=WAYS, workers=[0, 1], persistent=[False, True], begun=[False, True], where=possible))
def an_iterators_copy(
    way: Callable[[Any], Any], workers: int, persistent: bool, begun: bool
) -> object:
    loader = loader_of(6, num_workers=workers, persistent_workers=persistent)
    iterator = iter(loader)
    seen: list[object] = [next(iterator)] if begun else []
    try:
        seen.append(sorted(vars(way(iterator))))
    except (NotImplementedError, TypeError) as error:
        seen.append(told(error))
    return seen, list(iterator)


@case(each(way=WAYS, workers=[1]))
def a_persistent_loaders_copy(way: Callable[[Any], Any], workers: int) -> object:
    """Its iterator cannot be copied; `copy.copy` shares it."""
    loader = loader_of(4, num_workers=workers, persistent_workers=True)
    first = list(loader)
    try:
        other = way(loader)
    except NotImplementedError as error:
        return first, told(error), list(loader)
    return first, other._iterator is loader._iterator, list(other), list(loader)


@case(each(workers=[0, 1]))
def the_bytes_of_a_pickle(workers: int) -> object:
    loader = loader_of(4, num_workers=workers)
    before = pickle.dumps(loader)
    list(loader)
    return pickle.dumps(loader) == before, len(before), before.count(b"dlmon")


@case(each(workers=[0, 1]))
def a_copy_in_the_middle(workers: int) -> object:
    loader = loader_of(6, num_workers=workers)
    seen = []
    for number, batch in enumerate(loader):
        seen.append(batch)
        if number == 2:
            seen += list(copy.deepcopy(loader))
    return seen


@case(each(workers=[0, 1]))
def a_state_set_on_another(workers: int) -> object:
    one, other = loader_of(3, num_workers=workers), loader_of(5)
    other.__dict__.update(one.__dict__)
    return list(other), list(one)


@case()
def a_loader_sent_to_a_process() -> object:
    context = torch.multiprocessing.get_context("forkserver")
    with context.Pool(1) as pool:
        return pool.map(list, [loader_of(4), loader_of(3, batch_size=2)])
