"""What an alert is, and how its expression and its texts are put together."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from dlmon import catalog
from dlmon.gen.rules.promql import aggregated

JOB = "dlmon"
"""Of the scrape configuration of all agents."""

REPOSITORY = "https://github.com/dlmon/dlmon/blob/main/"

HOLD_SECONDS = 300
"""So long what happened at one moment is told: longer than Alertmanager waits before it sends what
a group has begun with, and than an agent takes to start anew."""

INSTANCE = "instance"


class Severity(enum.Enum):
    """Whom an alert is for, as of the findings, and below them."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class Scope(enum.Enum):
    """What an alert is about, for who groups and silences: one of everything it is about."""

    AGENT = "agent"
    CGROUP = "cgroup"
    RANK = "rank"
    LOADER = "loader"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert.

    Attributes:
        name: `Dlmon…`; its runbook is docs/runbooks/<name>.md.
        severity: Whom it is for.
        scope: What it is about.
        labels: Of what its expression gives; some may be empty where they do not apply.
        expression: PromQL.
        lasting: `for`: how long the expression must hold, as Prometheus writes durations.
        why: Where its thresholds and `for` come from.
        meaning: What it says, one sentence.
        summary, description: Templates, with the labels and what is the case now.
        findings: Those that it passes on.
        silenced_by: Alerts about the same that say more: instance, run and rank are, as far as both
            have them; of a leak the loader is, too.
    """

    name: str
    severity: Severity
    scope: Scope
    labels: tuple[str, ...]
    expression: str
    lasting: str
    why: str
    meaning: str
    summary: str
    description: str
    findings: tuple[str, ...] = ()
    silenced_by: tuple[str, ...] = ()

    @property
    def runbook(self) -> str:
        """Its path in the repository."""
        return f"docs/runbooks/{self.name}.md"


def kept(name: str, labels: Sequence[str], expression: str) -> str:
    """Return an expression that goes on for as long as the agent that said so is not there.

    Series of an agent that does not answer are gone at once. That is no recovery: what fired then
    goes on firing until the agent answers, or is not scraped any more.

    Args:
        name: Of the alert.
        labels: Of the expression, `instance` among them.
        expression: PromQL.
    """
    fired = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
    return (
        f"{expression}\n"
        f"or on ({', '.join(labels)})\n"
        f"{aggregated('max', labels, fired)}\n"
        f'and on ({INSTANCE}) up{{job="{JOB}"}} == 0'
    )


def found(names: Sequence[str], labels: Sequence[str], held: bool = False) -> str:
    """Return the expression of findings.

    Args:
        names: Which.
        labels: What to keep of them.
        held: For `HOLD_SECONDS` after the last.
    """
    matcher = f'finding="{names[0]}"' if len(names) == 1 else f'finding=~"{"|".join(names)}"'
    series = f"{catalog.FINDING.name}{{{matcher}}}"
    if held:
        series = f"max_over_time({series}[{HOLD_SECONDS}s])"
    return aggregated("max", labels, series)


def passed_on(name: str, labels: Sequence[str], findings: Sequence[str], held: bool = False) -> str:
    """Return the expression of an alert that says what the agent has found; as `found`, `kept`."""
    return kept(name, labels, found(findings, labels, held))


def asked(expression: str, labels: Sequence[str], shown: str, unit: str = "") -> str:
    """Return the template of a value that is asked for when the alert is written.

    Args:
        expression: PromQL with `%q` for the value of each label; of its answer the first counts.
        labels: Their names, in that order.
        shown: The function of templates that makes text of a number.
        unit: What follows the number.
    """
    values = " ".join(f"$labels.{label}" for label in labels)
    return (
        f"{{{{ with printf `{expression}` {values} | query }}}}"
        f"{{{{ . | first | value | {shown} }}}}{unit}{{{{ else }}}}not known{{{{ end }}}}"
    )


RUN_AND_RANK = "rank {{ $labels.rank }} of run {{ $labels.run }}"
LOADER = f"loader {{{{ $labels.loader }}}} of {RUN_AND_RANK}"
WORKER = f"worker {{{{ $labels.worker }}}} of {LOADER}"
MAYBE_WORKER = (
    "{{ with $labels.worker }}worker {{ . }}{{ else }}a worker{{ end }}" + f" of {LOADER}"
)
ON = "On {{ $labels.instance }}"
FINDING = "{{ $labels.finding }}"

LAST_BATCH_OF_LOADER = asked(
    f"max(time() - {catalog.LOADER_LAST_DELIVERY.name}{{instance=%q,run=%q,rank=%q,loader=%q}})",
    (INSTANCE, *catalog.LOADER_LABELS),
    "humanizeDuration",
    " ago",
)
LAST_BATCH_OF_RANK = asked(
    f"min(time() - {catalog.LOADER_LAST_DELIVERY.name}{{instance=%q,run=%q,rank=%q}})",
    (INSTANCE, *catalog.RANK_LABELS),
    "humanizeDuration",
    " ago",
)
