"""One job that does a little of everything a DataLoader can, and what is true of it.

It runs on any torch since 2.0, and says what its loops were given; `TRUTH` is what they must have
been given, and what must have been counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

JOB = """
    import json
    import logging
    import os
    import signal
    import warnings

    import dlmon

    logging.basicConfig()
    warnings.simplefilter("ignore")  # what an older release asks of this binary is deprecated
    dlmon.instrument()

    import torch
    import torch.utils.data.dataloader
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

    DELIVERED = {}
    HELD = []


    class Map(Dataset):
        def __init__(self, fault="", begun=-1, resume=-1):
            self.fault = fault
            self.begun = begun
            self.resume = resume

        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index == 5 and self.fault == "raise":
                raise ValueError("a bad sample")
            if index == 5 and self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if index == 5 and self.fault == "wait":
                os.write(self.begun, b".")
                os.read(self.resume, 1)
            return torch.tensor(index)


    class Stream(IterableDataset):  # worker 0 of 2 has one batch, worker 1 three and a half
        def __iter__(self):
            info = get_worker_info()
            shards = {0: range(2), 1: range(2, 9)}
            yield from shards[info.id] if info and info.num_workers == 2 else range(9)


    def numbers(batch):
        return batch.tolist() if isinstance(batch, torch.Tensor) else batch


    def step(iterator, got):
        # Append what one next() gives, and say if there can be more.
        try:
            got.append(numbers(next(iterator)))
        except StopIteration:
            return False
        except Exception as error:
            got.append(type(error).__name__)
            return isinstance(error, ValueError)  # the dataset's: the others can still come
        return True


    def loop(name, loader, *, epochs=1, first=None, keep=None, begun=None):
        dlmon.name(loader, name)
        DELIVERED[name] = []
        for epoch in range(epochs):
            got = []
            iterator = iter(loader)
            if begun is not None:
                os.read(begun, 1)
            while step(iterator, got) and (epoch or len(got) != first):
                pass
            DELIVERED[name].append(got)
            if keep is not None:
                keep.append(iterator)


    def usual(workers, **options):
        options.update(num_workers=workers, batch_size=2)
        loop(f"map {workers}", DataLoader(Map(), **options), epochs=2)
        loop(f"stream {workers}", DataLoader(Stream(), **options), epochs=2)


    def faults():
        loop("raise 0", DataLoader(Map("raise"), batch_size=2))
        loop("raise 2", DataLoader(Map("raise"), batch_size=2, num_workers=2))
        loop("kill", DataLoader(Map("kill"), batch_size=10, num_workers=1))
        (begun, begins), (resume, resumes) = os.pipe(), os.pipe()
        waits = DataLoader(Map("wait", begins, resume), batch_size=10, num_workers=1, timeout=1)
        kept = []
        # Kept, else torch would wait 5 s for the worker's end. It is in its fetch by then.
        loop("timeout", waits, keep=kept, begun=begun)
        os.write(resumes, b".")
        kept.clear()  # the cycle that a worker's exception leaves holds this frame


    def persistent(name, method, **options):
        loader = DataLoader(
            Map(), batch_size=2, num_workers=2, persistent_workers=True,
            multiprocessing_context=method, **options,
        )
        loop(name, loader, epochs=3, first=2)


    def main(scenarios):
        for scenario in scenarios:
            if scenario == "usual":
                usual(0)
                usual(2)
                loop("single", DataLoader(Map(), batch_size=None))
            elif scenario == "faults":
                faults()
            elif scenario == "held":
                options = {"batch_size": 2, "num_workers": 2}
                loop("held map", DataLoader(Map(), **options), first=2, keep=HELD)
                loop("held stream", DataLoader(Stream(), **options), first=3, keep=HELD)
            else:
                persistent(f"persistent {scenario}", scenario)
        facts = {"delivered": DELIVERED, "file": torch.utils.data.dataloader.__file__}
        print("FACTS", json.dumps(facts), flush=True)
        input()
        HELD.clear()
        print("FACTS {}", flush=True)
        input()


    if __name__ == "__main__":
        main(SCENARIOS)
"""


def source(*scenarios: str) -> str:
    """Return the job that does these: usual, faults, held, fork, spawn, forkserver."""
    return JOB.replace("SCENARIOS", repr(scenarios))


@dataclass(frozen=True)
class Truth:
    """What is true of one loader of the job.

    Attributes:
        epochs: What each iteration's loop was given: batches, and the name of what ended it.
        workers: Its num_workers.
        starts: Worker processes started.
        samples: In all batches fetched.
        error: The kind of error that reached the loop.
        exits: How its workers ended, once they have.
        held: While the iterator is held: tasks that can still come back (of the stream one is its
            worker's end), and batches fetched, not delivered.
        discarded: Batches fetched and never delivered, once the iterator is gone.
    """

    epochs: list[list[object]]
    workers: int = 0
    starts: int = 0
    samples: int = 0
    error: str = ""
    exits: dict[str, int] = field(default_factory=dict)
    held: tuple[int, int] = (0, 0)
    discarded: int = 0

    @property
    def batches(self) -> int:
        """The batches delivered."""
        return sum(isinstance(batch, (list, int)) for epoch in self.epochs for batch in epoch)


PAIRS: list[object] = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
SHORT: list[object] = [*PAIRS[:4], [8]]
FAULTY: list[object] = [[0, 1], [2, 3], "ValueError", [6, 7], [8, 9]]
_BROKEN = Truth([PAIRS[:2], PAIRS, PAIRS], 2, 2, 30, exits={"normal": 2}, discarded=3)
_ENDED = {"normal": 2}

TRUTH = {
    "usual": {
        "map 0": Truth([PAIRS, PAIRS], samples=20),
        "stream 0": Truth([SHORT, SHORT], samples=18),
        "map 2": Truth([PAIRS, PAIRS], 2, 4, 20, exits={"normal": 4}),
        "stream 2": Truth([SHORT, SHORT], 2, 4, 18, exits={"normal": 4}),
        "single": Truth([list(range(10))], samples=10),
    },
    "faults": {
        "raise 0": Truth([FAULTY], samples=8, error="fetch"),
        "raise 2": Truth([FAULTY], 2, 2, 8, error="fetch", exits=_ENDED),
        "kill": Truth([["*"]], 1, 1, error="worker_died", exits={"sigkill": 1}),
        "timeout": Truth(
            [["RuntimeError"]], 1, 1, 10, error="timeout", exits={"normal": 1}, discarded=1
        ),
    },
    "held": {
        "held map": Truth([PAIRS[:2]], 2, 2, 10, exits=_ENDED, held=(3, 3), discarded=3),
        "held stream": Truth([SHORT[:3]], 2, 2, 9, exits=_ENDED, held=(3, 2), discarded=2),
    },
    "fork": {"persistent fork": _BROKEN},
    "spawn": {"persistent spawn": _BROKEN},
    "forkserver": {"persistent forkserver": _BROKEN},
}
