"""Processes that a job makes itself, before, during and after its loops."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from torch.utils.data import DataLoader

from tests.shapes.datasets import Numbers, loader_of
from tests.shapes.job import expect, look, named
from tests.shapes.records import plain
from tests.shapes.table import case, each


def exits(count: int) -> dict[str, int]:
    return {"normal": count} if count else {}


class Child:
    """A process made by os.fork, which does something and tells what came of it."""

    def __init__(self, function: Callable[[], Any], *, politely: bool = False) -> None:
        """Fork.

        Args:
            function: Called in the child.
            politely: End it as multiprocessing does, with its finalizers; else by `os._exit`.
        """
        self._told, tell = os.pipe()
        self._gone_on, self._go_on = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.write(tell, json.dumps(plain(function())).encode())
                os.close(tell)
                os.read(self._gone_on, 1)
                status = 0
                if politely:
                    multiprocessing.util._exit_function()  # type: ignore[attr-defined]
            os._exit(status)
        os.close(tell)

    def result(self) -> Any:
        """Wait for what it tells; it lives on until `end`."""
        with open(self._told) as told:
            return json.loads(told.read())

    def end(self) -> int:
        """Let it end, and return its status."""
        os.write(self._go_on, b".")
        os.close(self._go_on)
        os.close(self._gone_on)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@case(each(workers=[0], politely=[False, True]), counted=True)
def a_fork_in_mid_epoch(workers: int, politely: bool) -> object:
    """Parent and child go on with one iterator, each by itself; the child's is not observed."""
    loader = named(loader_of(10, num_workers=workers), "train")
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(4)]
    child = Child(lambda: list(iterator), politely=politely)
    childs = child.result()
    status = child.end()
    seen += list(iterator)
    expect("train", batches=10, samples=10, epochs=1)
    return seen, childs, status


@case(each(politely=[False, True]), counted=True)
def a_child_with_an_epoch_of_its_own(politely: bool) -> object:
    """What the child iterates is added to its loader, as long as the child lives."""
    loader = named(loader_of(10), "train")
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(4)]
    child = Child(lambda: [*loader, *loader], politely=politely)
    childs = child.result()
    look(train={"batches": 24, "samples": 24, "epochs": 3})
    status = child.end()
    seen += list(iterator)
    expect("train", batches=30, samples=30, epochs=3)
    return seen, childs, status


@case(counted=True)
def a_child_with_workers_of_its_own() -> object:
    loader = named(loader_of(8, num_workers=2), "train")
    seen = list(loader)
    child = Child(lambda: list(loader), politely=True)
    childs = child.result()
    look(train={"batches": 16, "samples": 16, "epochs": 2, "starts": 4, "exits": {"normal": 4}})
    status = child.end()
    expect("train", batches=16, samples=16, epochs=2, starts=4, exits={"normal": 4})
    return seen, childs, status


@case(counted=True)
def a_fork_while_workers_run() -> object:
    """The child leaves the parent's workers alone; torch's own guards see to that."""
    loader = named(DataLoader(Numbers(30), num_workers=2), "train")
    iterator = iter(loader)
    seen = [next(iterator) for _ in range(5)]
    child = Child(lambda: list(loader_of(3)))
    childs = child.result()
    status = child.end()
    seen += list(iterator)
    expect("train", batches=30, samples=30, epochs=1, starts=2, exits={"normal": 2})
    return seen, childs, status


@case(counted=True)
def generations() -> object:
    """A child of a child; each adds to the same loader."""
    loader = named(loader_of(3), "train")
    seen = list(loader)

    def grandchild() -> Any:
        mine = list(loader)
        child = Child(lambda: list(loader))
        theirs = child.result()
        look_at_all = [mine, theirs]
        child.end()
        return look_at_all

    child = Child(grandchild)
    childs = child.result()
    child.end()
    expect("train", batches=9, samples=9, epochs=3)
    return seen, childs


def epoch_of(length: int) -> list[int]:
    return [int(batch) for batch in loader_of(length)]


@case(each(method=["fork", "forkserver"]))
def a_process_of_multiprocessing(method: str) -> object:
    context = multiprocessing.get_context(method)
    iterator = iter(loader_of(6))
    seen = [next(iterator)]
    parent, child = context.Pipe()
    process = context.Process(target=send_epoch, args=(child, 4))  # type: ignore[attr-defined]
    process.start()
    child.close()
    got = parent.recv()
    process.join()
    parent.close()
    seen += list(iterator)
    return seen, got, process.exitcode


def send_epoch(connection: Any, length: int) -> None:
    connection.send(epoch_of(length))
    connection.close()


@case(each(method=["fork", "forkserver"]))
def a_pool_of_processes(method: str) -> object:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        return sorted(map(len, pool.map(epoch_of, range(2, 6))))


@case()
def a_daemon_as_people_make_them() -> object:
    """Two forks, a session of its own, standard streams replaced; then it iterates."""

    def daemonize() -> Any:
        os.setsid()
        with open(os.devnull) as nowhere:
            os.dup2(nowhere.fileno(), 0)
        return epoch_of(5)

    child = Child(daemonize)
    told = child.result()
    return told, child.end()


@case()
def all_descriptors_closed() -> object:
    """A child that closes everything it inherited, dlmon's files too, and then iterates."""
    kept = sys.stderr.fileno()

    def close_all() -> Any:
        for entry in os.listdir("/proc/self/fd"):
            if int(entry) > kept and "pipe" not in _link(entry):
                with contextlib.suppress(OSError):
                    os.close(int(entry))
        return epoch_of(4)

    child = Child(close_all)
    told = child.result()
    return told, child.end(), epoch_of(3)


def _link(entry: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{entry}")
    except OSError:
        return ""
