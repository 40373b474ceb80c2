"""docs/torch-versions.md, from the tables of torch's private names."""

from __future__ import annotations

from collections.abc import Iterator

from dlmon.catalog import METRICS, SHIM_HOOK_ACTIVE
from dlmon.gen.markdown import code, document, head, table
from dlmon.segment.layout import HOOKS
from dlmon.shim import _torch_names
from dlmon.shim._torch_names import Name, Place

_COSTS = {
    "build": "a loader is named after the place where it is first iterated",
    "iterator": "nothing is observed; the job's log says so, once",
}
"""What a missing hook costs beside metrics."""

_DIFFERENCES = """
- 2.5 and newer give worker processes and the pin-memory thread names of their own.
- 2.6 and newer have `in_order=False`; before, batches always come in the order of their indices.
- Up to 2.12 torch does not wait for a worker that it had to terminate (one that is stuck for 5 s
  while the iterator is shut down): `dlmon_loader_worker_exits_total` counts it when its loader
  iterates again.
- 2.14 and newer give `_worker_loop` a list that holds the dataset; dlmon does not touch it.
"""


def render() -> str:
    """Return the document."""
    lines = head("Torch versions", "dlmon/shim/_torch_names.py")
    lines += [
        "dlmon needs no particular torch: it finds what it hooks by name, in the torch that a job",
        "has imported. A name that is missing there, or that takes other arguments, costs the",
        f"metrics below and nothing else: `{SHIM_HOOK_ACTIVE.name}` is 0, those are absent,",
        "and the job is not affected.",
        "",
        *_releases(),
        *_hooks(),
        *_private_names(),
    ]
    return document(lines)


def _releases() -> list[str]:
    first, last = _torch_names.READ
    whole, part = _torch_names.RUN, _torch_names.RUN_IN_PART
    rows = [
        (f"{first} to {last}", "read: every name below is in the sources, and fits"),
        (", ".join(part), f"run in part: their `torch.utils.data`, on the binary of {whole[-1]}"),
        (", ".join(whole), "run: all tests"),
    ]
    return [
        "## What was tried",
        "",
        *table(("torch", "what was done"), rows),
        "It is the newest patch release of each. `torch.utils.data` is Python, so that another",
        "release's can be imported in place of the installed one: map and iterable datasets, with",
        "and without workers, fork and spawn, persistent, with a break, an exception, a killed",
        "worker and a timeout are then compared with what the loop was given. The other release's",
        "compiled code is not tried by that. `make slow` repeats it all, where the sources can be",
        "fetched (`python -m tools.torch_releases --fetch`).",
        "",
        "What differs between them, and matters here:",
        *_DIFFERENCES.splitlines(),
        "",
    ]


def _hooks() -> list[str]:
    rows = [(code(hook), "; ".join(_cost(hook))) for hook in HOOKS]
    return [
        "## What a missing hook costs",
        "",
        *table(("hook", "absent without it"), rows),
    ]


def _cost(hook: str) -> Iterator[str]:
    if hook in _COSTS:
        yield _COSTS[hook]
    metrics = [code(metric.name) for metric in METRICS if hook in metric.needs]
    if metrics:
        yield ", ".join(metrics)


def _private_names() -> list[str]:
    places = [
        (code(place.hook), code(_path(place)), code(f"({', '.join(place.takes)})"))
        for place in _torch_names.PLACES
    ]
    others = (*_torch_names.NAMES, *_torch_names.CALLS)
    names = [(code(name.hook), code(_path(name)), name.use) for name in others]
    messages = [
        (code(message.use), code(_path(message._replace(name=""))), code(message.name))
        for message in _torch_names.MESSAGES
    ]
    return [
        "## The names",
        "",
        "Functions that are hooked; `...` stands for any further arguments.",
        "",
        *table(("hook", "function", "arguments"), places),
        "What is read or relied on. Names without a hook only tell errors of workers from others.",
        "",
        *table(("hook", "name", "for"), names),
        "How errors are recognised; one that is not is of kind `other`.",
        "",
        *table(("error", "raised in", "its text begins with"), messages),
    ]


def _path(entry: Place | Name) -> str:
    """Return where a name is, from torch.utils.data or torchdata on."""
    parts = (entry.module.removeprefix("torch.utils.data."), entry.owner, entry.name)
    return ".".join(part for part in parts if part)
