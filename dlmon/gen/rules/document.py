"""docs/alerts.md, from the tables of alerts and recording rules."""

from __future__ import annotations

from dlmon.gen.markdown import code, document, head, table
from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.model import Alert
from dlmon.gen.rules.recording import RECORDINGS

_LABELS = """\
Every alert has `severity` (`critical`: wake somebody; `warning`: look at it today), `scope` (what
it is about: `worker`, `loader`, `rank`, `cgroup`, `agent`) and the labels below; one that does not
apply is missing. Group by `run`: alerts about agents have none. `instance` is the agent's address,
and missing where rates of a whole run are judged.

An alert says less than those in the column *silenced by*, while these fire for the same `instance`,
`run` and `rank`, as far as both have these labels; `DlmonWorkerMemoryLeak` for the same `loader`,
too. So a rank that died on one node silences nothing of its successor on another, but alerts
without `instance` for the five minutes for which its death is told.

Most of them pass on what the agent has found ([findings.md](findings.md)), since it sees each
loader every second and knows what is usual for it. Where an agent does not answer its series are
gone, which is no recovery: what it had found goes on firing until it answers again, or is not
scraped any more. Alerts made of rates end after some minutes. All of them work with
`metrics.per_worker: lean`; with `off` all but `DlmonWorkerMemoryExplosion`."""


def render() -> str:
    """Return the document."""
    lines = head("Alerts and recording rules", "dlmon/gen/rules/alerts.py")
    rows = [
        (
            f"[{code(alert.name)}](runbooks/{alert.name}.md)",
            alert.severity.value,
            alert.lasting,
            alert.meaning,
        )
        for alert in ALERTS
    ]
    lines += [
        "The rules are in [deploy/prometheus/rules](../deploy/prometheus/rules). They expect the",
        'agents to be scraped as `job="dlmon"`, every 15 s, and to be evaluated as often.',
        "",
        "## Alerts",
        "",
        *table(("alert and runbook", "severity", "for", "meaning"), rows),
        "### Labels",
        "",
        *_LABELS.splitlines(),
        "",
        *table(("alert", "scope", "labels", "silenced by"), map(_routing, ALERTS)),
        "### Why these thresholds",
        "",
        *table(("alert", "why"), [(code(alert.name), alert.why) for alert in ALERTS]),
        "## Recording rules",
        "",
        "Rates and means are over five minutes.",
        "",
    ]
    recorded = [
        (code(rule.name), ", ".join(map(code, rule.labels)), rule.meaning) for rule in RECORDINGS
    ]
    return document([*lines, *table(("series", "labels", "meaning"), recorded)])


def _routing(alert: Alert) -> tuple[str, ...]:
    labels, others = map(code, alert.labels), map(code, alert.silenced_by)
    return code(alert.name), alert.scope.value, ", ".join(labels), ", ".join(others)
