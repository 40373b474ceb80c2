"""Exceptions of datasets reach the loop as they would: type, text, cause, and what comes after."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.shapes.datasets import as_they_are, shut
from tests.shapes.job import expect, named
from tests.shapes.records import steady, told
from tests.shapes.table import case, each


class OddError(Exception):
    """Cannot be made anew from its message, as torch tries."""

    def __init__(self, number: int, *, reason: str) -> None:
        super().__init__(f"{number}: {reason}")
        self.number = number


class KeywordError(Exception):
    """Takes `message`, which torch gives by name."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message)
        self.message = message


class EqualError(ValueError):
    """Compares in its own way."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("do not compare me")

    __hash__ = None  # type: ignore[assignment]


def caused() -> None:
    try:
        {}["missing"]  # type: ignore[index]
    except KeyError as error:
        raise RuntimeError("a lookup failed") from error


def suppressed() -> None:
    try:
        {}["missing"]  # type: ignore[index]
    except KeyError:
        raise RuntimeError("nobody sees why") from None


def raiser(error: BaseException) -> Callable[[], None]:
    def throw() -> None:
        raise error

    throw.__name__ = type(error).__name__
    return throw


def noted() -> None:
    error = ValueError("with a note")
    if hasattr(error, "add_note"):
        error.add_note("the note")
    raise error


def in_torch() -> None:
    torch.stack([torch.zeros(1), torch.zeros(2)])


ERRORS: dict[str, Callable[[], None]] = {
    "ValueError": raiser(ValueError("a bad sample")),
    "no message": raiser(ValueError()),
    "two arguments": raiser(ValueError("one", 2)),
    "lines": raiser(ValueError("first\nsecond")),
    "KeyError": raiser(KeyError("first\nsecond")),
    "IndexError": raiser(IndexError("list index out of range")),
    "OSError": raiser(OSError(errno.ENOENT, "no such picture", "cat.jpg")),
    "EOFError": raiser(EOFError("a short file")),
    "ConnectionResetError": raiser(ConnectionResetError("a storage went away")),
    "UnicodeDecodeError": raiser(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no start")),
    "StopIteration": raiser(StopIteration("a value")),
    "StopAsyncIteration": raiser(StopAsyncIteration()),
    "GeneratorExit": raiser(GeneratorExit()),
    "MemoryError": raiser(MemoryError("no memory")),
    "AssertionError": raiser(AssertionError()),
    "NotImplementedError": raiser(NotImplementedError()),
    "TimeoutError": raiser(TimeoutError("slow")),
    "like a timeout": raiser(RuntimeError("DataLoader timed out after 3 seconds")),
    "like a death": raiser(RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")),
    "OddError": raiser(OddError(3, reason="odd")),
    "KeywordError": raiser(KeywordError("by name")),
    "EqualError": raiser(EqualError("equal")),
    "PicklingError": raiser(pickle.PicklingError("cannot")),
    "UserWarning": raiser(UserWarning("raised")),
    "cause": caused,
    "suppressed": suppressed,
    "note": noted,
    "torch": in_torch,
}


class Fails(Dataset[Any]):
    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == self.at:
            ERRORS[self.kind]()
        return index


class FailsInStream(IterableDataset[Any]):
    def __init__(self, kind: str, at: int) -> None:
        self.kind, self.at = kind, at

    def __iter__(self) -> Iterator[int]:
        for index in range(6):
            if index == self.at:
                ERRORS[self.kind]()
            yield index


class FailsWithoutEnd(FailsInStream):
    """A stream that can go on after an error, as a generator cannot."""

    def __iter__(self) -> Any:
        self.next = -1
        return self

    def __next__(self) -> int:
        self.next += 1
        if self.next == 6:
            raise StopIteration
        if self.next == self.at:
            ERRORS[self.kind]()
        return self.next


def through(loader: DataLoader[Any], *, last: bool = True) -> list[object]:
    """Go on with the loop after every error, to its end; it is the loader's last one."""
    seen: list[object] = []
    iterator = iter(loader)
    while True:
        try:
            seen.append(next(iterator))
        except StopIteration as end:
            if last:
                shut(iterator)
            return [*seen, ["ends", steady(str(end))]]
        except Exception as error:  # noqa: BLE001
            seen.append(told(error))


