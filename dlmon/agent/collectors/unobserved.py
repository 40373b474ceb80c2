"""Series of the workers of jobs without the shim."""

from __future__ import annotations

from collections import Counter

from dlmon import catalog
from dlmon.agent.admission import AdmittedUnobserved
from dlmon.agent.collectors.families import Families

_STATES = {"R": "running", "D": "blocked", "T": "stopped", "t": "stopped", "Z": "zombie"}


def collect(families: Families, admitted: AdmittedUnobserved) -> None:
    """Add the series of one user's script."""
    group, labels = admitted.group, admitted.labels
    states = Counter(_STATES.get(worker.process_state, "sleeping") for worker in group.workers)
    for state in catalog.UNOBSERVED_WORKERS.values:
        families.add(catalog.UNOBSERVED_WORKERS, (*labels, state), states[state])
    orphans = sum(worker.orphan for worker in group.workers)
    resident = [w.resident_bytes for w in group.workers if w.resident_bytes is not None]
    families.add(catalog.UNOBSERVED_ORPHAN_WORKERS, labels, orphans)
    families.add(catalog.UNOBSERVED_CPU_SECONDS, labels, group.cpu_seconds)
    families.add(catalog.UNOBSERVED_READ_BYTES, labels, group.read_bytes)
    families.add(catalog.UNOBSERVED_RESIDENT_MEMORY, labels, sum(resident) if resident else None)
