"""Look at each Snapshot as it is made and say what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from dlmon.agent.seldom import Seldom
from dlmon.analysis.findings import FINDINGS, Severity
from dlmon.observe.snapshot import Finding, Snapshot

logger = logging.getLogger(__name__)

_GRAVITY = list(Severity)


class Watcher(Protocol):
    """Looks for one sort of trouble, and may remember what it saw before."""

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        """Return the snapshot, in which it may have said more, and what is wrong now."""


class Watch:
    """Has all watchers look, and logs each finding once when it begins and once when it ends.

    Attributes:
        failed: What the failures of the last look said, "" if there was none.
    """

    def __init__(self, watchers: Iterable[Watcher]) -> None:
        self.failed = ""
        self._watchers = tuple(watchers)
        self._known: dict[tuple[str, ...], Finding] = {}
        self._complaints = [Seldom() for _ in self._watchers]

    def look(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with what is wrong in it; a watcher that fails costs its own."""
        found: list[Finding] = []
        failures: list[str] = []
        for number, watcher in enumerate(self._watchers):
            try:
                snapshot, more = watcher.look(snapshot)
                found += more
            except Exception as error:  # noqa: BLE001  # the others look on
                failures.append(f"{type(watcher).__name__}: {type(error).__name__}: {error}")
                self._complain(number, error)
        self.failed = " ".join("; ".join(failures).split())
        found.sort(key=_order)
        self._log(found)
        return replace(snapshot, findings=tuple(found))

    def _complain(self, number: int, error: Exception) -> None:
        """Log a watcher's failure, unless it failed a moment ago too."""
        if self._complaints[number].due():
            name = type(self._watchers[number]).__name__
            logger.error("%s failed: what it finds is missing", name, exc_info=error)

    def _log(self, found: Sequence[Finding]) -> None:
        now = {_key(one): one for one in found}
        for key in now.keys() - self._known.keys():
            logger.warning("%s: %s", now[key].name, now[key].sentence)
        for key in self._known.keys() - now.keys():
            logger.info("%s no more: %s", self._known[key].name, self._known[key].sentence)
        self._known = now


def _key(finding: Finding) -> tuple[str, ...]:
    return (finding.name, finding.run, finding.rank, finding.loader, finding.worker)


def _order(finding: Finding) -> tuple[object, ...]:
    return (_GRAVITY.index(FINDINGS[finding.name].severity), finding.since, *_key(finding))
