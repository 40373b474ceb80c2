"""Keep the last words of ranks and workers, and say who died and who was left behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dlmon.agent.history import History
from dlmon.agent.seldom import Seldom
from dlmon.analysis import deaths, orphans
from dlmon.analysis.deaths import Death, Memory
from dlmon.observe.snapshot import Ended, Finding, Loader, Rank, Snapshot, Worker

MOST = 200
"""Deaths that are kept, the newest ones."""

LAST_SECONDS = 300.0
LAST_POINTS = 60
"""Of the memory of who died: how far back, and in how many points."""

HOLD_SECONDS = 30.0
"""So long a death is told at least, for whoever looks now and then, also if the job goes on."""

logger = logging.getLogger(__name__)

_Labels = tuple[str, str, str, str]
_Place = tuple[str, str, int]
"""`Rank.key`, loader and slot."""


class Keeping(Protocol):
    """Where deaths are kept for later: `dlmon.agent.archive.Archive`, or what a test has."""

    def write(self, death: Death) -> None:
        """Keep a death, or what is known better of one that was kept."""

    def read(self) -> list[Death] | None:
        """Return what an earlier agent kept, the oldest first; None while that is not known."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A worker's death as a finding.

    Attributes:
        death: What happened.
        noticed: Unix time.
        epochs: Iterations that its loader had begun by then.
    """

    death: Death
    noticed: float
    epochs: int


@dataclass(frozen=True, slots=True)
class _Gone:
    """A rank's death, remembered for as long as the rank is shown, whatever else is kept.

    So each is told and written once, also where more have died than are kept.

    Attributes:
        noticed: Unix time.
        reason, sentence: As in `Death`.
        news: It is no death of before this agent began that another process has made up for.
    """

    noticed: float
    reason: str
    sentence: str
    news: bool


class Deaths:
    """A watcher that finds the dead, and remembers them.

    Args:
        history: What memory was; it must have looked before.
        keep_seconds: How long a death is kept.
        evidence: Where deaths are kept on disk, None for nowhere.
    """

    def __init__(self, history: History, keep_seconds: float, evidence: Keeping | None) -> None:
        self._history = history
        self._keep_seconds = keep_seconds
        self._evidence = evidence
        self._kept: dict[str, tuple[float, Death]] = {}
        self._told: dict[_Labels, _Told] = {}
        self._workers: dict[_Place, tuple[Rank, Loader, Worker]] = {}
        self._ranks: dict[str, Rank] = {}
        self._gone: dict[str, _Gone] = {}
        self._told_ranks: dict[tuple[str, str], str] = {}
        self._looked = math.inf
        self._complaints = Seldom()
        self._restored = False
        self._listed: tuple[Death, ...] = ()

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Take in who has died since the last look, and return what is wrong."""
        self._restore(snapshot.time)
        everyone = (*snapshot.ranks, *snapshot.superseded)
        for ended in snapshot.ended:
            with self._alone(ended.key):
                self._worker(ended, snapshot)
        for ranks, shown in ((snapshot.ranks, True), (snapshot.superseded, False)):
            for rank in ranks:
                if not rank.up:
                    with self._alone(rank.key):
                        self._rank(rank, snapshot, shown=shown)
        self._remember(everyone)
        self._forget(snapshot)
        self._looked = snapshot.time
        return snapshot, (
            *self._dead_workers(),
            *self._dead_ranks(snapshot),
            *orphans.findings(snapshot),
        )

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Have a death whose last words cannot be had cost no other, and a line of the log."""
        try:
            yield
        except Exception:  # whatever it is, others died too
            if self._complaints.due():
                logger.exception("no last words of %s", key)

    def known(self) -> list[Death]:
        """Return what is kept, the newest first. Any thread may ask."""
        return list(self._listed)

    # ── who died ─────────────────────────────────────────────────────────────────────────────────

    def _worker(self, ended: Ended, snapshot: Snapshot) -> None:
        ranks = (*snapshot.ranks, *snapshot.superseded)
        rank = next((one for one in ranks if one.key == ended.rank_key), None)
        loaders = rank.loaders if rank is not None else ()
        loader = next((one for one in loaders if one.name == ended.loader), None)
        worker = None
        if ended.worker is not None:
            place = (ended.rank_key, ended.loader, ended.worker)
            rank, loader, worker = self._workers.get(place, (rank, loader, None))
            if worker is not None and worker.pid != ended.pid:
                worker = None  # a successor
        since = worker.started if worker is not None and worker.started else None
        subject = (ended.run, ended.rank, ended.loader, str(ended.worker))
        memory = self._memory(subject, since, snapshot.time) if worker is not None else {}
        death = self._keep(deaths.of_worker(ended, rank, loader, worker, memory), snapshot.time)
        labels = (ended.run, ended.rank, ended.loader, death.worker)
        if labels in self._told and self._told[labels].death.key != death.key:
            logger.warning("again: %s", death.sentence)
        self._told[labels] = _Told(death, snapshot.time, loader.epochs if loader else 0)

    def _rank(self, rank: Rank, snapshot: Snapshot, *, shown: bool) -> None:
        told = self._gone.get(rank.key)
        if told is not None and (told.reason != "lost" or rank.died_of == "lost"):
            return
        noticed, death = self._kept.get(rank.key, (rank.died or snapshot.time, None))
        last = self._ranks.get(rank.key)
        if death is None or (death.reason == "lost" and rank.died_of != "lost"):
            subject = (rank.run, rank.rank, "", "")
            memory = self._memory(subject, rank.started, snapshot.time) if last else {}
            death = self._keep(deaths.of_rank(rank, last, memory), noticed)
        news = shown or last is not None or rank.started >= self._looked
        news = news if told is None else told.news
        self._gone[rank.key] = _Gone(noticed, death.reason, death.sentence, news)

    def _keep(self, death: Death, noticed: float) -> Death:
        """Keep a death, unless it is known as well already, and return what is known."""
        noticed, before = self._kept.get(death.key, (noticed, None))
        if before is not None and death.reason in (before.reason, "lost"):
            return before
        self._kept[death.key] = (noticed, death)
        if self._evidence is not None:
            self._evidence.write(death)
        return death

    def _memory(
        self, subject: tuple[str, str, str, str], since: float | None, now: float
    ) -> Memory:
        """Return the last points of a subject in which it had memory: who is ending has none."""
        points = self._history.points(subject, max(since or 0.0, now - LAST_SECONDS)) or {}
        names = [name for name in points if name == "time" or name.endswith("_bytes")]
        rows = [i for i, value in enumerate(points.get("resident_bytes", ())) if value]
        step = max(1, -(-len(rows) // LAST_POINTS))
        rows = rows[::-1][::step][::-1]  # the last one stays
        return {name: [points[name][i] for i in rows] for name in names} if rows else {}

    # ── who lived ────────────────────────────────────────────────────────────────────────────────

    def _remember(self, ranks: Sequence[Rank]) -> None:
        """Remember each as it was seen last while it lived."""
        for rank in ranks:
            if rank.up:
                self._ranks[rank.key] = rank
            for loader in rank.loaders:
                for worker in loader.workers:
                    if worker.up and worker.resident_bytes != 0:  # else it is ending already
                        place = (rank.key, loader.name, worker.slot)
                        self._workers[place] = (rank, loader, worker)

    def _forget(self, snapshot: Snapshot) -> None:
        now = snapshot.time
        here = {rank.key for rank in (*snapshot.ranks, *snapshot.superseded)}
        for place in [p for p in self._workers if p[0] not in here]:
            del self._workers[place]
        for key in self._ranks.keys() - here:
            del self._ranks[key]
        for key in self._gone.keys() - here:
            del self._gone[key]
        kept = sorted(self._kept.items(), key=lambda item: -item[1][0])
        fresh = [item for item in kept[:MOST] if now - item[1][0] <= self._keep_seconds]
        self._kept = dict(fresh)
        self._listed = tuple(death for _, (_, death) in fresh)
        loaders = {(r.run, r.rank, one.name): one for r in snapshot.ranks for one in r.loaders}
        for labels, told in list(self._told.items()):
            loader = loaders.get(labels[:3])
            if now - told.noticed > self._keep_seconds or _goes_on(told, loader, now):
                del self._told[labels]

    def _restore(self, now: float) -> None:
        """Have back what an earlier agent has kept on disk, as soon as it is known."""
        if self._restored or self._evidence is None:
            return
        found = self._evidence.read()
        self._restored = found is not None
        for death in found or ():
            self._kept.setdefault(death.key, (min(now, death.died or now), death))

    # ── findings ─────────────────────────────────────────────────────────────────────────────────

    def _dead_workers(self) -> Iterator[Finding]:
        for (run, rank, loader, worker), told in self._told.items():
            death = told.death
            since = death.died or told.noticed
            evidence = {"reason": death.reason}
            yield Finding("worker_died", run, rank, loader, worker, since, death.sentence, evidence)

    def _dead_ranks(self, snapshot: Snapshot) -> Iterator[Finding]:
        """Yield one for each run and rank: of whom is shown, else of who was replaced just now.

        `os._exit(0)` says no goodbye, but is no crash.
        """
        earlier = sorted(snapshot.superseded, key=lambda rank: -(rank.died or 0.0))
        told: dict[tuple[str, str], str] = {}
        for rank in (*snapshot.ranks, *(one for one in earlier if self._held(one, snapshot.time))):
            who, gone = (rank.run, rank.rank), self._gone.get(rank.key)
            if rank.up or gone is None or who in told or gone.reason == "normal":
                continue
            told[who] = rank.key
            if self._told_ranks.get(who, rank.key) != rank.key:
                logger.warning("again: %s", gone.sentence)
            since, evidence = rank.died or gone.noticed, {"reason": gone.reason}
            yield Finding("rank_died", *who, "", "", since, gone.sentence, evidence)
        self._told_ranks = told

    def _held(self, rank: Rank, now: float) -> bool:
        """Return whether the death of a process that was replaced is still told."""
        gone = self._gone.get(rank.key)
        return gone is not None and gone.news and now - gone.noticed < HOLD_SECONDS


def _goes_on(told: _Told, loader: Loader | None, now: float) -> bool:
    """Return whether a loader has delivered batches in an iteration begun after a death."""
    if loader is None or now - told.noticed < HOLD_SECONDS or loader.last_delivery is None:
        return False
    died = told.death.died or told.noticed
    return loader.epochs > told.epochs and loader.last_delivery > died
