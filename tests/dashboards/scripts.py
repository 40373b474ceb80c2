"""The jobs of the dashboards' world, and the agent that is in trouble."""

from __future__ import annotations

HEALTHY = """
    import mmap
    import os
    import time

    import dlmon

    rank = int(os.environ["RANK"])
    dlmon.instrument(run="vision", rank=rank)

    import torch
    from torch.utils.data import DataLoader, Dataset, get_worker_info


    class Slow(Dataset):
        def __len__(self):
            return 160 * (2 - rank)  # seconds: long enough for PSS and USS of its workers

        def __getitem__(self, index):
            worker = get_worker_info().id  # one of rank 1's is slower than the other: it reorders
            time.sleep(0.06 if rank and worker else 0.02)
            with open(__file__) as file:  # from storage, by a major page fault
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as page:
                    page[0]
            return torch.zeros(1000)


    if __name__ == "__main__":
        train = dlmon.name(DataLoader(Slow(), batch_size=2, num_workers=2), "train")
        val = dlmon.name(DataLoader(list(range(5))), "val")
        while True:
            for batch in train:
                time.sleep(0.01 if rank else 0.05)  # rank 0's workers are ready before it is
            for batch in val:
                pass
"""

FAULTY = """
    import signal
    import time

    import dlmon

    dlmon.instrument(run="faulty", rank=0)

    import torch
    from torch.utils.data import DataLoader, Dataset, get_worker_info


    class Bad(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            if index == 5:
                raise ValueError("a sample that cannot be read")
            return index


    class Fine(Dataset):
        def __len__(self):
            return 2000

        def __getitem__(self, index):
            time.sleep(0.01)
            return index


    class Stuck(Fine):
        def __getitem__(self, index):
            time.sleep(1.3)
            return index


    if __name__ == "__main__":
        left = dlmon.name(DataLoader(Fine(), num_workers=2), "left")
        killed = dlmon.name(DataLoader(Fine(), num_workers=1), "killed")
        bad = dlmon.name(DataLoader(Bad(), num_workers=1), "bad")
        late = dlmon.name(DataLoader(Stuck(), num_workers=1, timeout=1), "late")
        try:
            try:
                while True:
                    for batch in killed:
                        pass
            except (RuntimeError, OSError, EOFError) as error:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                print(error, flush=True)  # never iterated again: so its finding stays
        except RuntimeError as error:  # torch's handler of SIGCHLD, when there was an error already
            print(error, flush=True)
        while True:
            for number, batch in enumerate(left):
                if number == 3:
                    break
            for loader in (bad, late):
                try:
                    for batch in loader:
                        pass
                except (ValueError, RuntimeError) as error:
                    print(type(error), flush=True)
"""

GONE = """
    import time

    from torch.utils.data._utils import fetch

    del fetch._IterableDatasetFetcher.fetch  # a torch that lacks one of the places to hook into

    import dlmon

    dlmon.instrument(run="gone", rank=0)

    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        for batch in dlmon.name(DataLoader(list(range(10**6)), num_workers=1), "train"):
            time.sleep(0.01)
"""

UNOBSERVED = """
    import os
    import time

    from torch.utils.data import DataLoader, Dataset


    class Cold(Dataset):
        def __len__(self):
            return 10**6

        def __getitem__(self, index):
            with open(__file__, "rb") as file:  # from storage, not from memory
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                return len(file.read())


    if __name__ == "__main__":
        for batch in DataLoader(Cold(), num_workers=1):
            time.sleep(0.1)
"""

STRANGE = """
    import time

    import dlmon

    dlmon.instrument(run="strange", rank=0)

    from torch.utils.data import DataLoader, Dataset


    class Strange(Exception):
        @property
        def __class__(self):
            raise ValueError("says nothing of itself, and the shim asks")


    class Odd(Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index:
                raise Strange
            return index


    if __name__ == "__main__":
        loaders = [dlmon.name(DataLoader(Odd()), name) for name in ("first", "second")]
        while True:
            for loader in loaders:
                try:
                    for batch in loader:
                        time.sleep(0.05)
                except Strange:
                    pass
"""

TROUBLED_AGENT = """
    import itertools
    import sys

    from dlmon.cli import main
    from dlmon.observe.observer import Observer

    look, number = Observer.observe, itertools.count(1)


    def observe(self):
        if next(number) % 5 == 0:
            raise OSError("a look that fails")
        return look(self)


    Observer.observe = observe
    sys.exit(main(["agent", *sys.argv[1:]]))
"""
"""The agent, but that every fifth look fails: no fault from outside may do that to it."""
