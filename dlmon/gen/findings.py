"""docs/findings.md, from the table of findings."""

from __future__ import annotations

from dlmon.analysis.findings import KINDS
from dlmon.catalog import FINDING
from dlmon.gen.markdown import code, document, head, table


def render() -> str:
    """Return the document."""
    lines = head("Findings", "dlmon/analysis/findings.py")
    lines += [
        f"What the agent says is wrong: each is a series of {code(FINDING.name)} for as long as it",
        "holds, an entry of `/api/v1/findings`, and a line of the agent's log when it begins and",
        "when it ends. Labels name the run, rank, loader and worker it is about; one that does not",
        "apply is empty.",
        "",
    ]
    rows = [
        (f"[{code(kind.name)}](#{kind.name})", kind.severity.value, kind.meaning) for kind in KINDS
    ]
    lines += table(("finding", "severity", "meaning"), rows)
    for kind in KINDS:
        lines += [f"## {kind.name}", "", kind.meaning, ""]
        lines += [f"**Signals.** {kind.signals}", "", f"**What to do.** {kind.advice}", ""]
    return document(lines)
