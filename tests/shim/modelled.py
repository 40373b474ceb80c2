"""DataLoaders of every small shape, with a model in plain Python of what they deliver."""

from __future__ import annotations

import itertools
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch.utils.data
from torch.utils.data import DataLoader, IterableDataset

import dlmon
from dlmon.shim import _names

FAILS = "fails"

Outcome = list[int] | int | str
"""Of one `next()`: a batch, a sample where there is no batching, or FAILS."""

Counts = Counter[tuple[str, str]]
"""What was delivered and should have been counted, by loader's name and quantity."""


class BoomError(Exception):
    """What fails in datasets and collate functions."""


@dataclass(frozen=True)
class Spec:
    """The shape of a loader.

    Attributes:
        iterable: The dataset is iterable; workers share it, sample by sample.
        length: Samples, numbered from 0.
        batch_size: None for no batching.
        fails_at: The sample that raises BoomError, when it is read or when it is collated.
        nested: Each sample iterates a loader of its own.
        getitems: The dataset has `__getitems__`.
        toggles_at: The sample in whose reading hooks go out, and in again if it is even.
    """

    iterable: bool = False
    length: int = 4
    batch_size: int | None = 1
    drop_last: bool = False
    fails_at: int | None = None
    collate_fails: bool = False
    nested: bool = False
    getitems: bool = False
    toggles_at: int | None = None
    workers: int = 0
    persistent: bool = False


def outcomes(spec: Spec) -> list[Outcome]:
    """Return what one iteration delivers."""
    everything = range(spec.length)
    if not spec.iterable:
        return [_outcome(spec, batch) for batch in _batches(spec, list(everything))]
    shares = max(spec.workers, 1)
    by_worker = [_stream(spec, list(everything[worker::shares])) for worker in range(shares)]
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_worker))
    return [outcome for outcome in in_turn if outcome is not None]


def _batches(spec: Spec, samples: list[int]) -> list[list[int]]:
    size = spec.batch_size or 1
    found = [samples[at : at + size] for at in range(0, len(samples), size)]
    return [batch for batch in found if len(batch) == size or not spec.drop_last]


def _outcome(spec: Spec, batch: list[int]) -> Outcome:
    if spec.fails_at in batch:
        return FAILS
    return batch if spec.batch_size else batch[0]


def _stream(spec: Spec, samples: list[int]) -> list[Outcome]:
    """Return what one reader of an iterable dataset delivers: a generator that raised is over."""
    if spec.fails_at not in samples or spec.collate_fails:
        return [_outcome(spec, batch) for batch in _batches(spec, samples)]
    before = samples.index(spec.fails_at)
    size = spec.batch_size or 1
    whole = samples[: before - before % size]
    return [*(_outcome(spec, batch) for batch in _batches(spec, whole)), FAILS]


class Samples:
    """The dataset of a spec.

    Attributes:
        inner: Name for the loaders that its samples iterate.
    """

    iterated: list[str] = []  # noqa: RUF012  # names of the inner loaders, in this process

    def __init__(self, spec: Spec, inner: str) -> None:
        self.spec = spec
        self.inner = inner

    def sample(self, index: int) -> int:
        if index == self.spec.fails_at and not self.spec.collate_fails:
            raise BoomError(str(index))
        if index == self.spec.toggles_at:
            dlmon.uninstrument()
            if index % 2 == 0:
                dlmon.instrument()
        if self.spec.nested:
            inner: Any = DataLoader([index, index], collate_fn=list)  # type: ignore[arg-type]
            assert list(dlmon.name(inner, self.inner)) == [[index], [index]]
            self.iterated.append(self.inner)
        return index

    def collate(self, samples: Any) -> Any:
        given = samples if self.spec.batch_size else [samples]
        if self.spec.fails_at in given and self.spec.collate_fails:
            raise BoomError(str(given))
        return samples


class MapSamples(Samples):
    def __len__(self) -> int:
        return self.spec.length

    def __getitem__(self, index: int) -> int:
        return self.sample(index)


class BatchSamples(MapSamples):
    def __getitems__(self, indices: list[int]) -> list[int]:
        return [self.sample(index) for index in indices]


