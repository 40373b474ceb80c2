"""A job of many runs, each of which hangs in another way; a line to a run's FIFO lets it go on.

Usage: hanging_job.py FOLDER LIBRARY NAME...; LIBRARY has `wait_in_vfork`, or is empty. What follows
a hyphen in a name tells runs of one kind apart.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

import dlmon
from tests.accelerators import accelerator

AT = 60
"""The sample at which it happens: enough has been fetched by then to know what is usual."""

folder, library = sys.argv[1:3]
waiting: list[int] = []
"""Where the next run waits for this one to begin."""


def has_begun() -> None:
    """Say that there is a batch: of many runs that start at once a healthy one may seem to hang."""
    while waiting:
        os.write(at := waiting.pop(), b"\n")
        os.close(at)


def fifo(name: str) -> int:
    """Return a descriptor of a run's FIFO that never is at its end."""
    return os.open(f"{folder}/{name}.fifo", os.O_RDWR)


class Numbers(Dataset[Any]):
    """Does something at sample `AT`."""

    def __init__(self, happen: Callable[[], object] | None = None, length: int = 1_000_000) -> None:
        self.happen = happen
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if index == AT and self.happen is not None:
            self.happen()
        time.sleep(0.005)
        return torch.tensor(index)


def loading(happen: Callable[[], object] | None = None, **options: Any) -> Any:
    loader = DataLoader(Numbers(happen), **{"num_workers": 2, **options})
    return dlmon.name(loader, "train")


def loop(loader: Any) -> None:
    for _ in loader:
        has_begun()
        time.sleep(0.02)  # longer than the wait for a batch: no loader is starved


def healthy(_: str) -> None:
    """What a job does that nobody should be woken for: bursts, pauses, breaks, idle workers."""

    class Bursts(Numbers):
        def __getitem__(self, index: int) -> Any:
            if index % 97 == 96:
                time.sleep(0.4)  # a hundred times the usual
            return super().__getitem__(index)

    train = DataLoader(Bursts(length=400), num_workers=2, persistent_workers=True)
    dlmon.name(train, "train")
    val = dlmon.name(DataLoader(Numbers(length=40), num_workers=1), "val")
    while True:
        for number, _batch in enumerate(train):
            has_begun()
            if number == 150:
                for _batch in val:
                    time.sleep(0.02)
            if number == 300:
                break
        time.sleep(1.5)


def varied(name: str) -> None:
    """Healthy, and as irregular as jobs are: skewed and bursty fetches, long firsts and pauses."""
    draw = random.Random(name)

    class Skewed(Numbers):
        slowness = 0.0
        opened = False

        def __getitem__(self, index: int) -> Any:
            if not self.opened:
                self.opened = True
                time.sleep(draw.uniform(1.0, 5.0))
            if index % 40 == 0:
                self.slowness = draw.gauss(0, 1.1)
            time.sleep(draw.lognormvariate(self.slowness, 1.0) * 0.01)
            return torch.tensor(index)

    while True:
        workers = draw.randrange(3)
        persistent = workers > 0 and draw.random() < 0.5
        data = Skewed(length=draw.randrange(50, 400))
        train = DataLoader(data, num_workers=workers, persistent_workers=persistent, shuffle=True)
        dlmon.name(train, "train")
        val = dlmon.name(DataLoader(Skewed(length=60), num_workers=1), "val")
        for _ in range(3):
            irregular_epoch(train, val, draw)
            time.sleep(draw.uniform(0.0, 6.0))


def irregular_epoch(train: Any, val: Any, draw: random.Random) -> None:
    for number, _batch in enumerate(train):
        has_begun()
        time.sleep(draw.lognormvariate(0, 1.0) * 0.004)
        if number == 40:
            loop(val)
        if draw.random() < 0.005:
            time.sleep(draw.uniform(1.0, 8.0))  # writes a checkpoint
        if draw.random() < 0.003:
            break


def stopped(_: str) -> None:
    loop(loading())


def endless_read(name: str) -> None:
    at = fifo(name)

    def reads_for_ever() -> None:
        os.read(at, 1)  # GUILTY endless_read

    loop(loading(reads_for_ever))


def gil_held(name: str) -> None:
    at = fifo(name)
    into = ctypes.create_string_buffer(1)

    def holds_the_gil() -> None:
        ctypes.PyDLL(None).read(at, into, 1)  # GUILTY gil_held

    loop(loading(holds_the_gil))


