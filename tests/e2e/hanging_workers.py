"""Runs that hang in workers that are started anew: all that such a worker needs can be pickled.

A name is what happens and a start method, as in `deadlock-spawn`; a line to the run's FIFO lets it
go on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing.synchronize import Lock

from torch.utils.data import DataLoader, Dataset

import dlmon

AT = 60


class Hanging(Dataset[int]):
    """Does something at sample `AT`."""

    def __init__(self, kind: str, fifo: str, lock: Lock) -> None:
        self.kind = kind
        self.fifo = fifo
        self.lock = lock

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> int:
        if index == AT:
            getattr(self, self.kind)()
        time.sleep(0.005)
        return index

    def stopped(self) -> None:
        """From outside."""

    def deadlock(self) -> None:
        with self.lock:  # GUILTY deadlock
            pass

    def endless_read(self) -> None:
        at = os.open(self.fifo, os.O_RDWR)
        os.read(at, 1)  # GUILTY endless_read


def run(folder: str, name: str) -> None:
    kind, method = name.split("-")
    lock = multiprocessing.get_context(method).Lock()
    lock.acquire()  # by the training process, which waits for the worker
    data = Hanging(kind, f"{folder}/{name}.fifo", lock)
    loader = DataLoader(data, num_workers=2, multiprocessing_context=method)
    for _ in dlmon.name(loader, "train"):
        time.sleep(0.001)


def main(folder: str, names: list[str]) -> None:
    multiprocessing.set_forkserver_preload(["torch"])  # once for all workers of a run
    children = []
    for name in names:
        if pid := os.fork():
            children.append(pid)
            continue
        dlmon.instrument(run=name, rank=0)
        run(folder, name)
        os._exit(0)
    for pid in children:
        os.waitpid(pid, 0)
