"""The datasets, and what else cases of several modules use; here, so that it pickles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info


class Numbers(Dataset[torch.Tensor]):
    """As many tensors as asked for, each with its index."""

    def __init__(self, length: int = 23) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> torch.Tensor:
        return torch.as_tensor(index)


class Many(Numbers):
    """Numbers that are fetched a batch at once."""

    def __getitems__(self, indices: Sequence[int]) -> list[torch.Tensor]:
        return [torch.tensor(index) for index in indices]


class Stream(IterableDataset[torch.Tensor]):
    """Numbers in a stream, dealt out to the workers."""

    def __init__(self, length: int = 23) -> None:
        self.length = length

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker, workers = worker_of()
        return iter([torch.tensor(i) for i in range(worker, self.length, workers)])


class SizedStream(Stream):
    """A stream that says how long it is, or something else."""

    def __init__(self, length: int = 23, says: int | None = None) -> None:
        super().__init__(length)
        self.says = length if says is None else says

    def __len__(self) -> int:
        return self.says


KINDS: dict[str, type[Dataset[torch.Tensor]]] = {"map": Numbers, "many": Many, "stream": Stream}


class Calls(Dataset[int]):
    """Numbers whose every use is written down, where they are used in this process."""

    def __init__(self, length: int = 6) -> None:
        self.length = length
        self.calls: list[str] = []

    def __len__(self) -> int:
        self.calls.append("len")
        return self.length

    def __getitem__(self, index: int) -> int:
        self.calls.append(f"get {index}")
        return index


def worker_of() -> tuple[int, int]:
    """Return which worker this is, of how many; (0, 1) outside of workers."""
    info = get_worker_info()
    return (info.id, info.num_workers) if info is not None else (0, 1)


def loader_of(length: int = 23, **options: Any) -> DataLoader[Any]:
    """Return a loader of Numbers."""
    return DataLoader(Numbers(length), **options)


def loading(dataset: Any, **options: Any) -> DataLoader[Any]:
    """Return a loader of what torch takes, and its types do not."""
    return DataLoader(dataset, **options)


def as_they_are(samples: Any) -> Any:
    """Collate by doing nothing."""
    return samples


def size(batch: Any) -> int:
    """Return how many samples are in a batch of numbers."""
    return batch.numel() if isinstance(batch, torch.Tensor) else len(batch)


def shut(iterator: Any) -> None:
    """End an iterator's workers now.

    Where an error's traceback keeps the iterator, torch does that only when the garbage is
    collected, and then waits five seconds for each worker.
    """
    if hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
