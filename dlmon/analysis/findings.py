"""Every finding there is, written once: `dlmon_finding` and docs/findings.md are made from it."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.Enum):
    """How grave a finding is, the gravest first."""

    CRITICAL = "critical"
    """A job makes no progress, has lost something, or soon will."""
    WARNING = "warning"
    """Something is wrong that a job survives so far."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of finding.

    Attributes:
        name: The label `finding`.
        severity: Fixed per finding.
        meaning: What it says, one sentence.
        signals: What shows it, and what tells it from its like.
        advice: What to do.
    """

    name: str
    severity: Severity
    meaning: str
    signals: str
    advice: str


KINDS: tuple[Kind, ...] = (
    Kind(
        name="worker_stuck_in_fetch",
        severity=Severity.CRITICAL,
        meaning=(
            "A worker has been fetching one batch for far longer than its loader's batches take."
        ),
        signals=(
            "An open fetch, older than the hang threshold of its loader: the largest of "
            "`hangs.floor_seconds`, 200 usual fetches and 16 times the longest one, at most "
            "`hangs.ceiling_seconds`; ten floors for the first fetch of a worker and for the "
            "first 16 of a loader. The process runs or sleeps."
        ),
        advice=(
            "`dlmon stacks` shows the line: a read without a timeout, a deadlock, an endless "
            "loop in the dataset. The sample indices say which samples."
        ),
    ),
    Kind(
        name="worker_blocked_in_kernel",
        severity=Severity.CRITICAL,
        meaning=(
            "A worker fetches one batch and cannot be interrupted: it waits in the kernel, as "
            "a rule for storage."
        ),
        signals=(
            "As worker_stuck_in_fetch, with process state D at most looks and at the last ones; "
            "`wchan` and the system call say where."
        ),
        advice=(
            "Look at the file system that it reads from; a mount that does not answer blocks "
            "every process that touches it."
        ),
    ),
    Kind(
        name="worker_stuck_before_fetch",
        severity=Severity.CRITICAL,
        meaning=("A worker owes a batch and has not begun to fetch it."),
        signals=(
            "Tasks given and not done, no open fetch and no progress for longer than the hang "
            "threshold: the worker is still starting, in `worker_init_fn`, waits for its queue, "
            "or for the interpreter, which a thread of its own holds. Known where tasks are given "
            "in turn: not for an IterableDataset nor with `in_order=False`."
        ),
        advice=(
            "`dlmon stacks` shows where. After fork a lock that another thread held then is "
            'held for ever: use `multiprocessing_context="spawn"`, or start no thread before '
            "the workers."
        ),
    ),
    Kind(
        name="worker_stopped",
        severity=Severity.CRITICAL,
        meaning=("A worker owes a batch and is stopped, by a signal or a debugger."),
        signals=(
            "Process state T or t for longer than `hangs.floor_seconds`, with tasks given and not "
            "done or while the loop waits."
        ),
        advice=("`kill -CONT` its pid; find out what stopped it."),
    ),
    Kind(
        name="batch_not_handed_over",
        severity=Severity.CRITICAL,
        meaning=("A batch is ready in a worker, the loop waits for it, and it does not arrive."),
        signals=(
            "The next batch in order is fetched and collated, its worker lives, no worker is "
            "stopped or dead, and the loop has been in `next()` for longer than the hang "
            "threshold. With an IterableDataset or `in_order=False`: every batch asked for is "
            "fetched and none arrives; the worker is then named only if there is one."
        ),
        advice=(
            "The batch may not be picklable (the worker's stderr has the error of its feeder "
            "thread), code in C may hold the worker's GIL, without which it neither pickles a "
            "batch nor gives away the tensors in one that it has sent, or the pipe may be stuck. "
            "`dlmon stacks` shows what the worker does, and which thread holds the GIL."
        ),
    ),
    Kind(
        name="pin_memory_thread_dead",
        severity=Severity.CRITICAL,
        meaning=(
            "Batches are ready, the loop waits, and the thread that would pin and pass them "
            "on is gone."
        ),
        signals=(
            "`pin_memory=True`, ready batches, the loop in `next()` for longer than the hang "
            "threshold, fewer threads `pt_data_pin` in the rank than loaders that pin, where "
            "there was one before (torch 2.6 or newer)."
        ),
        advice=("Its error is in the job's stderr; end the job, it will not go on."),
    ),
    Kind(
        name="rank_stuck_in_next",
        severity=Severity.CRITICAL,
        meaning=(
            "The loop has been waiting for a batch for far longer than usual, and no worker "
            "is to blame."
        ),
        signals=(
            "The loop in `next()`, or in the beginning or end of an iteration, for longer than "
            "the hang threshold and 16 times the longest wait (for a first batch ten floors and 16 "
            "usual startups); every worker has done what it was given, none is dead, and none of "
            "the findings about workers or the pin-memory thread."
        ),
        advice=(
            "`dlmon stacks` of the rank: the sampler, a dataset with `num_workers=0`, or a "
            "wrapper around the loader."
        ),
    ),
    Kind(
        name="rank_stuck_in_step",
        severity=Severity.CRITICAL,
        meaning=(
            "The loop has been working on one batch for far longer than usual, with data "
            "ready: the loader is not to blame."
        ),
        signals=(
            "An open step longer than ten times `hangs.floor_seconds`, 20 usual steps and 16 times "
            "the longest, at most `hangs.ceiling_seconds`; all batches asked for are ready; no "
            "other loader of the rank iterates and no rank of the run waits for data. A "
            "checkpoint or an evaluation without a DataLoader looks the same."
        ),
        advice=(
            "`dlmon stacks` of the rank: a collective that a peer does not enter, a "
            "checkpoint to a stuck mount, an endless loop."
        ),
    ),
    Kind(
        name="ranks_wait_for_rank",
        severity=Severity.CRITICAL,
        meaning=(
            "The other ranks of a run are in their step, as in a collective, and wait for "
            "this one, which waits for data."
        ),
        signals=(
            "One rank of a run in `next()`, all others on this node in a step, each for longer "
            "than the hang threshold."
        ),
        advice=("Look at what is found about this rank's loader; the others go on by themselves."),
    ),
    Kind(
        name="rank_stopped",
        severity=Severity.WARNING,
        meaning=(
            "A training process is stopped, by a signal, a debugger or its scheduler, or its "
            "cgroup is frozen, as by `docker pause`."
        ),
        signals=(
            "Process state T or t of the rank, or its cgroup frozen (`cgroup.events`, with v1 "
            "`freezer.state`; its processes are in state D or S then), for longer than "
            "`hangs.floor_seconds`; nothing else is then said of it and its workers, and the time "
            "does not count against them."
        ),
        advice=(
            "`kill -CONT` its pid, or thaw its cgroup (`docker unpause`), unless a scheduler "
            "suspended the job on purpose."
        ),
    ),
    Kind(
        name="worker_died",
        severity=Severity.CRITICAL,
        meaning=("A worker ended in another way than in order; torch raises in the loop."),
        signals=(
            "It said no goodbye and its lock is free; the reason is of "
            "`dlmon_loader_worker_exits_total`. `oom_kill` is a SIGKILL that the OOM counter of "
            "its cgroup confirms, `lost` one whose exit code nobody could tell. SIGTERM of a "
            "shutdown, Ctrl-C and an exception that the loop gets are no deaths. It holds for at "
            "least 30 s, until its loader has delivered a batch of a later iteration, at most "
            "`keep.dead_seconds`."
        ),
        advice=(
            "`dlmon ps --dead` and `/api/v1/deaths` say what it did last, on which samples, and "
            "the last minutes of its memory. `oom_kill`: less memory per worker, or fewer "
            "workers. `sigbus`: `/dev/shm` is full. `sigsegv`: `python -X faulthandler`, and the "
            "samples it was at."
        ),
    ),
    Kind(
        name="rank_died",
        severity=Severity.CRITICAL,
        meaning=("A training process ended without saying goodbye."),
        signals=(
            "Its lock is free and no goodbye was written: it was killed, or crashed. An uncaught "
            "exception is an orderly end, and status 0, as of `os._exit(0)`, is no crash where the "
            "exit code can be had (docs/deaths.md). It holds for `keep.dead_seconds`, longer while "
            "workers of it live on, or until another process is this rank of this run; for 30 s at "
            "least."
        ),
        advice=(
            "`dlmon ps --dead` says what it and its workers did last. `sigterm` as its reason "
            "means that somebody ended it, as `scancel`, a scheduler at the time limit or the "
            "deletion of a pod do: look there, not in the job."
        ),
    ),
    Kind(
        name="memory_limit_soon",
        severity=Severity.CRITICAL,
        meaning=(
            "A cgroup will reach its memory limit within the hour at the rate at which it has "
            "been growing, or nearly has reached it; the kernel then kills a process in it."
        ),
        signals=(
            "Anonymous and shared memory of the level whose limit is reached first, never page "
            "cache: steady growth by a robust fit over five to ten minutes and more than half "
            "of the limit in use, or 95 % in use."
        ),
        advice=("Fewer workers or less memory in each; see what is found about the workers."),
    ),
    Kind(
        name="shm_nearly_full",
        severity=Severity.CRITICAL,
        meaning=(
            "The /dev/shm through which workers hand over batches is nearly full; workers "
            "will die of bus errors."
        ),
        signals=(
            "More than 90 % used as the rank sees it, until less than 86 %; the evidence says "
            "how much the rank and each worker have mapped, a batch in both of them counting "
            "in both."
        ),
        advice=("A larger `--shm-size` or `emptyDir`, fewer batches prefetched, smaller batches."),
    ),
    Kind(
        name="worker_memory_leak",
        severity=Severity.WARNING,
        meaning=("Workers' own memory grows steadily, and not because shared pages are copied."),
        signals=(
            "Anonymous memory, of which a copy of a shared page takes no more than the page "
            "itself did, grows by a robust fit from a process's second epoch on, for a whole "
            "one, or for half an hour: by 32 MB and 2 % at least, at its end at half the rate "
            "of its beginning, and beyond what chance makes. Processes that live for one epoch "
            "each are compared at the same age. Caches that fill in a first epoch, warm-up and "
            "mapped files are not reported."
        ),
        advice=("Look for what the dataset keeps: caches, lists appended to, open files."),
    ),
    Kind(
        name="copy_on_write_erosion",
        severity=Severity.WARNING,
        meaning=(
            "Workers come to have copies of memory that they shared with the training process."
        ),
        signals=(
            "Since a worker's first scan, memory that it shared has become its own (USS grows "
            "while RSS does not), since reference counts are written to objects: 100 MB and "
            "10 % of its memory at least, which garbage collection alone does not do."
        ),
        advice=(
            "Keep samples' descriptions in an array or tensor instead of a list or dict of objects."
        ),
    ),
    Kind(
        name="open_files_nearly_exhausted",
        severity=Severity.WARNING,
        meaning=("A process has nearly as many files open as it may have."),
        signals=("More than 90 % of its soft limit, until less than 86 %."),
        advice=(
            '`torch.multiprocessing.set_sharing_strategy("file_system")`, a higher `ulimit '
            "-n`, or a leak of files in the dataset."
        ),
    ),
    Kind(
        name="orphan_workers",
        severity=Severity.WARNING,
        meaning=("Workers live on although their training process is dead; they hold memory."),
        signals=(
            "Locks of workers held, the rank's free, for 10 s: most workers notice within 5 s and "
            "end. Those of a forkserver do not, nor does one that is stopped or hung. Those of "
            "earlier processes of this rank count too, whoever is this rank by now."
        ),
        advice=("Kill them: the finding's evidence lists each with pid, state and memory."),
    ),
)
"""Every kind, in the order of the document."""

FINDINGS = {kind.name: kind for kind in KINDS}
