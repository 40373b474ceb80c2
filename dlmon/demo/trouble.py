"""The faults themselves: each makes a real thing go wrong in the process that fetches samples."""

from __future__ import annotations

import abc
import ctypes
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from ctypes import c_longlong
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from dlmon.demo.faults import FIRST_EPOCH

LEAK_LIMIT_BYTES = 1_500_000_000
MEMORY_LIMIT_SHARE = 0.25
"""A leak stops at this share of the memory that was free at the start, or at the limit above."""

ERODE_BYTES = 250_000_000
"""Of objects in the training process, and of what a worker copies in the end; less where all of it
would be more than MEMORY_LIMIT_SHARE."""

ERODE_ROW_BYTES = 2000
ERODE_ROWS_PER_SECOND = 8000
"""Some 18 MB: slow enough for a scan of a worker's memory before much of it is copied."""

SLOW_SECONDS = 0.025
HEAVY_SIDE = 1600
FOREVER_SECONDS = 1 << 30


def hold_the_gil() -> None:
    """Be in C for ever and not let go of the interpreter: no thread of the process goes on."""
    ctypes.PyDLL(None).sleep(FOREVER_SECONDS)


def stop_oneself() -> None:
    """Be stopped, as by a debugger, until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def _free_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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

    forked: ClassVar[bool] = False
    """If it is about what workers have from the fork: a spawned worker has none of it."""

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

    def spoil(self, batch: Any) -> Any:
        """Return a collated batch as the fault leaves it."""
        return batch

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


class Stop(Trouble):
    """One worker is stopped by a signal; once it is continued nothing more happens."""

    only_worker = 0

    def _strike(self, image: Image.Image) -> Image.Image:
        stop_oneself()
        self._left = sys.maxsize
        return image


class Deadlock(Trouble):
    """One worker takes a lock that the training process held when it forked: nobody frees that."""

    only_worker = 0
    forked = True

    def __init__(self, epoch: c_longlong, after: int, workers: int, folder: Path) -> None:
        super().__init__(epoch, after, workers, folder)
        self._lock = threading.Lock()
        self._lock.acquire()  # as another thread may at the moment of the fork

    def _strike(self, image: Image.Image) -> Image.Image:
        with self._lock:
            return image


class Gil(Trouble):
    """One worker is in C code that does not come back and keeps the interpreter."""

    only_worker = 0

    def _strike(self, image: Image.Image) -> Image.Image:
        hold_the_gil()
        return image


class Unpicklable(Trouble):
    """One worker's batches have in them what cannot be pickled, and so reach nobody."""

    only_worker = 0
    _struck = False

    def _strike(self, image: Image.Image) -> Image.Image:
        self._struck = True
        return image

    def spoil(self, batch: Any) -> Any:
        """Return a batch with a lambda in it."""
        return [*batch, lambda: None] if self._struck else batch


class EpochEnder(Trouble):
    """What makes the loop end its epoch with an exception; with new workers training goes on."""

    only_worker = 0

    def _strike(self, image: Image.Image) -> Image.Image:
        if self._epoch.value == FIRST_EPOCH:
            self._end()
        return image

    @abc.abstractmethod
    def _end(self) -> None:
        """End the fetch, the worker with it or not."""


class Kill(EpochEnder):
    """One worker is killed, as the kernel does when memory runs out."""

    def _end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Exit(EpochEnder):
    """One worker ends without a word, as a library may that gives up."""

    def _end(self) -> None:
        os._exit(3)


class Segfault(EpochEnder):
    """One worker reads from address 0, as a broken extension does."""

    def _end(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a demo leaves nothing behind
        ctypes.string_at(0)


class Raise(EpochEnder):
    """The dataset raises, as at a broken file; the worker hands that on and lives."""

    def _end(self) -> None:
        raise OSError("image file is truncated")


class Leak(Trouble):
    """Every worker keeps a small copy of each image for a later that never comes."""

    def __init__(self, epoch: c_longlong, after: int, workers: int, folder: Path) -> None:
        super().__init__(epoch, after, workers, folder)
        limit = min(LEAK_LIMIT_BYTES, int(_free_bytes() * MEMORY_LIMIT_SHARE))
        self._room = limit // self._workers
        self._kept: list[bytes] = []

    def _strike(self, image: Image.Image) -> Image.Image:
        thumbnail = image.reduce(2).tobytes()
        if len(thumbnail) <= self._room:
            self._room -= len(thumbnail)
            self._kept.append(thumbnail)
        return image


class Erode(Trouble):
    """Every worker looks at objects in a list, which writes their counts and so copies them."""

    forked = True

    def __init__(self, epoch: c_longlong, after: int, workers: int, folder: Path) -> None:
        super().__init__(epoch, after, workers, folder)
        share = int(_free_bytes() * MEMORY_LIMIT_SHARE) // (1 + self._workers)
        count = min(ERODE_BYTES, share) // ERODE_ROW_BYTES
        self._rows = [{"label": number, "text": bytes(ERODE_ROW_BYTES)} for number in range(count)]
        self._seen = 0
        self._began = 0.0

    def _strike(self, image: Image.Image) -> Image.Image:
        self._began = self._began or time.monotonic()
        until = int((time.monotonic() - self._began) * ERODE_ROWS_PER_SECOND)
        for row in self._rows[self._seen : until]:
            row.get("text")
        self._seen = until
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
    "deadlock": Deadlock,
    "erode": Erode,
    "exception": Raise,
    "exit": Exit,
    "gil": Gil,
    "hang": Hang,
    "kill": Kill,
    "leak": Leak,
    "segfault": Segfault,
    "slow-worker": SlowWorker,
    "starve": Starve,
    "stop": Stop,
    "unpicklable": Unpicklable,
}
