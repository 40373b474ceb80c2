"""A job for the soak: healthy in one of many ways, or hung in one of many ways after a while.

`python -m tests.soak.job KIND UNIT SEED`; UNIT is the floor of the agent's hang threshold in
seconds, by which everything here is scaled. A job that hangs prints HUNG and when that began.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

import dlmon
from dlmon.demo.trouble import hold_the_gil, stop_oneself

HUNG = "HUNG"
UNIT = float(sys.argv[2]) if len(sys.argv) == 4 else 1.0
FOREVER = 3600
LOCK = threading.Lock()


def say_hung() -> None:
    """Say that it hangs from now on."""
    os.write(1, f"{HUNG} {time.time()}\n".encode())


class Bursty(Dataset[torch.Tensor]):
    """Samples whose cost is lognormal, with tails of a hundred times the median."""

    def __init__(self, length: int = 64, median: float = 0.004) -> None:
        self.length = length
        self.median = median

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(min(random.lognormvariate(0, 1.5), 100) * self.median * UNIT / 3)
        return torch.full((16,), float(index))


class Stream(IterableDataset[torch.Tensor]):
    """A stream of which one worker has far less than the other, and is idle from then on."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        for number in range(8 if info is not None and info.id else 200):
            time.sleep(0.005 * UNIT)
            yield torch.tensor(number)


class Faulty(Bursty):
    """Samples that are healthy up to one."""

    def __init__(self, fault: Callable[[], Any], at: int) -> None:
        super().__init__(length=10_000)
        self.fault = fault
        self.at = at

    def __getitem__(self, index: int) -> Any:
        if index == self.at:
            say_hung()
            return self.fault()
        return super().__getitem__(index)


# ── healthy ──────────────────────────────────────────────────────────────────────────────────────


def loop(loader: DataLoader[Any], step: float = 0.01, batches: int | None = None) -> None:
    """Iterate once, or so many batches."""
    for number, _ in enumerate(loader):
        time.sleep(step * UNIT)
        if number + 1 == batches:
            break


def slowly(_worker: int) -> None:
    """Start for longer than a fetch may take."""
    time.sleep(1.5 * UNIT)


def epochs(**options: Any) -> None:
    """Train and validate, for ever."""
    train = dlmon.name(DataLoader(Bursty(), batch_size=4, shuffle=True, **options), "train")
    val = dlmon.name(DataLoader(Bursty(24), batch_size=4, num_workers=1), "val")
    while True:
        loop(train)
        loop(val)


def long_pauses() -> None:
    """Long validations, checkpoints and breaks, while persistent workers are idle."""
    train = DataLoader(Bursty(), batch_size=4, num_workers=2, persistent_workers=True)
    val = DataLoader(Bursty(200), batch_size=4)
    dlmon.name(train, "train"), dlmon.name(val, "val")
    while True:
        loop(train)
        loop(val)
        time.sleep(2 * UNIT)
        loop(train, batches=5)
        time.sleep(2 * UNIT)


def long_steps() -> None:
    """Steps that are long, and now and then a checkpoint in one."""
    loader = dlmon.name(DataLoader(Bursty(), batch_size=4, num_workers=2), "train")
    while True:
        for number, _ in enumerate(loader):
            time.sleep((0.8 if number % 8 == 7 else 0.1) * UNIT)


def long_starts() -> None:
    """Workers that take long to start, each epoch anew."""
    options: dict[str, Any] = {"num_workers": 2, "worker_init_fn": slowly}
    loader = dlmon.name(DataLoader(Bursty(), batch_size=4, **options), "train")
    while True:
        loop(loader)


def streams() -> None:
    """A stream that some workers come to the end of early."""
    loader = DataLoader(Stream(), batch_size=4, num_workers=2, persistent_workers=True)
    dlmon.name(loader, "train")
    while True:
        loop(loader)


HEALTHY: dict[str, Callable[[], None]] = {
    "epochs": lambda: epochs(num_workers=2),
    "persistent": lambda: epochs(num_workers=2, persistent_workers=True),
    "inline": epochs,
    "unordered": lambda: epochs(num_workers=2, in_order=False),
    "forkserver": lambda: epochs(num_workers=1, multiprocessing_context="forkserver"),
    "pauses": long_pauses,
    "steps": long_steps,
    "starts": long_starts,
    "streams": streams,
}


# ── hung ─────────────────────────────────────────────────────────────────────────────────────────


def read() -> bytes:
    """Read what nobody writes."""
    reader, _writer = os.pipe()
    return os.read(reader, 1)


def deadlock() -> None:
    """Take a lock that a thread of the rank held when this worker was forked."""
    with LOCK:
        pass


def spin() -> None:
    """Compute for ever."""
    while True:
        pass


def unpicklable() -> object:
    """Give what cannot be pickled."""
    return lambda: None


def in_fetch(fault: Callable[[], Any], **options: Any) -> Callable[[], None]:
    """Return a job whose worker comes to `fault` after a while."""

    def job() -> None:
        threading.Thread(target=hold, daemon=True).start()
        dataset = Faulty(fault, at=4 * random.randrange(25, 50))
        options.setdefault("num_workers", 2)
        loop(dlmon.name(DataLoader(dataset, batch_size=4, **options), "train"))

    return job


def hold() -> None:
    """Hold the lock for ever."""
    with LOCK:
        time.sleep(FOREVER)


def first(batch: list[Any]) -> Any:
    """Collate nothing."""
    return batch[0]


def stuck_before_fetch() -> None:
    """Be stuck in `worker_init_fn`, in the second epoch."""
    loop(dlmon.name(DataLoader(Bursty(), batch_size=4, num_workers=2), "train"))
    threading.Thread(target=hold, daemon=True).start()
    time.sleep(0.1)
    say_hung()
    options: dict[str, Any] = {"num_workers": 2, "worker_init_fn": lambda _: deadlock()}
    loop(dlmon.name(DataLoader(Bursty(), batch_size=4, **options), "train"))


def stuck_in_step() -> None:
    """Have all the data and never come back from the step."""
    loader = dlmon.name(DataLoader(Bursty(10_000), batch_size=4, num_workers=2), "train")
    for number, _ in enumerate(loader):
        time.sleep(0.02 * UNIT)
        if number == 30:
            say_hung()
            time.sleep(FOREVER)


FAULTS: dict[str, tuple[Callable[[], None], str]] = {
    "stopped": (in_fetch(stop_oneself), "worker_stopped"),
    "read": (in_fetch(read), "worker_stuck_in_fetch"),
    "read-spawned": (in_fetch(read, multiprocessing_context="spawn"), "worker_stuck_in_fetch"),
    "deadlock": (in_fetch(deadlock), "worker_stuck_in_fetch"),
    "spin": (in_fetch(spin), "worker_stuck_in_fetch"),
    "gil": (in_fetch(hold_the_gil), "worker_stuck_in_fetch"),
    "unpicklable": (in_fetch(unpicklable, collate_fn=first), "batch_not_handed_over"),
    "init": (stuck_before_fetch, "worker_stuck_before_fetch"),
    "step": (stuck_in_step, "rank_stuck_in_step"),
    "next": (in_fetch(read, num_workers=0), "rank_stuck_in_next"),
}
"""What hangs, and what must be found."""

SLOWEST = "step"
"""Found last: a step is allowed what a checkpoint takes."""


def main() -> None:
    """Run the job that the command line names."""
    kind = sys.argv[1]
    random.seed(int(sys.argv[3]))
    torch.set_num_threads(1)
    (HEALTHY[kind] if kind in HEALTHY else FAULTS[kind][0])()


if __name__ == "__main__":
    main()
