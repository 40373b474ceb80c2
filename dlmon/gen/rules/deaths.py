"""Alerts about who died, and who was left behind."""

from __future__ import annotations

from dlmon import catalog
from dlmon.catalog import LOADER_LABELS, RANK_LABELS, WORKER_LABELS
from dlmon.gen.rules.model import (
    HOLD_SECONDS,
    INSTANCE,
    LAST_BATCH_OF_RANK,
    MAYBE_WORKER,
    ON,
    RUN_AND_RANK,
    Alert,
    Scope,
    Severity,
    asked,
    found,
    kept,
    passed_on,
)
from dlmon.gen.rules.promql import aggregated

_HELD = (
    "A death is an event: told at once, and for five minutes at least, so that Alertmanager sends"
    " it also if the job goes on, or was over after three seconds."
)
_KEPT = "1h"
"""As long as the agent by default keeps the dead (`keep.dead_seconds`)."""

_RANKS = (INSTANCE, *RANK_LABELS)
_LOADERS = (INSTANCE, *LOADER_LABELS)
_WORKERS = (INSTANCE, *WORKER_LABELS)
_ORPHANS = asked(
    f"max({catalog.RANK_ORPHAN_WORKERS.name}{{instance=%q,run=%q,rank=%q}})", _RANKS, "humanize"
)


def _worker_died() -> str:
    """Return the expression: found by the agent, with the reason where the counters tell one.

    Counters of a job that is over are gone within seconds, the finding stays. The time of the last
    abnormal exit is in the segment: it tells of deaths that no agent was there to see. An exit may
    be counted a scrape after the finding: as another reason is another alert, the one without is
    withheld for so long where there are counters to wait for.
    """
    dead = found(("worker_died",), _WORKERS, held=True)
    on, worker = ", ".join(_LOADERS), ", ".join(_WORKERS)
    telling, vague = _reasons('!~"normal|sigterm|lost"'), _reasons('=~"sigterm|lost"')
    counters = aggregated("max", _LOADERS, catalog.LOADER_WORKER_EXITS.name)
    waited = f'{catalog.FINDING.name}{{finding="worker_died"}}[{HOLD_SECONDS}s] offset 30s'
    unseen = aggregated("max", _LOADERS, f"time() - {catalog.LOADER_LAST_ABNORMAL_EXIT.name}")
    return (
        f"{dead}\n* on ({on}) group_left (reason)\n"
        f"topk by ({on}) (1,\n  {telling}\n  or on ({on})\n  {vague}\n) ^ 0\n"
        f"or on ({worker})\n(\n  {dead}\n"
        f"  unless on ({on}) {counters}\n"
        f"  or on ({worker}) {dead} and on ({worker}) max_over_time({waited})\n)\n"
        f"or on ({on})\n{unseen} < {HOLD_SECONDS}\nunless on ({on}) {dead}"
    )


def _reasons(matcher: str) -> str:
    """Return how often workers ended for each reason of these within `_KEPT`.

    A counter that is above 0 when it is first seen has no increase: it counts as it is if it was
    not there before. What others have counted since outweighs it: an agent that starts anew sees
    what it had counted before.
    """
    labels, on = (*_LOADERS, "reason"), ", ".join(_LOADERS)
    exits = f"{catalog.LOADER_WORKER_EXITS.name}{{reason{matcher}}}[{_KEPT}]"
    grown = aggregated("max", labels, f"round(increase({exits}))")
    seen = aggregated("max", labels, f"max_over_time({exits})")
    before = aggregated("max", labels, f"count_over_time({exits} offset {_KEPT})")
    return f"({grown} > 0\n  or on ({on}) ({seen} > 0 unless {before}))"