class Held:
    """Is pickled by the thread that hands it over, in C code that keeps the interpreter."""

    def __init__(self, number: int, fifo: int) -> None:
        self.number = number
        self.fifo = fifo

    def __reduce__(self) -> Any:
        if self.number == AT:
            into = ctypes.create_string_buffer(1)
            ctypes.PyDLL(None).read(self.fifo, into, 1)  # GUILTY gil_after
        return Held, (self.number, self.fifo)


def gil_after(name: str) -> None:
    """Without a further task: in the middle of a fetch, that would seem to be what is stuck."""
    at = fifo(name)
    loop(loading(collate_fn=lambda samples: Held(int(samples[0]), at), prefetch_factor=1))


def gil_between(name: str) -> None:
    """A thread of a worker takes the interpreter while that has nothing to do.

    No batch has a tensor: the file descriptor of one is handed over only when the loop takes it.
    """
    at, now = fifo(name), fifo(f"{name}-peer")

    def takes_the_gil() -> None:
        os.read(now, 1)
        ctypes.PyDLL(None).read(at, ctypes.create_string_buffer(1), 1)  # GUILTY gil_between

    def begins(worker: int) -> None:
        if worker == 1:
            threading.Thread(target=takes_the_gil, daemon=True).start()

    loader = loading(worker_init_fn=begins, collate_fn=lambda samples: int(samples[0]))
    for number in loader:
        has_begun()
        if number == AT:
            time.sleep(0.5)  # whereupon all is fetched that was asked for
            os.write(now, b"\n")
            time.sleep(0.2)


def lock_across_fork(_: str) -> None:
    lock = threading.Lock()

    def waits_for_the_lock() -> None:
        with lock:  # GUILTY lock_across_fork
            pass

    lock.acquire()  # as another thread may at the moment of the fork
    loop(loading(waits_for_the_lock))


def before_fetch(name: str) -> None:
    at = fifo(name)

    def begins(worker: int) -> None:
        if worker == 1:
            os.read(at, 1)  # GUILTY before_fetch

    loop(loading(worker_init_fn=begins))


def unpicklable(_: str) -> None:
    def collate(samples: list[Any]) -> Any:
        return (lambda: None) if int(samples[0]) == AT else samples

    loop(loading(collate_fn=collate))


def step(name: str) -> None:
    at = fifo(name)
    for number, _batch in enumerate(loading()):
        has_begun()
        if number == AT:
            os.read(at, 1)  # GUILTY step


def alone(name: str) -> None:
    at = fifo(name)

    def reads_in_the_loop() -> None:
        os.read(at, 1)  # GUILTY alone

    loop(loading(reads_in_the_loop, num_workers=0))


def sampler(name: str) -> None:
    at = fifo(name)

    class Slow(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            for number in range(1_000_000):
                if number == AT:
                    os.read(at, 1)  # GUILTY sampler
                yield number

    loop(loading(sampler=Slow()))


def kernel(name: str) -> None:
    at = fifo(name)
    wait = ctypes.CDLL(library).wait_in_vfork

    def waits_in_the_kernel() -> None:
        wait(at)  # GUILTY kernel

    loop(loading(waits_in_the_kernel))


class Batch:
    """Ends the thread that pins it, as C code can; Python does not notice."""

    def __init__(self, number: int) -> None:
        self.number = number

    def pin_memory(self) -> Batch:
        if self.number == AT:
            ctypes.CDLL(None).pthread_exit(None)
        return self


def pin_thread(_: str) -> None:
    with accelerator():
        loader = loading(pin_memory=True, collate_fn=lambda samples: Batch(int(samples[0])))
        for number, _batch in enumerate(loader):
            has_begun()
            time.sleep(0.05 if number < AT else 0.001)  # so that the thread is seen while it lives


def ranks(name: str) -> None:
    """Rank 0 waits for data, rank 1 in its step for rank 0."""
    if os.environ["RANK"] == "0":
        endless_read(name)
    else:
        step(f"{name}-peer")


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    children = []
    for run in sys.argv[3:]:
        for rank in range(2 if run == "ranks" else 1):
            begun, begins = os.pipe()
            if pid := os.fork():
                children.append(pid)
                os.close(begins)
                os.read(begun, 1)
                os.close(begun)
                continue
            os.close(begun)
            waiting.append(begins)
            os.environ["RANK"] = str(rank)
            dlmon.instrument(run=run, rank=rank)
            globals()[run.partition("-")[0]](run)
            os._exit(0)
    for pid in children:
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
