"""Series of the cgroups that ranks are in."""

from __future__ import annotations

from dlmon import catalog
from dlmon.agent.admission import AdmittedCgroup
from dlmon.agent.collectors.families import Families


def collect(families: Families, admitted: AdmittedCgroup) -> None:
    """Add the series of one cgroup."""
    memory, labels = admitted.memory, admitted.labels
    binding = memory.binding_limit_bytes
    limit = memory.limit_bytes if binding is None else binding
    families.add(catalog.CGROUP_MEMORY_LIMIT, labels, limit)
    families.add(catalog.CGROUP_MEMORY_ROOM, labels, memory.room_bytes)
    families.add(catalog.CGROUP_MEMORY_WORKING_SET, labels, memory.working_set_bytes)
    families.add(catalog.CGROUP_MEMORY_ANON, labels, memory.anon_bytes)
    families.add(catalog.CGROUP_OOM_KILLS, labels, memory.oom_kills)
