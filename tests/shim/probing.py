"""Loaders that see, from where torch calls into them, how deep in dlmon's calls they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from tests.shim.patching import depth

NUMBERS = list(range(8))


def numbers() -> Any:
    """Return a dataset: torch accepts a list, its types do not."""
    return NUMBERS


def epoch(**options: Any) -> list[int]:
    """Return what a new loader of NUMBERS delivers."""
    return [int(batch) for batch in DataLoader(numbers(), **options)]


class Probe(Dataset[int]):
    """A dataset, and batch sampler of itself, that sees how deep in dlmon's calls it is called."""

    def __init__(self) -> None:
        self.built = 0
        self.begun: list[int] = []

    def __len__(self) -> int:
        self.built = depth()
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        self.begun.append(depth())
        return iter([[0], [1], [2]])

    def __getitem__(self, index: int) -> int:
        return depth()


def depths() -> list[int]:
    """Return how many calls of dlmon's are around torch's, in the rank and in a worker."""
    probe: Any = Probe()
    DataLoader(probe, shuffle=True)  # builds a sampler, which asks for the length
    built = probe.built
    batches = list(DataLoader(probe, batch_sampler=probe, collate_fn=max))
    batches += list(DataLoader(probe, batch_sampler=probe, collate_fn=max, num_workers=1))
    return [built, *probe.begun, *batches]
