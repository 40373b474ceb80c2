"""Every private name of torch and torchdata that dlmon uses, and the releases that have them.

A name that is missing, or that takes other arguments than it did, costs what hangs on it
(its hook is shown as not active), never an error. What was read and run was read and run by
`python -m tools.torch_releases` and tests/shim/test_torch_releases.py.
"""

from __future__ import annotations

from typing import NamedTuple

DATALOADER = "torch.utils.data.dataloader"
WORKER = "torch.utils.data._utils.worker"
FETCH = "torch.utils.data._utils.fetch"
PIN_MEMORY = "torch.utils.data._utils.pin_memory"
TORCHDATA = "torchdata.stateful_dataloader.stateful_dataloader"

OF_ALL = (DATALOADER, WORKER, FETCH)
"""Modules whose hooks serve every iterator, unless torchdata has its own."""

MODULES = (DATALOADER, TORCHDATA)
"""Where the hooks are, to be waited for; importing the first brings all of torch's own."""

WORKER_LOOP = "_worker_loop"

DYNAMO_DISABLE = "_torchdynamo_disable"
"""With this attribute torch.compile calls a function and does not trace into it, as it does with
torch's own data loading."""

READ = ("2.0", "2.15")
"""The first and the last release of torch in which all of torch's names were read, alike."""

RUN = ("2.13",)
"""Releases with which the tests were run."""

RUN_IN_PART = (
    *("2.0", "2.1", "2.2", "2.3", "2.4", "2.5", "2.6", "2.7", "2.8", "2.9", "2.10", "2.11"),
    *("2.12", "2.14", "2.15"),
)
"""Releases whose `torch.utils.data` was run, on the binary of one of RUN."""


class Place(NamedTuple):
    """A function that is hooked.

    Attributes:
        hook: Which of `layout.HOOKS` it is for.
        module: Where it is defined, or, if it is a global, looked up.
        owner: The class, "" for a global of the module.
        name: Its own.
        takes: Its parameters, "..." for any further ones.
    """

    hook: str
    module: str
    owner: str
    name: str
    takes: tuple[str, ...]


class Name(NamedTuple):
    """What is read or recognised without being hooked.

    Attributes:
        hook: Which of `layout.HOOKS` does not hold without it; "" for what only sorts errors.
        module: Where it is.
        owner: The class that has the attribute, or the function with the message or call.
        name: An attribute, a function that is called, or how a message begins.
        use: What for.
    """

    hook: str
    module: str
    owner: str
    name: str
    use: str


_ITERATOR = "_BaseDataLoaderIter"
_WORKERS = "_MultiProcessingDataLoaderIter"
_STATEFUL_WORKERS = "_StatefulMultiProcessingDataLoaderIter"
_SINGLE = "_SingleProcessDataLoaderIter"
_FETCHER = "_BaseDatasetFetcher"

PLACES = (
    Place("build", DATALOADER, "DataLoader", "__init__", ("self", "dataset", "...")),
    Place("iterator", DATALOADER, _ITERATOR, "__init__", ("self", "loader", "...")),
    Place("iterator", DATALOADER, _ITERATOR, "_reset", ("self", "...")),
    Place("iterator", DATALOADER, _ITERATOR, "__next__", ("self",)),
    Place("shutdown", DATALOADER, _WORKERS, "_shutdown_workers", ("self",)),
    Place("worker_loop", WORKER, "", WORKER_LOOP, ("...", "worker_id", "...")),
    Place("map_fetch", FETCH, "_MapDatasetFetcher", "fetch", ("self", "index")),
    Place("iterable_fetch", FETCH, "_IterableDatasetFetcher", "fetch", ("self", "index")),
    Place("build", TORCHDATA, "StatefulDataLoader", "__init__", ("self", "dataset", "...")),
    Place("shutdown", TORCHDATA, _STATEFUL_WORKERS, "_shutdown_workers", ("self",)),
    Place("worker_loop", TORCHDATA, "", WORKER_LOOP, ("...", "worker_id", "...")),
)

NAMES = (
    Name("map_fetch", DATALOADER, _SINGLE, "_dataset_fetcher", "whose fetch it is"),
    Name("map_fetch", FETCH, _FETCHER, "auto_collation", "samples per batch"),
    Name("map_fetch", FETCH, _FETCHER, "collate_fn", "samples per batch"),
    Name("map_fetch", FETCH, _FETCHER, "dataset", "samples per batch"),
    Name("iterable_fetch", DATALOADER, _SINGLE, "_dataset_fetcher", "whose fetch it is"),
    Name("iterable_fetch", FETCH, _FETCHER, "auto_collation", "samples per batch"),
    Name("iterable_fetch", FETCH, _FETCHER, "collate_fn", "samples per batch"),
    Name("shutdown", DATALOADER, _WORKERS, "_workers", "workers started, exit codes"),
    Name("dispatch", DATALOADER, _WORKERS, "_send_idx", "outstanding batches"),
    Name("dispatch", DATALOADER, _WORKERS, "_task_info", "outstanding at a stream's end"),
    Name("dispatch", DATALOADER, _WORKERS, "_workers_status", "outstanding at a stream's end"),
)

CALLS = (
    Name("worker_loop", DATALOADER, f"{_WORKERS}.__init__", WORKER_LOOP, "looked up at each start"),
    Name("map_fetch", WORKER, WORKER_LOOP, "fetch", "a worker's own fetches"),
    Name("iterable_fetch", WORKER, WORKER_LOOP, "fetch", "a worker's own fetches"),
    Name("", DATALOADER, f"{_WORKERS}._get_data", "_try_get_data", "errors while waiting"),
    Name("", DATALOADER, f"{_WORKERS}._process_data", "reraise", "errors of a worker's fetch"),
)

MESSAGES = (
    Name("", DATALOADER, f"{_WORKERS}._get_data", "DataLoader timed out after ", "timeout"),
    Name("", DATALOADER, f"{_WORKERS}._get_data", "Pin memory thread exited ", "pin_memory"),
    Name("", DATALOADER, f"{_WORKERS}._try_get_data", "DataLoader worker (pid", "worker_died"),
    Name("", PIN_MEMORY, "_pin_memory_loop", "in pin memory thread ", "pin_memory"),
)
