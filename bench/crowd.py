"""Processes for the agent to watch, in a process of its own: `python -m bench.crowd KIND N DIR`.

It prints one line when all are there and ends when its standard input does. They are real processes
whose locks the kernel attests, in segments without a DataLoader: nobody writes batches.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable

from dlmon.segment import files, layout, writer
from dlmon.shim import _run

PAGE = 4096
PAUSE_SECONDS = 0.0005
WORKER = layout.FIELDS[layout.Scope.WORKER]


def main() -> None:
    """Start what the arguments say and wait until standard input ends."""
    kind, number, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    {"slots": slots, "target": target}[kind](number, directory)


def slots(workers: int, directory: str) -> None:
    """Hold the slots of a segment with as many processes, which do nothing."""
    segment = _rank(workers, directory)
    children = [_fork(segment, slot, signal.pause) for slot in range(workers)]
    print("ready", flush=True)
    sys.stdin.read()
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.unlink(segment.path)


def target(megabytes: int, directory: str) -> None:
    """Have one worker with that much memory map and unmap a page again and again, and time it."""
    segment = _rank(1, directory)
    reading, writing = os.pipe()
    stop, told = os.pipe()
    child = _fork(segment, 0, lambda: _map(megabytes, stop, writing))
    with os.fdopen(reading) as lines:
        lines.readline()
        print("ready", flush=True)
        sys.stdin.read()
        os.write(told, b"x")
        print(lines.readline(), end="", flush=True)
    os.waitpid(child, 0)
    os.unlink(segment.path)


def _map(megabytes: int, stop: int, writing: int) -> None:
    kept = bytearray(b"x") * (megabytes * 1_000_000)
    os.set_blocking(stop, False)
    os.write(writing, b"ready\n")
    took = []
    while True:
        began = time.perf_counter_ns()
        mmap.mmap(-1, PAGE).close()
        took.append(time.perf_counter_ns() - began)
        time.sleep(PAUSE_SECONDS)
        if len(took) % 64 == 0:
            try:
                os.read(stop, 1)
            except BlockingIOError:
                continue
            break
    took.sort()
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
    answer = {n: took[min(len(took) - 1, int(s * len(took)))] / 1000 for n, s in shares.items()}
    os.write(
        writing, (json.dumps({**answer, "calls": len(took), "kept": len(kept)}) + "\n").encode()
    )


def _rank(workers: int, directory: str) -> writer.Segment:
    pid = os.getpid()
    ticks = _run.start_ticks(pid)
    root = f"{pid}-{ticks}"
    info = {"run": "bench", "rank": str(pid), "root": root, "pid": pid, "start_ticks": ticks}
    config = {"num_workers": str(workers), "prefetch_factor": "2", "in_order": "true"}
    chosen = files.choose(directory)
    segment = writer.create(chosen, {**info, "loader": "train", "config": config}, workers)
    for name in ("generation", "iterations"):
        segment.cells[layout.cell_index(0, name)] = 1
    segment.cells[layout.cell_index(0, "last_iteration_ns")] = time.monotonic_ns()
    return segment


def _fork(segment: writer.Segment, slot: int, do: Callable[[], object]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        own = writer.attach(segment.path, slot, 1)
        assert own is not None
        values = {"pid": os.getpid(), "start_ticks": _run.start_ticks(os.getpid())}
        for name, value in {**values, "attested_generation": 1}.items():
            own.cells[layout.cell_index(slot + 1, name)] = value
        do()
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
