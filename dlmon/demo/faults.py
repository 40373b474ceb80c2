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


_OF_A_HANG = (
    'dlmon_loader_time_seconds_total{phase="wait"}',
    "dlmon_loader_batches_total",
    "time() - dlmon_worker_last_progress_timestamp_seconds",
)

_NOTHING = "here: nothing more, no error and no message; a DataLoader by default has no timeout"
_WAITS = "loader train: in phase wait, no more batches, ever more time in wait"
_STACKS = "in the same terminal as `dlmon ps`, `dlmon stacks` with its PID: that line once more"
_DEAD = "in the same terminal as `dlmon ps`, `dlmon ps --dead`: what the worker did last"


def _death(happens: str, how: str, reason: str) -> Fault:
    return Fault(
        happens,
        (
            "here: the RuntimeError that torch raises in the loop, then new workers and epoch 3",
            f"the finding worker_died: which worker, that it {how}, and at which samples",
            f"loader train: one exit by {reason} and when it was, which stay",
            "loader train: new workers started, batches fetched and never delivered",
            _DEAD,
        ),
        (
            'dlmon_finding{finding="worker_died"}',
            f'dlmon_loader_worker_exits_total{{reason="{reason}"}}',
            "dlmon_loader_last_abnormal_exit_timestamp_seconds",
            "dlmon_loader_discarded_batches_total",
        ),
        1,
    )


FAULTS = {
    "deadlock": Fault(
        "In epoch 2 a worker of loader train takes a lock that the training process held when it "
        "forked, as a thread of a library may have.",
        (
            _NOTHING,
            _WAITS,
            "worker 0: fetching, then hung: the finding worker_stuck_in_fetch, in the lock's line",
            _STACKS,
        ),
        ('dlmon_finding{finding="worker_stuck_in_fetch"}', *_OF_A_HANG),
        1,
    ),
    "erode": Fault(
        "From epoch 2 on the workers of loader train look at objects in a list of the training "
        "process; each look writes a reference count, and the page is copied.",
        (
            "here: nothing, as long as there is memory",
            "workers of train: their own memory (USS) grows, while their RSS does not",
            "with 100 MB of copies the finding copy_on_write_erosion: how much, and what to do",
            "it ends when each worker has a copy of all, 300 MB or less",
        ),
        (
            "dlmon_worker_unique_memory_bytes",
            "dlmon_worker_resident_memory_bytes",
            'dlmon_finding{finding="copy_on_write_erosion"}',
        ),
        1,
    ),
    "exception": Fault(
        "In epoch 2 the dataset of loader train raises, as at a broken file.",
        (
            "here: the OSError with the worker's traceback, then new workers and epoch 3",
            "loader train: one error by fetch, which stays; batches fetched and never delivered",
            "no finding: nobody died, and the loop has been told",
        ),
        (
            'dlmon_loader_errors_total{error="fetch"}',
            "dlmon_loader_discarded_batches_total",
        ),
        1,
    ),
    "exit": _death(
        "In epoch 2 a worker of loader train ends without a word, by os._exit(3).",
        "exited with status 3",
        "error",
    ),
    "gil": Fault(
        "In epoch 2 a worker of loader train is in C code that keeps the interpreter for ever.",
        (
            _NOTHING,
            _WAITS,
            "worker 0: fetching, then hung: the finding worker_stuck_in_fetch, in a call of C code",
            _STACKS,
        ),
        ('dlmon_finding{finding="worker_stuck_in_fetch"}', *_OF_A_HANG),
        1,
    ),
    "hang": Fault(
        "In epoch 2 a worker of loader train blocks for ever in a read, as on a dead mount.",
        (
            _NOTHING,
            _WAITS,
            "worker 0: fetching, then hung: the page says in which line, and at which samples",
            "the others: idle, with batches ready that are held for order behind worker 0's",
            _STACKS,
        ),
        ('dlmon_finding{finding="worker_stuck_in_fetch"}', *_OF_A_HANG),
        1,
    ),
    "kill": _death(
        "In epoch 2 a worker of loader train is killed, as when memory runs out.",
        "was killed (SIGKILL)",
        "sigkill",
    ),
    "leak": Fault(
        "From epoch 2 on the workers of loader train keep a small copy of every image.",
        (
            "here: nothing, as long as there is memory",
            "workers of train: their memory grows by some MB a second and never goes down",
            "after a whole epoch of that the finding worker_memory_leak, with the rate",
            "it ends at 1.5 GB in all, or at a quarter of the free memory if that is less",
        ),
        (
            "dlmon_worker_unique_memory_bytes",
            'dlmon_finding{finding="worker_memory_leak"}',
        ),
        1,
    ),
    "segfault": _death(
        "In epoch 2 a worker of loader train crashes, reading from address 0.",
        "crashed (SIGSEGV)",
        "sigsegv",
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
    "stop": Fault(
        "In epoch 2 a worker of loader train is stopped by SIGSTOP, as by a debugger.",
        (
            _NOTHING,
            _WAITS,
            "worker 0: stopped, and the finding worker_stopped, with its pid",
            "in another terminal: `kill -CONT` that pid, and training goes on",
        ),
        ('dlmon_finding{finding="worker_stopped"}', *_OF_A_HANG),
        1,
    ),
    "unpicklable": Fault(
        "In epoch 2 a worker of loader train makes batches that cannot be pickled.",
        (
            "here: the error of the worker's feeder thread for each such batch, and nothing more",
            _WAITS,
            "worker 0: hung, although it has fetched all: the finding batch_not_handed_over",
        ),
        ('dlmon_finding{finding="batch_not_handed_over"}', *_OF_A_HANG),
        1,
    ),
}
"""Every fault by its name on the command line."""
