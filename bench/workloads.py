"""What is iterated: samples that cost nothing, and batches of photographs that cost about 5 ms."""

from __future__ import annotations

import functools
import io
import itertools
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dlmon.demo import photos

Loader = DataLoader[torch.Tensor]

WORK_SECONDS = 0.005
"""CPU time of a batch that is real work."""

PHOTOGRAPH_SIDE = 96
PINS = ("apart", "together", "no")
NOTHING = torch.zeros(1)


@dataclass(frozen=True, slots=True)
class Size:
    """How long a block is.

    Attributes:
        warm_up: Batches before the measured ones: workers start, queues fill and CPython
            specialises its bytecode anew.
        batches: Batches that are measured.
    """

    warm_up: int
    batches: int

    @property
    def total(self) -> int:
        """All batches of a block."""
        return self.warm_up + self.batches


@dataclass(frozen=True, slots=True)
class Cores:
    """Where processes are pinned; empty sets leave them alone.

    Attributes:
        main: Of the training process.
        workers: Of its workers.
    """

    main: frozenset[int] = frozenset()
    workers: frozenset[int] = frozenset()

    @classmethod
    def placed(cls, pin: str) -> Cores:
        """Return where processes are with `--pin`, one of PINS.

        Where there is one core only, there is nothing to decide.
        """
        first, *others = sorted(os.sched_getaffinity(0))
        if pin == "no" or not others:
            return cls()
        return cls(frozenset({first}), frozenset({first} if pin == "together" else others))

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """Have the calling thread pinned for a while, and those that it starts meanwhile."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.main or before)
        try:
            with warnings.catch_warnings():  # torch takes this core for all that its workers have
                warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
                yield
        finally:
            os.sched_setaffinity(0, before)

    def pin_worker(self, _worker: int) -> None:
        """Pin a worker: a `worker_init_fn`."""
        if self.workers:
            os.sched_setaffinity(0, self.workers)


class Trivial(Dataset[torch.Tensor]):
    """Samples that cost nothing, so that what remains is the DataLoader's own work."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> torch.Tensor:
        return NOTHING


class Clocked(Dataset[torch.Tensor]):
    """Samples whose worker leaves in shared memory how much CPU time it has used until then.

    It travels in no batch, so that the training process has nothing to unpack for it.

    Args:
        sample: Makes a sample from its index.
        length: Number of samples.
    """

    def __init__(self, sample: Callable[[int], torch.Tensor], length: int) -> None:
        self._sample = sample
        self._clocks = memoryview(mmap.mmap(-1, 8 * length)).cast("q")

    def __len__(self) -> int:
        return len(self._clocks)

    def __getitem__(self, index: int) -> torch.Tensor:
        self._clocks[index] = time.process_time_ns()
        return self._sample(index)

    def per_batch(self, size: Size, batch_size: int, workers: int) -> float:
        """Return CPU microseconds per batch in the workers, each batch being one worker's.

        torch gives batches to workers in turn.
        """
        clocks = self._clocks[::batch_size].tolist()
        spent = batches = 0
        for worker in range(workers):
            own = clocks[size.warm_up + worker :: workers]
            assert all(a < b for a, b in itertools.pairwise(own)), "batches not in turn"
            spent += own[-1] - own[0]
            batches += len(own) - 1
        return spent / batches / 1000


@dataclass(frozen=True, slots=True)
class Workload:
    """A loader to iterate, the same for every variant.

    Attributes:
        workers: `num_workers`.
        batch_size: Samples per batch.
        sample: Makes a sample from its index, in a worker.
    """

    workers: int = 0
    batch_size: int = 1
    sample: Callable[[int], torch.Tensor] | None = None

    def dataset(self, size: Size) -> Dataset[torch.Tensor]:
        """Return samples for one block, and no more: what was fetched can then be counted."""
        length = size.total * self.batch_size
        return Trivial(length) if self.sample is None else Clocked(self.sample, length)

    def loader(self, dataset: Dataset[torch.Tensor], cores: Cores) -> Loader:
        """Return a DataLoader; nothing in it is new to torch but where its workers run."""
        more: dict[str, Any] = {}
        if self.workers:
            more = {"worker_init_fn": cores.pin_worker, "multiprocessing_context": "fork"}
        return DataLoader(dataset, batch_size=self.batch_size, num_workers=self.workers, **more)


def nothing(_index: int) -> torch.Tensor:
    """Make a sample that costs nothing."""
    return NOTHING


def real_work() -> Workload:
    """Return a loader of photographs with as many to a batch as take about 5 ms to decode.

    The files are those of `dlmon demo`, and what is done to them is what its dataset does, but for
    what is random in it.

    Raises:
        UsageError: scikit-image's photographs are not installed.
    """
    with tempfile.TemporaryDirectory(prefix="dlmon-bench-") as directory:
        for _ in photos.write(Path(directory), 4):
            pass
        files = [path.read_bytes() for path in sorted(Path(directory).glob("train/*/*.jpg"))]
    each = min(_seconds_per_photograph(files) for _ in range(3))
    batch_size = max(1, round(WORK_SECONDS / each))
    return Workload(2, batch_size, functools.partial(photograph, files))


def photograph(files: Sequence[bytes], index: int) -> torch.Tensor:
    """Decode one of `files`, make it small and a tensor of floats."""
    with Image.open(io.BytesIO(files[index % len(files)])) as file:
        image = file.convert("RGB").resize((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE))
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255


def _seconds_per_photograph(files: Sequence[bytes]) -> float:
    begun = time.process_time()
    for index in range(len(files)):
        photograph(files, index)
    return (time.process_time() - begun) / len(files)
