"""Series of what is wrong."""

from __future__ import annotations

from dlmon import catalog
from dlmon.agent.collectors.families import Families
from dlmon.agent.labels import clean
from dlmon.analysis.findings import FINDINGS
from dlmon.observe.snapshot import Finding


def collect(families: Families, found: tuple[Finding, ...]) -> None:
    """Add the series of every finding, one for those that labels cannot tell apart."""
    labels = {
        (
            *map(clean, (one.run, one.rank, one.loader, one.worker)),
            one.name,
            FINDINGS[one.name].severity.value,
        )
        for one in found
    }
    for each in sorted(labels):
        families.add(catalog.FINDING, each, 1)
