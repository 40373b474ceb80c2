"""Alerts about the agents: what they do not see, nobody is told."""

from __future__ import annotations

from dlmon import catalog
from dlmon.gen.rules.model import INSTANCE, JOB, Alert, Scope, Severity
from dlmon.gen.rules.promql import aggregated, happened, rate

_DOWN = ("DlmonAgentDown",)

AGENT_DOWN = Alert(
    name="DlmonAgentDown",
    severity=Severity.WARNING,
    scope=Scope.AGENT,
    labels=(INSTANCE,),
    expression=aggregated("max", (INSTANCE,), f'up{{job="{JOB}"}}') + " == 0",
    lasting="5m",
    why="An upgrade or a reboot takes less. Jobs do not need the agent, so nobody is woken; what"
    " fired before goes on firing meanwhile, since nothing is known to have recovered.",
    meaning="An agent does not answer: nothing is known of the loaders on its node.",
    summary="Agent {{ $labels.instance }} does not answer",
    description=(
        "The agent {{ $labels.instance }} has not answered for five minutes (up is"
        " {{ $value | humanize }}). What happens to loaders on its node is not seen, and alerts"
        " about them stay as they were."
    ),
)
SNAPSHOT_STALE = Alert(
    name="DlmonSnapshotStale",
    severity=Severity.WARNING,
    scope=Scope.AGENT,
    labels=(INSTANCE,),
    expression=aggregated("max", (INSTANCE,), catalog.AGENT_SNAPSHOT_AGE.name) + " > 60",
    lasting="2m",
    why="A snapshot is made every second, and taking one is slow on an overloaded node; what is a"
    " minute old for minutes is frozen.",
    meaning="An agent answers, but what it says is old: it cannot look any more.",
    summary="Agent {{ $labels.instance }} shows an old snapshot",
    description=(
        "What the agent {{ $labels.instance }} serves is {{ $value | humanizeDuration }} old: it"
        " answers, but does not look."
    ),
    silenced_by=_DOWN,
)
SNAPSHOT_ERRORS = Alert(
    name="DlmonSnapshotErrors",
    severity=Severity.WARNING,
    scope=Scope.AGENT,
    labels=(INSTANCE,),
    expression=aggregated("max", (INSTANCE,), rate(catalog.AGENT_SNAPSHOT_ERRORS, "5m")) + " > 0",
    lasting="10m",
    why="One failed look of many costs a second. Ten minutes, each with one in the five before it,"
    " are a defect.",
    meaning="Looks of an agent fail again and again: the last good snapshot is served meanwhile, or"
    " findings are missing in new ones.",
    summary="Snapshots of agent {{ $labels.instance }} fail",
    description=(
        "Looks of the agent {{ $labels.instance }} fail, {{ $value | humanize }} a second; its log"
        " says why."
    ),
    silenced_by=_DOWN,
)
SEGMENTS_REFUSED = Alert(
    name="DlmonSegmentsRefused",
    severity=Severity.WARNING,
    scope=Scope.AGENT,
    labels=(INSTANCE, "reason"),
    expression=happened(catalog.AGENT_SEGMENTS_REFUSED, (INSTANCE, "reason"), "1h"),
    lasting="0s",
    why="A file is counted once for as long as it is refused, and segments get their name when they"
    " are complete, so that none is expected. Told for an hour after the last new one.",
    meaning="Files in the place of segments are not read: jobs are missing in what is shown.",
    summary="Segments refused by agent {{ $labels.instance }} ({{ $labels.reason }})",
    description=(
        "The agent {{ $labels.instance }} refuses files as segments because of"
        " {{ $labels.reason }} ({{ $value | humanize }} new ones within an hour): their jobs are"
        " not shown."
    ),
    silenced_by=_DOWN,
)

_DROPPED = catalog.AGENT_SERIES_DROPPED
_BY_SNAPSHOT = aggregated(
    "max",
    (INSTANCE, "reason"),
    f'round(increase({_DROPPED.name}{{reason=~"duplicate|series_limit"}}[10m]%s))',
)
_SEGMENTS = happened(_DROPPED, (INSTANCE, "reason"), "1h", 'reason=~"rank|user"')
SERIES_DROPPED = Alert(
    name="DlmonSeriesDropped",
    severity=Severity.WARNING,
    scope=Scope.AGENT,
    labels=(INSTANCE, "reason"),
    expression=(f"{_BY_SNAPSHOT % ''} > 0\nand {_BY_SNAPSHOT % ' offset 10m'} > 0\nor {_SEGMENTS}"),
    lasting="0s",
    why="Series are counted at every snapshot for as long as they are left out: in these ten"
    " minutes and in those before is no burst of short jobs. A segment above a limit is counted"
    " once, and told for an hour.",
    meaning="Some of what an agent knows is missing in its metrics, because of a limit or a label"
    " that is there twice.",
    summary="Series dropped by agent {{ $labels.instance }} ({{ $labels.reason }})",
    description=(
        "The agent {{ $labels.instance }} leaves out series or segments because of"
        " {{ $labels.reason }}; counted: {{ $value | humanize }}."
    ),
    silenced_by=_DOWN,
)
