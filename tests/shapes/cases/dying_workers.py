"""Workers that end before their time: what the loop is told, and what is left of them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tests.shapes.datasets import Numbers, shut
from tests.shapes.job import expect, named
from tests.shapes.records import told
from tests.shapes.table import case, each

FOREVER_SECONDS = 60


def interrupt() -> None:
    raise KeyboardInterrupt


DEATHS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "abort": lambda: os.kill(os.getpid(), signal.SIGABRT),
    "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
    "sys.exit": lambda: sys.exit(4),
    "exit 0": lambda: os._exit(0),
    "interrupt": interrupt,
}


class Dies(Dataset[torch.Tensor]):
    """The last worker dies at the last sample, when it is told to."""

    def __init__(self, death: str, event: Any) -> None:
        self.death, self.event = death, event

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        if index == 3:
            self.event.wait(FOREVER_SECONDS)
            DEATHS[self.death]()
        return torch.tensor(index)


def dying(death: str, method: str = "fork", **options: Any) -> DataLoader[Any]:
    """Return a loader that notices a death nowhere but in next(); `ending` says how soon.

    SIGCHLD would have torch raise wherever the loop is; it must be blocked. A forkserver that is
    started then inherits that, and never learns of a death: it must be there before.
    """
    if method == "forkserver":
        forkserver.ensure_running()
    event = multiprocessing.get_context(method).Event()
    options.update(num_workers=2, multiprocessing_context=method, timeout=FOREVER_SECONDS)
    return DataLoader(Dies(death, event), **options)


def ending(loader: DataLoader[Any]) -> tuple[list[Any], object, list[int | None]]:
    """Iterate to the worker's death, and return what was seen, and how the workers ended."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # in the queues' threads too
    dataset: Any = loader.dataset
    iterator: Any = iter(loader)
    workers = iterator._workers
    seen = []
    try:
        for batch in iterator:
            seen.append(batch)
            if len(seen) == 3:
                dataset.event.set()
                workers[1].join()
                iterator._timeout = 1  # now there is nothing to wait for but to look who is dead
        how: object = "no error"
    except RuntimeError as error:
        how = told(error)
    finally:
        shut(iterator)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    return seen, how, [worker.exitcode for worker in workers]


EXITS = {
    "kill": {"sigkill": 1},
    "term": {"sigterm": 1},
    "abort": {"sigabrt": 1},
    "segfault": {"sigsegv": 1},
    "exit": {"error": 1},
    "sys.exit": {"error": 1},
    "exit 0": {"normal": 1},
    "interrupt": {"normal": 1},
}


@case(each(death=list(DEATHS), method=["fork", "forkserver"]), counted=True)
def alone(death: str, method: str) -> object:
    loader = named(dying(death, method), "train")
    seen, how, exitcodes = ending(loader)
    exits = {"normal": 1}
    for reason, count in EXITS[death].items():
        exits[reason] = exits.get(reason, 0) + count
    errors = {"worker_died": 1}
    expect("train", batches=3, samples=3, epochs=1, errors=errors, starts=2, exits=exits)
    return seen, how, exitcodes


@case(counted=True)
def and_the_next_epoch_has_new_ones() -> object:
    loader = named(dying("kill"), "train")
    dataset: Any = loader.dataset
    epochs = [ending(loader)]
    dataset.event.clear()
    epochs.append(ending(loader))
    expect(
        "train",
        batches=6,
        samples=6,
        epochs=2,
        errors={"worker_died": 2},
        starts=4,
        exits={"normal": 2, "sigkill": 2},
    )
    return epochs


@case(counted=True)
def while_the_loop_is_in_its_step() -> object:
    """SIGCHLD's handler raises in the user's own code: no error of next()."""
    loader = named(DataLoader(Numbers(100), num_workers=1), "train")
    iterator: Any = iter(loader)
    seen = [next(iterator)]
    worker = iterator._workers[0]
    message = ""
    try:
        os.kill(worker.pid, signal.SIGKILL)
        end = time.monotonic() + FOREVER_SECONDS
        while time.monotonic() < end:  # the handler runs between two bytecodes of this
            pass
    except RuntimeError as error:
        message = str(error).partition("(")[0]
    del iterator
    expect(
        "train",
        batches=1,
        samples=None,
        epochs=1,
        errors=None,
        starts=1,
        exits={"sigkill": 1},
    )
    return seen, message


@case()
def a_stranger_child() -> object:
    """A child process that is no worker may end as it likes."""
    loader = DataLoader(Numbers(20), num_workers=1)
    seen = []
    for number, batch in enumerate(loader):
        if number == 3:
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            os.waitpid(child, 0)
        seen.append(batch)
    return seen
