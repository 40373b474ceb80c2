"""How the processes that write segments end: who, when, of what, and that each is counted once.

A worker that ends in order says goodbye. Of one that does not, the exit code tells where it can be
had (`dlmon.observe.statuses`), else what the rank's shim counts; a kill is put down to a lack of
memory if the cgroup's counter says so (`dlmon.observe.oom`). torch, and multiprocessing at the end
of a job, send workers SIGTERM that take too long: while a rank shuts down, and until it is clear
whether it does, that is no death.

Runs in: agent and the commands.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dlmon.observe.exitcounts import ABNORMAL, ExitCounts
from dlmon.observe.oom import OomKills
from dlmon.observe.parts import Clock, Part, text
from dlmon.observe.segments import Tracked
from dlmon.observe.snapshot import Ended
from dlmon.observe.statuses import ExitStatuses, Process
from dlmon.segment import exits, meaning
from dlmon.segment.cells import Cells
from dlmon.segment.layout import ERRORS, EXIT_REASONS, Phase

GRACE_SECONDS = 5.0
"""So long after a worker ended by SIGTERM, or nobody knows how, its loop must have gone on for that
to be a death and no part of a shutdown."""

MOST_UNSEEN = 32
"""Exits by a reason that one look believes a segment of which nothing was seen from here."""

_OFTEN, _SELDOM = 20, 30
"""How a process can be told about when it ends is looked up in the first looks at it, when its
cgroup may change, then in every nth."""

_WORKER_DIED = ERRORS.index("worker_died")


@dataclass(slots=True)
class _Writer:
    """One process that has attested to a slot.

    Attributes:
        slot: 0 is the rank's.
        generation: What it attested, 0 for a rank.
        process: None if it was never seen alive, or is not visible.
        looks: How often that process was seen alive.
        gone: CLOCK_MONOTONIC nanoseconds when it was first seen to be gone, 0 before.
        told: Dead workers that the loop had been told of when this one was last seen alive.
        orderly: It said goodbye.
        replaced: Another has its slot: what the cells say is not about it.
        reason: How it ended, "" in order, None while that is not settled.
        exitcode: None while it is not known.
    """

    slot: int
    generation: int
    process: Process | None = None
    looks: int = 0
    gone: int = 0
    told: int = 0
    orderly: bool = False
    replaced: bool = False
    reason: str | None = None
    exitcode: int | None = None


@dataclass(slots=True)
class _Book:
    """What is known of one segment's writers.

    Attributes:
        tracked, part, clock: The segment as it is at this look.
        rank: Its writer, and how it died, "" while it has not.
        workers: By slot, the newest each.
        replaced: Earlier ones that are not settled.
        counts: Their exits.
        lost: Reported without a reason while the rank lived: its shim may yet tell.
        seen_ns: CLOCK_MONOTONIC of the last look.
        told: Dead workers that the loop had been told of then.
        untold: Workers that died for sure, and that it will be told of, if it waits for a batch.
        last_ns: CLOCK_MONOTONIC of the last death noticed.
    """

    tracked: Tracked
    part: Part
    clock: Clock
    rank: _Writer = field(default_factory=lambda: _Writer(0, 0))
    rank_reason: str = ""
    workers: dict[int, _Writer] = field(default_factory=dict)
    replaced: list[_Writer] = field(default_factory=list)
    counts: ExitCounts = field(default_factory=ExitCounts)
    lost: list[Ended] = field(default_factory=list)
    seen_ns: int = 0
    told: int = 0
    untold: int = 0
    last_ns: int = 0

    @property
    def first(self) -> bool:
        """It was not looked at before."""
        return self.seen_ns == 0

    @property
    def rank_lives(self) -> bool:
        """Somebody holds the rank's byte."""
        return self.part.reading.rank_holder is not None

    @property
    def ordered(self) -> bool:
        """The rank has ended in order."""
        return not self.rank_lives and bool(self.part.reading.rank["goodbye"])

    @property
    def over(self) -> bool:
        """The loop does not iterate, or has its workers shut down."""
        return self.part.phase in (Phase.IDLE, Phase.TEARDOWN)

    def died_ns(self, writer: _Writer | None) -> int:
        """Return CLOCK_MONOTONIC of a death, as well as it is known; 0 if not at all."""
        if writer is not None and 0 < writer.gone < self.now_ns:
            return writer.gone
        recorded = self.part.reading.rank["last_abnormal_exit_ns"]
        if self.first:
            return max(0, recorded)
        return recorded if self.seen_ns < recorded <= self.clock.monotonic_ns else self.now_ns

    @property
    def now_ns(self) -> int:
        """CLOCK_MONOTONIC of this look."""
        return self.clock.monotonic_ns