def _rank_died() -> str:
    """Return the expression: found by the agent, until the rank lives elsewhere and it was told.

    The agent of a node that a rank has left keeps its dead, and knows nothing of the successor that
    the rank has on another node.
    """
    ranks, successor = f"on ({', '.join(_RANKS)})", f"on ({', '.join(RANK_LABELS)})"
    successor += f" {catalog.RANK_UP.name} == 1"
    before = f'{catalog.FINDING.name}{{finding="rank_died"}} offset {HOLD_SECONDS}s'
    dead = f"{found(('rank_died',), _RANKS, held=True)}\nunless {ranks} ({before} and {successor})"
    return f"{kept('DlmonRankDied', _RANKS, dead)}\nunless {successor}"


WORKER_DIED = Alert(
    name="DlmonWorkerDied",
    severity=Severity.CRITICAL,
    scope=Scope.WORKER,
    labels=(*_WORKERS, "reason"),
    expression=kept("DlmonWorkerDied", (*_WORKERS, "reason"), _worker_died()),
    lasting="0s",
    why=f"{_HELD} The reason is the one that its loader's exits have most of in the last hour,"
    " sigterm and lost only where there is no other. One that is not yet counted is waited for 30 s"
    " at most.",
    meaning="A worker ended in another way than in order; torch raises in the loop.",
    summary=f"Died: {MAYBE_WORKER}{{{{ with $labels.reason }}}} ({{{{ . }}}}){{{{ end }}}}",
    description=(
        f"{ON}, {MAYBE_WORKER} died. Reason:"
        " {{ with $labels.reason }}{{ . }}{{ else }}not known{{ end }}; when: "
        + asked(
            f"max(time() - {catalog.LOADER_LAST_ABNORMAL_EXIT.name}"
            "{instance=%q,run=%q,rank=%q,loader=%q})",
            _LOADERS,
            "humanizeDuration",
            " ago",
        )
        + ". The job most likely has ended with it."
    ),
    findings=("worker_died",),
    silenced_by=("DlmonRankDied",),
)
RANK_DIED = Alert(
    name="DlmonRankDied",
    severity=Severity.CRITICAL,
    scope=Scope.RANK,
    labels=_RANKS,
    expression=_rank_died(),
    lasting="0s",
    why=f"{_HELD} The agent finds it for an hour (`keep.dead_seconds`), or until another process is"
    " this rank of this run; for 30 s at least, so that a restart does not come before a scrape. It"
    " ends where the rank lives on another node, too: what that one suffers from is not silenced.",
    meaning="A training process ended without saying goodbye: it was killed, or crashed.",
    summary=f"Died: {RUN_AND_RANK}",
    description=(
        f"{ON}, {RUN_AND_RANK} died without saying goodbye. Last batch of this rank:"
        f" {LAST_BATCH_OF_RANK};"
        f" workers it has left behind: {_ORPHANS}."
    ),
    findings=("rank_died",),
)
ORPHAN_WORKERS = Alert(
    name="DlmonOrphanWorkers",
    severity=Severity.WARNING,
    scope=Scope.RANK,
    labels=_RANKS,
    expression=passed_on("DlmonOrphanWorkers", _RANKS, ("orphan_workers",)),
    lasting="1m",
    why="Most workers notice within 5 s that their rank is gone; the agent waits 10 s, and a minute"
    " is for those of a forkserver.",
    meaning="Workers live on although their training process is dead; they hold memory.",
    summary=f"Orphan workers of {RUN_AND_RANK}",
    description=(
        f"{ON}, workers of {RUN_AND_RANK} live on without their training process: {_ORPHANS}. They"
        " hold (RSS): "
        + asked(
            f"sum({catalog.WORKER_RESIDENT_MEMORY.name}{{instance=%q,run=%q,rank=%q}}) unless"
            # then they are its own
            f" max({catalog.RANK_UP.name}{{instance=%q,run=%q,rank=%q}}) == 1",
            (*_RANKS, *_RANKS),
            "humanize1024",
            "B",
        )
        + "."
    ),
    findings=("orphan_workers",),
)
