"""Series of a training process."""

from __future__ import annotations

from dlmon import catalog
from dlmon.agent.admission import AdmittedRank
from dlmon.agent.collectors.families import Families
from dlmon.agent.labels import clean


def collect(families: Families, admitted: AdmittedRank) -> None:
    """Add the series of one rank, those of its loaders not included."""
    rank, labels, process = admitted.rank, admitted.labels, admitted.rank.process
    known = {**rank.info, "pid": str(rank.pid), "cgroup": process.cgroup or ""}
    names = catalog.RANK_INFO.labels[len(labels) :]
    families.add_info(catalog.RANK_INFO, (*labels, *(clean(known.get(name, "")) for name in names)))
    families.add(catalog.RANK_UP, labels, rank.up)
    families.add(catalog.RANK_CPU_SECONDS, labels, process.cpu_seconds)
    families.add(catalog.RANK_RESIDENT_MEMORY, labels, process.resident_bytes)
    families.add(catalog.RANK_CPUS, labels, process.cpus)
    families.add(catalog.RANK_CPU_THROTTLED_SECONDS, labels, process.cpu_throttled_seconds)
    families.add(catalog.RANK_ORPHAN_WORKERS, labels, admitted.orphans)
    families.add(catalog.RANK_SHM_SIZE, labels, process.shm_size_bytes)
    families.add(catalog.RANK_SHM_USED, labels, process.shm_used_bytes)
    families.add(catalog.RANK_OPEN_FDS, labels, process.open_fds)
    families.add(catalog.RANK_MAX_FDS, labels, process.max_fds)
    for gpu in admitted.gpus:
        families.add_info(catalog.RANK_GPU_INFO, (*labels, *gpu.labels))
    for hook in catalog.SHIM_HOOK_ACTIVE.values:
        families.add(catalog.SHIM_HOOK_ACTIVE, (*labels, hook), rank.hooks.get(hook))
    families.add(catalog.SHIM_ERRORS, labels, rank.shim_errors)
