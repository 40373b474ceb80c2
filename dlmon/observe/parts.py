"""One segment of a loader: what was read of it, and what is known beside it. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dlmon.catalog import LOADER_INFO, LOADER_LABELS
from dlmon.observe.usage import Usage
from dlmon.segment import meaning
from dlmon.segment.cells import Cells
from dlmon.segment.layout import HOOKS, Phase
from dlmon.segment.reader import Reading

NANOSECONDS = 1_000_000_000
CONFIG = LOADER_INFO.labels[len(LOADER_LABELS) :]
"""What the rank says of a loader's configuration."""

_OF_WORKERS = {"worker_loop", "dispatch", "shutdown"}


@dataclass(frozen=True, slots=True)
class Clock:
    """One moment on both clocks, to turn CLOCK_MONOTONIC nanoseconds into Unix time."""

    unix: float
    monotonic_ns: int

    def moment(self, nanoseconds: int) -> float | None:
        """Return a Unix time, None for 0, which means never."""
        if nanoseconds <= 0:
            return None
        return self.unix - (self.monotonic_ns - nanoseconds) / NANOSECONDS


@dataclass(slots=True)
class Seen:
    """What the operating system says of one worker.

    Attributes:
        lives: The process that last attested to the slot still lives, whatever became of its lock.
        stopped, zombie: Its process state.
        pid, cpu_seconds, resident_bytes, process_state, started: As in `Worker`.
        usage: What else it uses.
    """

    lives: bool = False
    stopped: bool = False
    zombie: bool = False
    pid: int | None = None
    cpu_seconds: float | None = None
    resident_bytes: int | None = None
    process_state: str | None = None
    started: float | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Part:
    """One segment of a loader, with what is known beside it.

    What follows from it for all of its workers is found out once.

    Attributes:
        reading: The segment.
        now_ns: Up to when open intervals count: the reading's time, or when its rank last lived.
        workers: One per worker slot.
        exits: What to add to the shim's `worker_exits`, by reason.
        last_abnormal_ns: When a worker was last noticed from outside to have died, 0 if never.
    """

    reading: Reading
    now_ns: int
    workers: tuple[Seen, ...]
    exits: Mapping[str, int] = field(default_factory=dict)
    last_abnormal_ns: int = 0

    @cached_property
    def rank(self) -> Cells:
        """The rank's slot."""
        return self.reading.rank

    @cached_property
    def phase(self) -> Phase:
        """What the iterator does."""
        return meaning.phase(self.rank)[0]

    @cached_property
    def groups(self) -> tuple[Cells, ...]:
        """The slots that fetch: the workers, or the rank itself without any."""
        return self.reading.workers or (self.rank,)

    @cached_property
    def consumed(self) -> int:
        """The tasks of this iteration whose batch was delivered, or that raised."""
        rank = self.rank
        return meaning.batches(rank) - rank["batches_before"] + rank["raised"]

    @cached_property
    def fetched(self) -> tuple[int, ...]:
        """The tasks of this iteration that each worker has done."""
        iteration = self.rank["iterations"]
        return tuple(meaning.fetched_in(cells, iteration) for cells in self.reading.workers)

    @cached_property
    def config(self) -> Mapping[str, str]:
        """The labels of `dlmon_loader_info`, "" where the rank did not say."""
        given = self.reading.info.get("config")
        said = given if isinstance(given, dict) else {}
        return {key: text(said.get(key, "")) for key in CONFIG}

    @cached_property
    def capacity(self) -> int:
        """num_workers x prefetch_factor, 0 without workers."""
        factor = self.config["prefetch_factor"]
        most = min(int(factor), 1 << 20) if factor.isdecimal() else 0
        return self.reading.layout.workers * most

    @cached_property
    def in_turn(self) -> bool:
        """Task t is worker t mod n's, and delivered after task t - 1."""
        return self.config["in_order"] == "true" and not self.reading.info.get("iterable")

    @cached_property
    def dispatched(self) -> int | None:
        """The tasks of this iteration, None where it is not plain who was given which.

        It is not with `in_order=False`, nor once the streams of some workers have ended.
        """
        plain = self.in_turn and self.phase is not Phase.IDLE
        return self.rank["dispatched"] if plain and "dispatch" not in self.missing_hooks else None

    @cached_property
    def missing_hooks(self) -> set[str]:
        """The hooks that its writer lacks; 0 is one just made, or one without the cell.

        Without workers there is none to be started, to be given tasks or to be shut down.
        """
        bits = self.rank["hooks"]
        without = {hook for i, hook in enumerate(HOOKS) if bits and not bits >> i & 1}
        return without if self.reading.layout.workers else without - _OF_WORKERS


def text(value: object) -> str:
    """Return a value of an info text as at most 1,000 printable characters.

    Nothing and what is not a plain value becomes "": nesting is as deep as its writer wants.
    """
    if value is None or isinstance(value, (dict, list)):
        return ""
    shown = str(value)[:1000]
    return shown if shown.isprintable() else "".join(map(_printable, shown))


def _printable(character: str) -> str:
    return character if character.isprintable() else "\ufffd"
