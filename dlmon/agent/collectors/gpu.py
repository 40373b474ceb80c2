"""Series of a GPU."""

from __future__ import annotations

from dlmon import catalog
from dlmon.agent.admission import AdmittedGpu
from dlmon.agent.collectors.families import Families


def collect(families: Families, admitted: AdmittedGpu) -> None:
    """Add the series of one GPU or MIG instance."""
    gpu, labels = admitted.gpu, admitted.labels
    families.add(catalog.GPU_UTILIZATION, labels, gpu.utilization)
    families.add(catalog.GPU_MEMORY_USED, labels, gpu.memory_used_bytes)
    families.add(catalog.GPU_MEMORY_TOTAL, labels, gpu.memory_total_bytes)
