"""TraceML beside a bare loop, in a process of its own.

Once started it cannot be taken out of a process: its threads sample and send for as long as that
lives. So a process of its own has it for all blocks, bare ones too; what is switched on and off is
what it does for a batch, its patch of `DataLoader.__iter__` and the `trace_step` that its users
write. What its threads do later with what was recorded comes after a block and is not measured.

As with `traceml run`, what it sends to is a process beside the job: `traceml serve`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import importlib.util
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.data import DataLoader

from bench.plan import MEASUREMENTS, TRACEML_SECONDS, Measurement, Options, measure
from bench.progress import Progress
from bench.recorded import NotRecordedError, require
from bench.results import Row
from bench.variants import NULL, Batches, Variant, Watch
from bench.workloads import Size

NAME = "TraceML"
NOT_INSTALLED = "not installed: pip install traceml-ai"
ABOUT = "traceml.init(), and trace_step(model) in the loop; in a process of its own"
_PACKAGE = "traceml_ai"
_PATIENCE_SECONDS = 60

LONGEST = 1000
"""Batches that are iterated before TraceML's queues are emptied: they hold 2,048 and then drop."""


def installed() -> bool:
    """Return whether this interpreter has TraceML."""
    return importlib.util.find_spec(_PACKAGE) is not None


def rows(names: Sequence[str], options: Options) -> dict[str, list[Row]]:
    """Measure TraceML in the measurements of those names that have a loop.

    Raises:
        NotRecordedError: That process failed, for a reason it has written to standard error.
    """
    looped = [name for name in names if MEASUREMENTS[name].workload is not None]
    asked = json.dumps({"names": looped, "options": dataclasses.asdict(options)})
    with tempfile.TemporaryDirectory(prefix="dlmon-bench-traceml-") as directory:
        answer = Path(directory, "answer")
        command = [sys.executable, "-m", __name__, asked, directory, str(answer)]
        status = subprocess.run(command, stdout=sys.stderr, check=False).returncode
        if status != 0:
            raise NotRecordedError(f"its process ended with status {status}, for the reason above")
        answered: dict[str, list[dict[str, Any]]] = json.loads(answer.read_text())
    return {name: [Row.from_json(row) for row in found] for name, found in answered.items()}


def main() -> None:
    """Measure, as the process of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m {__name__}")
    parser.add_argument("asked", type=json.loads)
    parser.add_argument("directory")
    parser.add_argument("answer", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    options = Options(**args.asked["options"])
    progress = Progress(sys.stderr, NAME)
    with _started(args.directory) as variant:
        found = {
            name: measure(_with(variant, MEASUREMENTS[name]), options, args.directory, progress)
            for name in args.asked["names"]
        }
    answer = {name: [dataclasses.asdict(row) for row in rows] for name, rows in found.items()}
    args.answer.write_text(json.dumps(answer))


def _with(variant: Variant, measurement: Measurement) -> Measurement:
    """Return the measurement of this variant, in blocks that its queues can hold."""
    full = measurement.size
    size = Size(min(full.warm_up, LONGEST), min(full.batches, LONGEST))
    return dataclasses.replace(
        measurement, size=size, seconds=TRACEML_SECONDS, variants=(NULL, variant)
    )


@contextmanager
def _started(directory: str) -> Iterator[Variant]:
    """Start TraceML as its documentation says, and give the variant that uses it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve = ["serve", "--logs-dir", directory, "--run-name", "bench", "--aggregator-port"]
    command = [sys.executable, "-m", f"{_PACKAGE}.launcher.cli", *serve, str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        original = DataLoader.__iter__
        traceml = importlib.import_module(_PACKAGE)
        traceml.init(
            mode="auto",
            logs_dir=directory,
            session_id="bench",
            aggregator_port=port,
            connect_timeout_sec=_PATIENCE_SECONDS,
            on_missing_aggregator="raise",
        )
        patched = DataLoader.__iter__
        model = torch.nn.Linear(1, 1)
        place = functools.partial(_traced, patched, functools.partial(traceml.trace_step, model))
        with patch.object(DataLoader, "__iter__", original):
            yield Variant(NAME, ABOUT, place)
    finally:
        server.kill()  # its summary of the run would take minutes, and nobody reads it
        server.wait()


@contextmanager
def _traced(patched: Any, trace_step: Any, _size: Size, _directory: str) -> Iterator[Watch]:
    state = importlib.import_module(f"{_PACKAGE}.runtime.state").get_trace_session_state()
    events = importlib.import_module(f"{_PACKAGE}.instrumentation.step_events")
    before = state.step
    waits = 0

    def empty() -> None:
        """Take what was recorded and what its own thread has not taken yet."""
        nonlocal waits
        events.drain_step_memory_events()
        for batch in events.drain_step_time_batches():
            waits += any(event.name.endswith("dataloader_next") for event in batch.events)

    def loop(iterator: Batches, batches: int) -> None:
        empty()
        for _ in range(batches):
            next(iterator)
            with trace_step():
                pass

    def check(_iterator: Batches, delivered: int, _fetched: int) -> None:
        empty()
        require(NAME, "steps", state.step - before, delivered)
        if not waits:
            raise NotRecordedError(f"{NAME} timed no next(): its patch of DataLoader is not active")

    with patch.object(DataLoader, "__iter__", patched):
        yield Watch(loop, check)


if __name__ == "__main__":
    main()