class Endings:
    """Follows the writers of all segments.

    Attributes:
        ended: The workers noticed at the last look.
    """

    def __init__(self) -> None:
        self.ended: list[Ended] = []
        self._statuses = ExitStatuses()
        self._oom = OomKills()
        self._books: dict[str, _Book] = {}

    def look(self, seen: Iterable[tuple[Tracked, Part]], clock: Clock) -> None:
        """Take what was read of every segment, those read for the last time included."""
        self.ended = []
        books = {}
        for tracked, part in seen:
            book = self._books.get(part.reading.path) or _Book(tracked, part, clock)
            book.tracked, book.part, book.clock = tracked, part, clock
            books[part.reading.path] = book
            self._follow(book)
        self._oom.read()
        for book in books.values():
            self._settle(book)
        self._books = books
        self._keep()

    def onto(self, part: Part) -> Part:
        """Return a segment's part with what only an observer can know of its workers' exits."""
        book = self._books[part.reading.path]
        return replace(part, exits=dict(book.counts.corrections), last_abnormal_ns=book.last_ns)

    def rank_reason(self, paths: Iterable[str]) -> str:
        """Return how the rank died that has these segments, `lost` if that is not known."""
        reasons = {self._books[path].rank_reason for path in paths}
        return max(reasons - {"", "lost"}, key=EXIT_REASONS.index, default="lost")

    def close(self) -> None:
        """Let go of every process."""
        self._statuses.close()

    def _keep(self) -> None:
        """Follow those further that have not ended, or nobody knows yet how."""
        writers = [
            writer
            for book in self._books.values()
            for writer in (book.rank, *book.workers.values(), *book.replaced)
        ]
        wanted = {w.process for w in writers if w.process is not None and w.reason is None}
        self._statuses.keep(wanted)
        self._oom.keep(wanted)

    # ── who lives ────────────────────────────────────────────────────────────────────────────────

    def _follow(self, book: _Book) -> None:
        reading, now = book.part.reading, book.now_ns
        told, holder = _told(reading.rank), reading.rank_holder
        self._see(book.rank, holder is not None, holder, reading.info.get("start_ticks"), now)
        for worker, cells in enumerate(reading.workers):
            generation = cells["attested_generation"]
            if generation == 0:
                continue
            writer = book.workers.get(worker + 1)
            if writer is None or writer.generation != generation:
                if writer is not None and writer.reason is None:
                    _replace(book, writer, cells)
                writer = book.workers[worker + 1] = _Writer(worker + 1, generation)
            writer.orderly = cells["goodbye_generation"] == generation
            seen = book.part.workers[worker]
            lives = reading.worker_holders[worker] is not None or seen.lives
            self._see(writer, lives, seen.pid, cells["start_ticks"], now)
            if lives:
                writer.told = told

    def _see(self, writer: _Writer, lives: bool, pid: int | None, ticks: object, now: int) -> None:
        if not lives:
            writer.gone = writer.gone or now
            return
        writer.gone = 0
        if pid and type(ticks) is int:
            process = (pid, ticks)
            if writer.process != process:
                writer.process, writer.looks = process, 0
            writer.looks += 1
            if writer.looks <= _OFTEN or (writer.looks + pid) % _SELDOM == 0:
                self._statuses.follow(process)
                self._oom.follow(process)

    # ── how they ended ───────────────────────────────────────────────────────────────────────────

    def _settle(self, book: _Book) -> None:
        rank = book.part.reading.rank
        counted = dict(zip(EXIT_REASONS, rank.run("worker_exits"), strict=False))
        recent = rank["last_abnormal_exit_ns"] > rank["last_iteration_ns"]
        book.counts.take(counted, recent=recent)
        if book.rank.gone and book.rank.reason is None and not book.ordered:
            self._settle_rank(book)
        workers = (*book.replaced, *book.workers.values())
        gone = [writer for writer in workers if writer.gone and writer.reason is None]
        for writer in sorted(gone, key=self._may_be_ended):
            self._settle_worker(book, writer)
        book.replaced = [writer for writer in book.replaced if writer.reason is None]
        if not book.first:
            self._report_unclaimed(book)
        if not book.rank_lives:
            book.counts.corrections["lost"] += len(book.lost)
            book.lost = []
        told = _told(rank)
        book.untold = max(0, book.untold - (told - book.told))
        book.seen_ns, book.told = book.now_ns, told

    def _settle_rank(self, book: _Book) -> None:
        code = self._exitcode(book.rank)
        if code is None:
            book.rank_reason = "lost"
            return
        book.rank.reason = book.rank_reason = self._shown(exits.reason(code), book.rank.process)

    def _may_be_ended(self, writer: _Writer) -> bool:
        """Say if torch may have ended a worker, as it does once another one has died."""
        code = self._exitcode(writer)
        return code is not None and exits.reason(code) not in ABNORMAL

    def _settle_worker(self, book: _Book, writer: _Writer) -> None:
        """Settle a worker that is gone, if that can be."""
        rank = book.part.reading.rank
        code = writer.exitcode = self._exitcode(writer)
        reason = None if code is None else exits.reason(code)
        over = book.over or writer.generation != rank["generation"]
        if writer.orderly or (book.first and writer.generation != rank["generation"]):
            writer.reason = ""
        elif reason is None and (claimed := book.counts.claim()) is not None:
            shown = self._shown(claimed, writer.process)
            book.counts.rename(claimed, shown)
            self._report(book, writer, shown)
            book.untold += 1
        elif reason in ABNORMAL:
            self._count(book, writer, reason)
            book.untold += 1
        elif book.ordered:
            writer.reason = ""
        elif not book.rank_lives:
            if reason == "normal" or (over and book.first):
                writer.reason = ""
            else:
                self._count(book, writer, reason)  # nobody else will
        elif _told(rank) - writer.told > book.untold:
            self._count(book, writer, reason)
        elif over:
            writer.reason = ""  # torch has ended it
        elif book.now_ns - writer.gone >= GRACE_SECONDS * 1e9:
            self._count(book, writer, reason)

    def _count(self, book: _Book, writer: _Writer, reason: str | None) -> None:
        """Count and report a death; of one without a reason the shim of a living rank may tell."""
        shown = self._shown(reason or "lost", writer.process)
        if reason is not None or not book.rank_lives:
            book.counts.add(reason or "lost", shown, coming=book.rank_lives)
            self._report(book, writer, shown)
        else:
            self._report(book, writer, shown)
            book.lost.append(self.ended[-1])

    def _report_unclaimed(self, book: _Book) -> None:
        """Report what the shim counted and was not seen from here.

        It tells too of what was reported without a reason. One that ended with an error before it
        was a writer may have been interrupted, unless the loop was told of it.
        """
        told = _told(book.part.reading.rank) > book.told
        for reason in (*ABNORMAL, "sigterm"):
            for _ in range(min(book.counts.unclaimed[reason], MOST_UNSEEN)):
                process = next((w.process for w in book.workers.values() if w.process), None)
                shown = self._shown(reason, process or book.rank.process)
                book.counts.rename(reason, shown)
                if book.lost:
                    self.ended.append(replace(book.lost.pop(0), reason=shown))
                elif reason != "sigterm" and (told or reason != "error"):
                    self._report(book, None, shown)

    def _report(self, book: _Book, writer: _Writer | None, shown: str) -> None:
        if writer is not None:
            writer.reason = shown
        book.last_ns = max(book.last_ns, book.died_ns(writer))
        self.ended.append(_ended(book, writer, shown))

    def _exitcode(self, writer: _Writer) -> int | None:
        return None if writer.process is None else self._statuses.exitcode(writer.process)

    def _shown(self, reason: str, process: Process | None) -> str:
        """Return `oom_kill` for a kill that the cgroup's counter confirms."""
        if reason == "sigkill" and process is not None and self._oom.confirms(process):
            return "oom_kill"
        return reason


