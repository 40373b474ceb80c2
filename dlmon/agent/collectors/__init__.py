"""From a Snapshot to metric families: pure functions, one module a subject."""

from __future__ import annotations

from dlmon.agent.collectors import agent, cgroup, finding, gpu, loader, rank, unobserved, worker
from dlmon.agent.collectors.families import Families
from dlmon.agent.state import Status

__all__ = ["collect"]


def collect(status: Status) -> Families:
    """Make the families of everything that is known now, fit for a prometheus_client encoder."""
    families = Families()
    if status.latest is not None:
        for admitted_rank in status.latest.admitted.ranks:
            families.missing = frozenset()
            rank.collect(families, admitted_rank)
            for admitted_loader in admitted_rank.loaders:
                families.missing = frozenset(admitted_loader.loader.missing_hooks)
                loader.collect(families, admitted_loader)
                for admitted_worker in admitted_loader.workers:
                    worker.collect(families, admitted_worker)
    families.missing = frozenset()
    if status.latest is not None:
        for admitted_cgroup in status.latest.admitted.cgroups:
            cgroup.collect(families, admitted_cgroup)
        finding.collect(families, status.latest.snapshot.findings)
        for admitted_gpu in status.latest.admitted.gpus:
            gpu.collect(families, admitted_gpu)
        for group in status.latest.admitted.unobserved:
            unobserved.collect(families, group)
    agent.collect(families, status)
    return families
