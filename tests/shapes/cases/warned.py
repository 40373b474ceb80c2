"""torch's warnings: as many, as often, with the same text, and blamed on the same line."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import warnings
from typing import Any

from torch.utils.data import DataLoader

from tests.shapes.datasets import SizedStream, loader_of
from tests.shapes.records import steady, warned
from tests.shapes.table import case, each


@case(each(workers=[0, 2], persistent=[False]))
def pinning_without_an_accelerator(workers: int, persistent: bool) -> object:
    loader = loader_of(3, num_workers=workers, pin_memory=True)
    return list(loader), list(loader)


@case(each(device=["", "cuda"]))
def a_deprecated_device(device: str) -> object:
    return list(loader_of(3, pin_memory=True, pin_memory_device=device))


@case(each(workers=[0, 2], batch=[1, 3, None]))
def a_stream_longer_than_it_says(workers: int, batch: int | None) -> object:
    loader = DataLoader(SizedStream(7, says=2), num_workers=workers, batch_size=batch)
    before = list(loader)
    length = len(loader)
    return length, before, list(loader)


@case()
def a_stream_longer_than_it_says_in_a_function_of_the_user() -> object:
    loader = DataLoader(SizedStream(4, says=2))
    iterator = iter(loader_with_length(loader))

    def step() -> Any:
        return next(iterator)

    return [step() for _ in range(4)]


def loader_with_length(loader: DataLoader[Any]) -> DataLoader[Any]:
    assert len(loader) == 2
    return loader


@case()
def more_workers_than_processors() -> object:
    loader_of(3, num_workers=1000)
    return None


@case(each(action=["error", "ignore", "default", "once", "module"]))
def filters(action: Any) -> object:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.filterwarnings(action, category=UserWarning)
        seen: list[object] = []
        for _ in range(2):
            loader = DataLoader(SizedStream(4, says=2), pin_memory=True)
            assert len(loader) == 2
            try:
                seen.append(list(loader))
            except UserWarning as error:
                seen.append(str(error))
    return seen, warned(caught)


@case(each(module=["torch.utils.data.dataloader", r"tests\.shapes.*", "dlmon.*"]))
def a_filter_by_module(module: str) -> object:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", module=module)
        loader = DataLoader(SizedStream(4, says=2), pin_memory=True)
        assert len(loader) == 2
        list(loader)
    return warned(caught)


SCRIPT = """
    from torch.utils.data import DataLoader, IterableDataset


    class Stream(IterableDataset):
        def __len__(self):
            return 2

        def __iter__(self):
            return iter(range(4))


    for _ in range(2):
        loader = DataLoader(Stream(), pin_memory=True)
        len(loader)
        for batch in loader:
            pass
    for batch in loader:
        pass
"""


@case()
def what_a_terminal_shows() -> object:
    """Under the default filters, each place is shown once, with its line."""
    script = textwrap.dedent(SCRIPT)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=os.environ
    )
    return run.returncode, steady(run.stdout), steady(run.stderr)