def rank_key(part: Part) -> str:
    """Return what tells a rank from any other, and is the same in all its segments."""
    info = part.reading.info
    return "/".join(text(info.get(key, "")) for key in ("run", "rank", "root"))


def _replace(book: _Book, writer: _Writer, cells: Cells) -> None:
    """Remember a worker that ended since the last look, and whose slot another has by now."""
    # If its successor has said goodbye too, nothing tells whether it did.
    said = (writer.generation, cells["attested_generation"])
    writer.replaced, writer.orderly = True, cells["goodbye_generation"] in said
    writer.gone = writer.gone or book.now_ns
    book.replaced.append(writer)


def _told(rank: Cells) -> int:
    """Return how often the loop was told that a worker died."""
    errors = rank.run("errors")
    return errors[_WORKER_DIED] if len(errors) > _WORKER_DIED else 0


def _ended(book: _Book, writer: _Writer | None, shown: str) -> Ended:
    reading, clock = book.part.reading, book.clock
    name = os.path.basename(reading.path)
    died = clock.moment(book.died_ns(writer))
    run, rank, loader = (text(reading.info.get(key, "")) for key in ("run", "rank", "loader"))
    if writer is None:
        total = sum(reading.rank.run("worker_exits"))
        key = f"{name}/{total}/{shown}"
        return Ended(key, rank_key(book.part), run, rank, loader, None, None, shown, died=died)
    worker = writer.slot - 1
    cells = reading.workers[worker]
    since = None if writer.replaced else meaning.fetching_since(cells)
    return Ended(
        key=f"{name}/{worker}/{writer.generation}",
        rank_key=rank_key(book.part),
        run=run,
        rank=rank,
        loader=loader,
        worker=worker,
        pid=writer.process[0] if writer.process else _pid(cells, writer),
        reason=shown,
        exitcode=writer.exitcode,
        died=died,
        fetching_since=None if since is None else clock.moment(since),
        fetch_index=None if since is None else meaning.fetch_index(cells),
        fetch_samples=0 if since is None else max(0, cells["samples_each"]),
        replaced=writer.replaced,
    )


def _pid(cells: Cells, writer: _Writer) -> int | None:
    """Return the pid of a worker that nobody has seen alive, as it said itself."""
    return None if writer.replaced or cells["pid"] <= 0 else cells["pid"]
