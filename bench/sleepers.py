"""A real DataLoader with many workers that sleep: `python -m bench.sleepers N DIR`.

It prints one line when all workers have delivered and ends when its standard input does.
"""

from __future__ import annotations

import select
import sys
import time

from torch.utils.data import DataLoader, Dataset

import dlmon


class Sleeps(Dataset[int]):
    """Samples that take a second each and no CPU time."""

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> int:
        time.sleep(1.0)
        return index


def main() -> None:
    """Iterate until standard input ends."""
    workers, directory = int(sys.argv[1]), sys.argv[2]
    dlmon.instrument(run="bench", dir=directory)
    for number, _ in enumerate(DataLoader(Sleeps(), batch_size=1, num_workers=workers), 1):
        if number == workers:
            print("ready", flush=True)
        if number >= workers and select.select([sys.stdin], [], [], 0)[0]:
            return


if __name__ == "__main__":
    main()