class StreamSamples(Samples, IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        return (self.sample(index) for index in range(first, self.spec.length, step))


class Loader:
    """A DataLoader and its model.

    Attributes:
        name: What it is called now, as far as the test said.
        alive: Its iterations that are alive.
    """

    def __init__(self, spec: Spec, name: str, inner: str) -> None:
        kind = StreamSamples if spec.iterable else BatchSamples if spec.getitems else MapSamples
        dataset: Any = kind(spec, inner)
        options: dict[str, Any] = {}
        if spec.workers:
            options = {"num_workers": spec.workers, "persistent_workers": spec.persistent}
        if spec.batch_size:
            options["drop_last"] = spec.drop_last
        self.spec = spec
        self.loader: Any = DataLoader(
            dataset, batch_size=spec.batch_size, collate_fn=dataset.collate, **options
        )
        self.name = ""
        if name:
            self.call(name)
        self._iteration: Iteration | None = None
        self.alive: weakref.WeakSet[Iteration] = weakref.WeakSet()

    def call(self, name: str) -> None:
        """Have dlmon call it `name`."""
        assert dlmon.name(self.loader, name) is self.loader
        self.name = _names.clean(name)

    def copied(self, how: Callable[[Any], Any]) -> Loader | None:
        """Return a copy, which has no name from the test; torch cannot copy what has workers."""
        if self._iteration is not None:
            return None
        copy = Loader.__new__(Loader)
        copy.spec, copy.name, copy._iteration = self.spec, "", None
        copy.alive = weakref.WeakSet()
        copy.loader = how(self.loader)
        return copy

    def begin(self, counts: Counts) -> Iteration:
        """Begin an iteration; of a persistent loader there is only one at a time."""
        iterator = iter(self.loader)
        iteration = self._iteration
        if iteration is None:
            iteration = Iteration(self, iterator)
            counts[self.name, "starts"] += self.spec.workers
            if self.spec.persistent:
                self._iteration = iteration
            self.alive.add(iteration)
        assert iteration.iterator is iterator
        iteration.begin(self.spec, counts)
        return iteration

    def epoch(self, counts: Counts, stop: int, raises: bool) -> None:
        """Iterate until something fails, or leave after batch `stop`, by `break` or by raising."""
        iteration = self.begin(counts)
        try:
            for batch in iteration.iterator:
                iteration.expect(batch, counts)
                stop -= 1
                if not stop:
                    if raises:
                        raise InterruptedError
                    break
            else:
                iteration.expect(None, counts)
        except BoomError as error:
            iteration.expect(FAILS, counts)
            forget(error)
        except InterruptedError as error:
            forget(error)


class Iteration:
    """An iterator and what it still has to deliver.

    Attributes:
        iterator: torch's.
        name: What its loader was called when it was made.
        workers: How many processes it has.
    """

    def __init__(self, loader: Loader, iterator: Any) -> None:
        self.iterator = iterator
        self.name = loader.name
        self.workers = loader.spec.workers
        self._left: Iterator[Outcome] = iter(())

    def begin(self, spec: Spec, counts: Counts) -> None:
        """Begin anew: this is what `iter()` returned."""
        self._left = iter(outcomes(spec))
        counts[self.name, "epochs"] += 1

    def expect(self, got: Outcome | None, counts: Counts) -> None:
        """Compare what was delivered, None for the end."""
        assert got == next(self._left, None)
        if got == FAILS:
            counts[self.name, "errors"] += 1
        elif got is not None:
            counts[self.name, "batches"] += 1
            counts[self.name, "samples"] += len(got) if isinstance(got, list) else 1

    def step(self, counts: Counts) -> bool:
        """Ask for one more, and return whether there was any."""
        try:
            self.expect(next(self.iterator), counts)
        except StopIteration:
            self.expect(None, counts)
            return False
        except BoomError as error:
            self.expect(FAILS, counts)
            forget(error)
        return True

    def finish(self, counts: Counts) -> None:
        """Ask until the end, and once more."""
        while self.step(counts):
            pass
        assert not self.step(counts)


def forget(error: BaseException) -> None:
    """Let go of what an error's traceback holds: with workers torch has a cycle there."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
