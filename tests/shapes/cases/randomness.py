"""Random numbers: none is drawn by dlmon, in no process.

After every case the state of all generators is compared as well (`records.randomness`).
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, get_worker_info

from tests.shapes.datasets import as_they_are, loader_of
from tests.shapes.table import case, each, possible


class Draws(Dataset[Any]):
    """Samples that draw from every generator of their process."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        info = get_worker_info()
        drawn = float(torch.rand(())), random.random(), float(np.random.rand())
        return index, torch.initial_seed(), info.seed if info else None, *drawn


@case(each(workers=[0, 1, 3], persistent=[False, True], seeded=[False, True], where=possible))
def drawn_in_datasets(workers: int, persistent: bool, seeded: bool) -> object:
    loader = DataLoader(
        Draws(),
        num_workers=workers,
        persistent_workers=persistent,
        generator=torch.Generator().manual_seed(5) if seeded else None,
        collate_fn=as_they_are,
    )
    return list(loader), list(loader), float(torch.rand(()))


@case(each(workers=[0, 2], seeded=[False, True], batch=[3, None]))
def a_shuffled_order(workers: int, seeded: bool, batch: int | None) -> object:
    generator = torch.Generator().manual_seed(5) if seeded else None
    options = {"num_workers": workers, "batch_size": batch, "generator": generator}
    loader = loader_of(12, shuffle=True, **options)
    epochs = [list(loader) for _ in range(3)]
    return epochs, generator.get_state() if generator is not None else None


@case(each(workers=[0, 2]))
def a_generator_of_the_sampler(workers: int) -> object:
    generator = torch.Generator().manual_seed(5)
    sampler = RandomSampler(range(8), generator=generator)
    loader = loader_of(8, sampler=sampler, num_workers=workers)
    epochs = [list(loader) for _ in range(2)]
    return epochs, generator.get_state()


@case(each(workers=[0, 1]))
def numbers_drawn_around_every_step(workers: int) -> object:
    loader = loader_of(4, num_workers=workers)
    drawn = [float(torch.rand(()))]
    iterator = iter(loader)
    drawn.append(float(torch.rand(())))
    for _ in iterator:
        drawn += [float(torch.rand(())), random.random(), float(np.random.rand())]
    return [*drawn, float(torch.rand(()))]


@case(each(workers=[0, 2]))
def seeds_of_iterators(workers: int) -> object:
    loader = loader_of(4, num_workers=workers)
    return [iter(loader)._base_seed for _ in range(3)]


@case(each(workers=[0, 2]))
def a_forked_generator(workers: int) -> object:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        inside = list(DataLoader(Draws(), num_workers=workers, collate_fn=as_they_are))
    return inside, float(torch.rand(()))
