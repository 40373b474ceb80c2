"""The faults that `dlmon demo` can show: their names, and what is said about them."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_EPOCH = 2
"""The epoch in which a fault begins: the first one shows how things look without it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is said of a fault.

    Attributes:
        happens: What goes wrong in the job, one sentence.
        signs: What can be seen of it, on the screen and on the page, one line each.
        metrics: Expressions for Prometheus that show it.
        workers: The least number of workers that can show it.
    """

    happens: str
    signs: tuple[str, ...]
    metrics: tuple[str, ...]
    workers: int


FAULTS = {
    "hang": Fault(
        "In epoch 2 a worker of loader train blocks for ever in a read, as on a dead mount.",
        (
            "here: nothing more, no error and no message; a DataLoader by default has no timeout",
            "loader train: in phase wait, no more batches, ever more time in wait",
            "worker 0: fetching for ever, its last progress ever longer ago",
            "the others: idle, with batches ready that are held for order behind worker 0's",
            "after a minute: worker_stuck_in_fetch at the top, with the line that blocks; hung",
        ),
        (
            'dlmon_loader_time_seconds_total{phase="wait"}',
            "dlmon_loader_batches_total",
            "time() - dlmon_worker_last_progress_timestamp_seconds",
        ),
        1,
    ),
    "kill": Fault(
        "In epoch 2 a worker of loader train is killed, as when memory runs out.",
        (
            "here: the RuntimeError that torch raises in the loop, then new workers and epoch 3",
            "loader train: one exit by sigkill and when it was, which stay",
            "loader train: new workers started, batches fetched and never delivered",
        ),
        (
            'dlmon_loader_worker_exits_total{reason="sigkill"}',
            "dlmon_loader_last_abnormal_exit_timestamp_seconds",
            "dlmon_loader_discarded_batches_total",
        ),
        1,
    ),
    "leak": Fault(
        "From epoch 2 on the workers of loader train keep a small copy of every image.",
        (
            "here: nothing, as long as there is memory",
            "workers of train: their memory grows by some MB a second and never goes down",
            "it ends at 1.5 GB in all, or at a quarter of the free memory if that is less",
        ),
        ("dlmon_worker_resident_memory_bytes",),
        1,
    ),
    "slow-worker": Fault(
        "From epoch 2 on worker 0 of loader train takes some ten times as long, as on a slow disk.",
        (
            "here: far fewer images/s, although only one worker is slow",
            "loader train: waits again and again while ready batches are held for order",
            "worker 0: fetching all the time; the others: idle for most of it",
        ),
        (
            "rate(dlmon_worker_fetch_seconds_total[1m])",
            "dlmon_loader_reorder_batches",
        ),
        2,
    ),
    "starve": Fault(
        "From epoch 2 on the augmentation takes far longer than the step.",
        (
            "here: far fewer images/s",
            "loader train: waits for most of the time, hardly a batch is ready",
            "workers of train: all of them fetching all the time",
        ),
        (
            "dlmon_loader_time_seconds_total, wait / (wait + step)",
            "dlmon_loader_ready_batches",
            "rate(dlmon_worker_cpu_seconds_total[1m])",
        ),
        0,
    ),
}
"""Every fault by its name on the command line."""