PLAIN = [kind for kind in ERRORS if kind not in ("GeneratorExit", "StopIteration")]


@case(each(kind=PLAIN, workers=[0, 1]), counted=True)
def of_a_map_dataset(kind: str, workers: int) -> object:
    loader = named(DataLoader(Fails(kind, at=3), num_workers=workers), "train")
    seen = through(loader)
    exits = {"normal": workers} if workers else {}
    expect(
        "train", batches=5, samples=5, epochs=1, errors={"fetch": 1}, starts=workers, exits=exits
    )
    return seen


@case(each(kind=["StopIteration", "GeneratorExit"], workers=[0]))
def that_mean_something_to_python(kind: str, workers: int) -> object:
    """Within the dataset of the rank StopIteration ends the loop."""
    try:
        return list(DataLoader(Fails(kind, at=3), num_workers=workers))
    except BaseException as error:  # noqa: BLE001
        return error


@case(each(batch=[1, 2]))
def a_stop_iteration_in_a_worker(batch: int) -> object:
    return through(DataLoader(Fails("StopIteration", at=3), num_workers=1, batch_size=batch))


@case(each(kind=["ValueError", "KeyError", "OddError"], workers=[0, 2], batch=[2, None]))
def of_a_stream(kind: str, workers: int, batch: int | None) -> object:
    return through(DataLoader(FailsInStream(kind, at=3), num_workers=workers, batch_size=batch))


@case(each(kind=["ValueError", "KeyError"], workers=[0, 1], batch=[2, None]))
def of_a_stream_that_goes_on(kind: str, workers: int, batch: int | None) -> object:
    return through(DataLoader(FailsWithoutEnd(kind, at=3), num_workers=workers, batch_size=batch))


@case(each(at=[0, 5], workers=[0, 2], persistent=[False]), counted=True)
def first_or_last(at: int, workers: int, persistent: bool) -> object:
    loader = named(DataLoader(Fails("ValueError", at=at), num_workers=workers), "train")
    seen = through(loader)
    exits = {"normal": workers} if workers else {}
    expect(
        "train", batches=5, samples=5, epochs=1, errors={"fetch": 1}, starts=workers, exits=exits
    )
    return seen


@case(each(workers=[1, 2]), counted=True)
def in_every_persistent_epoch(workers: int) -> object:
    dataset = Fails("ValueError", at=2)
    loader = named(DataLoader(dataset, num_workers=workers, persistent_workers=True), "train")
    seen = [through(loader, last=epoch == 2) for epoch in range(3)]
    expect(
        "train",
        batches=15,
        samples=15,
        epochs=3,
        errors={"fetch": 3},
        starts=workers,
        exits={"normal": workers},
    )
    return seen


@case(each(workers=[1]))
def with_a_context_already_there(workers: int) -> object:
    """An error while another is handled has that one as its context."""
    iterator = iter(DataLoader(Fails("ValueError", at=0), num_workers=workers))
    try:
        raise LookupError("before")
    except LookupError:
        try:
            return next(iterator)
        except ValueError as error:
            return told(error), type(error.__context__).__name__, error.__cause__ is None
        finally:
            shut(iterator)


class FailsInGetitems(Fails):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [self[index] for index in indices]


@case(each(workers=[0, 1]))
def of_a_batch_at_once(workers: int) -> object:
    return through(DataLoader(FailsInGetitems("IndexError", at=3), 2, num_workers=workers))


@case(each(kind=["KeyboardInterrupt", "SystemExit"], collate=[None, as_they_are]))
def that_stop_the_rank(kind: str, collate: Any) -> object:
    error: BaseException = KeyboardInterrupt("by hand") if kind[0] == "K" else SystemExit(3)

    class Stops(Fails):
        def __getitem__(self, index: int) -> int:
            if index == self.at:
                raise error
            return index

    iterator = iter(DataLoader(Stops("", at=2), collate_fn=collate))
    seen: list[object] = []
    for _ in range(6):
        try:
            seen.append(next(iterator))
        except BaseException as raised:  # noqa: BLE001
            seen.append([raised is error, told(raised)])
    return seen
