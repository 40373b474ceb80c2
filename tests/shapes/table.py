"""The table of cases, and how to add to it.

A case is a function in a module of `tests/shapes/cases`. It uses DataLoaders in some way and
returns what came of it. It runs in three processes: bare, with dlmon, and with dlmon that swallows
its own errors as in production. Whatever it returns, raises, warns, prints and leaves behind must
be the same in all of them:

    @case(each(workers=[0, 2], persistent=[False, True], where=possible), counted=True)
    def first_batches(workers: int, persistent: bool) -> object:
        loader = named(loader_of(23, num_workers=workers, persistent_workers=persistent), "train")
        got = [batch for batch, _ in zip(loader, range(3))]
        expect("train", batches=3, epochs=1, samples=None, starts=workers, exits=None)
        return got

`named`, `expect` and `look` are in `tests.shapes.job`: `counted` cases also say what dlmon must
have counted by their end. A new module is listed in MODULES.
"""

from __future__ import annotations

import importlib
import itertools
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MODULES = (
    "delivery",
    "datasets_of_all_kinds",
    "sampling",
    "samples",
    "randomness",
    "building",
    "surroundings",
    "starting",
    "laziness",
    "identity",
    "copies",
    "warned",
    "lifetimes",
    "several",
    "failures",
    "failing_code",
    "dying_workers",
    "queues",
    "pinning",
    "threads",
    "forks",
    "subclasses",
    "switching",
    "whole_jobs",
)

Parameters = Mapping[str, Any]
Function = Callable[..., object]

DEADLINE_SECONDS = 60.0

FEW = 4
"""Variants of a case that are all run by `make test`."""


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        id: Module, function and parameters.
        function: What is run.
        parameters: Its keyword arguments.
        counted: It says, by `expect`, what dlmon must count.
        noisy: What comes on standard error is another thing every time, without dlmon too.
        slow: Left to `make full`.
        seldom: Left out where CI runs, which has an hour for everything.
        deadline: Seconds after which it hangs.
    """

    id: str
    function: Function
    parameters: Parameters
    counted: bool
    noisy: bool
    slow: bool
    seldom: bool
    deadline: float


_table: dict[str, Case] = {}


def case(
    variants: Iterable[Parameters] = ({},),
    *,
    counted: bool = False,
    noisy: bool = False,
    slow: Callable[..., bool] | bool = False,
    deadline: float = DEADLINE_SECONDS,
) -> Callable[[Function], Function]:
    """Add a function to the table, once for each of `variants`.

    Args:
        variants: Keyword arguments, see `each`.
        counted: It calls `expect`.
        noisy: Its standard error is not compared.
        slow: Whether it is left to `make full`, or what says so of a variant; so are, of more than
            `FEW` variants, seven of eight, and CI leaves four of these out.
        deadline: Seconds it may take.
    """
    variants = list(variants)

    def is_slow(parameters: Parameters) -> bool:
        return slow(**parameters) if callable(slow) else slow

    def add(function: Function) -> Function:
        module = function.__module__.rpartition(".")[2]
        many = len(variants) - sum(map(is_slow, variants)) > FEW
        for parameters in variants:
            words = ",".join(_words(parameters))
            name = f"{module}.{function.__name__}" + (f"({words})" if words else "")
            # Not in turn: that would leave out one value of the last parameter altogether.
            turn = zlib.crc32(name.encode()) % 8 if many and not is_slow(parameters) else 0
            late, seldom = is_slow(parameters) or turn > 0, turn > 3
            assert name not in _table, f"two cases are called {name}"
            _table[name] = Case(name, function, parameters, counted, noisy, late, seldom, deadline)
        return function

    return add


def each(
    *, where: Callable[..., bool] = lambda **_: True, **axes: Sequence[Any]
) -> list[Parameters]:
    """Return every combination of the values of `axes`, of those for which `where` holds."""
    combinations = itertools.product(*axes.values())
    found = [dict(zip(axes, values, strict=True)) for values in combinations]
    return [parameters for parameters in found if where(**parameters)]


def possible(*, workers: int, persistent: bool, **_: object) -> bool:
    """Say if torch allows the combination: without workers there is nothing to persist."""
    return workers > 0 or not persistent


def table() -> Mapping[str, Case]:
    """Return all cases by id."""
    for module in MODULES:
        importlib.import_module(f"tests.shapes.cases.{module}")
    return _table


def _words(parameters: Parameters) -> Iterable[str]:
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            yield from _words(value)
        else:
            yield f"{name}={getattr(value, '__name__', value)}"
