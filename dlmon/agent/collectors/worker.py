"""Series of a worker slot."""

from __future__ import annotations

from dlmon import catalog
from dlmon.agent.admission import AdmittedWorker
from dlmon.agent.collectors.families import Families


def collect(families: Families, admitted: AdmittedWorker) -> None:
    """Add the series of one worker that its detail allows."""
    for metric, value in _values(admitted):
        if admitted.detail.shows(metric):
            families.add(metric, admitted.labels, value)


def _values(admitted: AdmittedWorker) -> tuple[tuple[catalog.Metric, float | None], ...]:
    worker = admitted.worker
    return (
        (catalog.WORKER_UP, worker.up),
        (catalog.WORKER_HUNG, None if worker.up is None else worker.hung),
        (catalog.WORKER_STATE, worker.state),
        (catalog.WORKER_LAST_PROGRESS, worker.last_progress),
        (catalog.WORKER_BATCHES, worker.batches),
        (catalog.WORKER_FETCH_SECONDS, worker.fetch_seconds),
        (catalog.WORKER_CPU_SECONDS, worker.cpu_seconds),
        (catalog.WORKER_RESIDENT_MEMORY, worker.resident_bytes),
        (catalog.WORKER_PROPORTIONAL_MEMORY, worker.proportional_bytes),
        (catalog.WORKER_UNIQUE_MEMORY, worker.unique_bytes),
        (catalog.WORKER_READ_BYTES, worker.read_bytes),
        (catalog.WORKER_MAJOR_FAULTS, worker.major_faults),
        (catalog.WORKER_OPEN_FDS, worker.open_fds),
    )
