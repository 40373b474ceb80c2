"""What is known of a loader and its workers when it is judged who is hung."""

from __future__ import annotations

from dataclasses import dataclass

from dlmon.analysis.stalls import Lasted
from dlmon.observe.snapshot import Loader, Rank, Worker, WorkerState
from dlmon.segment.layout import Phase

STOPPED = ("T", "t")
IN_NEXT = (Phase.STARTUP, Phase.WAIT, Phase.TEARDOWN)


def halted(rank: Rank) -> bool:
    """Say if a training process is stopped, or frozen with all that is in its cgroup."""
    return rank.process.frozen or rank.process.state in STOPPED


@dataclass(slots=True)
class WorkerFacts:
    """For how long a worker has been what it is; what does not apply has lasted 0 seconds."""

    worker: Worker
    fetching: Lasted
    owing: Lasted
    handing: Lasted
    stopped: Lasted

    @property
    def longest(self) -> float:
        """Seconds of what has lasted longest."""
        return max(
            self.fetching.seconds, self.owing.seconds, self.handing.seconds, self.stopped.seconds
        )

    @property
    def suspect(self) -> bool:
        """The loop may be waiting for it."""
        worker = self.worker
        return worker.up is False or bool(
            worker.up
            and (
                worker.process_state in STOPPED
                or worker.fetching_since is not None
                or worker.state is WorkerState.HANDING_OVER
                or worker.owed
            )
        )


@dataclass(frozen=True, slots=True)
class LoaderFacts:
    """What is known of one loader.

    Attributes:
        rank, loader: Whose facts these are.
        time: Unix time of the snapshot.
        phase: For how long its phase has lasted.
        workers: One per slot.
        pin_thread_dead: There was one, and there are fewer than there must be.
        elsewhere: The loop is in `next()` and does not wait for a batch.
    """

    rank: Rank
    loader: Loader
    time: float
    phase: Lasted
    workers: tuple[WorkerFacts, ...]
    pin_thread_dead: bool = False
    elsewhere: bool = False

    @property
    def waits(self) -> bool:
        """The loop is blocked in this loader."""
        return self.loader.phase in IN_NEXT

    @property
    def in_order(self) -> bool:
        """It is known which worker owes which batch."""
        return any(facts.worker.owed is not None for facts in self.workers)
