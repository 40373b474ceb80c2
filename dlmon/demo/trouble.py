"""The faults themselves: each makes a real thing go wrong in the process that fetches samples."""

from __future__ import annotations

import abc
import os
import signal
import time
from contextlib import suppress
from ctypes import c_longlong
from pathlib import Path
from typing import ClassVar

from PIL import Image

from dlmon.demo.faults import FIRST_EPOCH

LEAK_LIMIT_BYTES = 1_500_000_000
LEAK_LIMIT_SHARE = 0.25
"""A leak stops at this share of the memory that was free at the start, or at the limit above."""

SLOW_SECONDS = 0.025
HEAVY_SIDE = 1600


class Trouble(abc.ABC):
    """A fault in a data set, called for every sample that is read.

    Nothing goes wrong before epoch FIRST_EPOCH. An instance is copied to every worker.

    Args:
        epoch: Number of the current epoch, in memory that the workers share.
        after: Samples that a worker reads in or after epoch FIRST_EPOCH before it begins.
        workers: Number of workers, 0 for none.
        folder: Where the fault may put files.
    """

    only_worker: ClassVar[int | None] = None
    """The one worker in which it happens, None for all."""

    def __init__(self, epoch: c_longlong, after: int, workers: int, folder: Path) -> None:
        self._epoch = epoch
        self._left = after
        self._workers = max(1, workers)
        self._folder = folder

    def __call__(self, image: Image.Image, worker: int) -> Image.Image:
        """Return `image` as the fault leaves it, if the fault lets it return."""
        if self._epoch.value < FIRST_EPOCH or self.only_worker not in (None, worker):
            return image
        if self._left > 0:
            self._left -= 1
            return image
        return self._strike(image)

    @abc.abstractmethod
    def _strike(self, image: Image.Image) -> Image.Image:
        """Let it happen to this sample."""


class Hang(Trouble):
    """One worker reads from something that never answers, as from a mount that went away."""

    only_worker = 0

    def __init__(self, epoch: c_longlong, after: int, workers: int, folder: Path) -> None:
        super().__init__(epoch, after, workers, folder)
        self._fifo = folder / "storage-that-never-answers"
        with suppress(FileExistsError):  # a container that is started again has it
            os.mkfifo(self._fifo)

    def _strike(self, image: Image.Image) -> Image.Image:
        self._fifo.read_bytes()  # blocks in open(): nobody writes
        return image


class Kill(Trouble):
    """One worker is killed, as the kernel does when memory runs out; the next ones live."""

    only_worker = 0

    def _strike(self, image: Image.Image) -> Image.Image:
        if self._epoch.value == FIRST_EPOCH:
            os.kill(os.getpid(), signal.SIGKILL)
        return image


class Leak(Trouble):
    """Every worker keeps a small copy of each image for a later that never comes."""

    def __init__(self, epoch: c_longlong, after: int, workers: int, folder: Path) -> None:
        super().__init__(epoch, after, workers, folder)
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self._room = min(LEAK_LIMIT_BYTES, int(available * LEAK_LIMIT_SHARE)) // self._workers
        self._kept: list[bytes] = []

    def _strike(self, image: Image.Image) -> Image.Image:
        thumbnail = image.reduce(2).tobytes()
        if len(thumbnail) <= self._room:
            self._room -= len(thumbnail)
            self._kept.append(thumbnail)
        return image


class SlowWorker(Trouble):
    """One worker needs some ten times as long as the others, as on a slow disk."""

    only_worker = 0

    def _strike(self, image: Image.Image) -> Image.Image:
        time.sleep(SLOW_SECONDS)
        return image


class Starve(Trouble):
    """Every image is blown up and shrunk again: far more work than the step."""

    def _strike(self, image: Image.Image) -> Image.Image:
        large = image.resize((HEAVY_SIDE, HEAVY_SIDE), Image.Resampling.LANCZOS)
        return large.resize(image.size, Image.Resampling.LANCZOS)


TROUBLES: dict[str, type[Trouble]] = {
    "hang": Hang,
    "kill": Kill,
    "leak": Leak,
    "slow-worker": SlowWorker,
    "starve": Starve,
}
