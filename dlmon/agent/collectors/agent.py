"""Series of the agent itself."""

from __future__ import annotations

import platform

from dlmon import __version__, catalog
from dlmon.agent.collectors.families import Families
from dlmon.agent.state import Status


def collect(families: Families, status: Status) -> None:
    """Add the agent's own series; before the first snapshot, those that need none."""
    families.add_info(catalog.AGENT_BUILD_INFO, (__version__, platform.python_version()))
    families.add(catalog.AGENT_SNAPSHOT_ERRORS, (), status.errors)
    if status.latest is None:
        return
    snapshot = status.latest.snapshot
    families.add(catalog.AGENT_SNAPSHOT_AGE, (), status.latest.age_seconds())
    families.add(catalog.AGENT_SNAPSHOT_DURATION, (), snapshot.duration_seconds)
    families.add(catalog.AGENT_SEGMENTS, (), snapshot.segments)
    for reason in catalog.AGENT_SEGMENTS_REFUSED.values:
        refused = snapshot.refused_total.get(reason, 0)
        families.add(catalog.AGENT_SEGMENTS_REFUSED, (reason,), refused)
    families.add(catalog.AGENT_STALE_READS, (), snapshot.stale_reads_total)
    families.add(catalog.AGENT_VALUES_CLAMPED, (), snapshot.clamped_total)
    dropped = {**status.series_dropped, **snapshot.dropped_total}
    for reason in catalog.AGENT_SERIES_DROPPED.values:
        families.add(catalog.AGENT_SERIES_DROPPED, (reason,), dropped.get(reason, 0))
