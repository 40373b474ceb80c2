"""Series of a DataLoader."""

from __future__ import annotations

from dlmon import catalog
from dlmon.agent.admission import AdmittedLoader
from dlmon.agent.collectors.families import Families
from dlmon.agent.labels import clean


def collect(families: Families, admitted: AdmittedLoader) -> None:
    """Add the series of one loader, those of its workers not included."""
    loader, labels = admitted.loader, admitted.labels
    names = catalog.LOADER_INFO.labels[len(labels) :]
    families.add_info(
        catalog.LOADER_INFO, (*labels, *(clean(loader.config.get(name, "")) for name in names))
    )
    for phase, value in zip(catalog.TIMED_PHASES, catalog.LOADER_TIME.values, strict=True):
        seconds = loader.phase_seconds.get(phase, 0.0)
        families.add(catalog.LOADER_TIME, (*labels, value), seconds)
    families.add(catalog.LOADER_PHASE, labels, loader.phase.value)
    families.add(catalog.LOADER_BATCHES, labels, loader.batches)
    families.add(catalog.LOADER_SAMPLES, labels, loader.samples)
    families.add(catalog.LOADER_EPOCHS, labels, loader.epochs)
    families.add(catalog.LOADER_STARTUPS, labels, loader.startups)
    families.add(catalog.LOADER_DISCARDED, labels, loader.discarded)
    families.add(catalog.LOADER_LAST_DELIVERY, labels, loader.last_delivery)
    families.add(catalog.LOADER_LAST_EPOCH, labels, loader.last_epoch)
    families.add_histogram(catalog.LOADER_WAIT, labels, loader.wait)
    families.add_histogram(catalog.LOADER_STEP, labels, loader.step)
    families.add_histogram(catalog.LOADER_FETCH, labels, loader.fetch)
    families.add(catalog.LOADER_CAPACITY, labels, loader.capacity)
    families.add(catalog.LOADER_OUTSTANDING, labels, loader.outstanding)
    families.add(catalog.LOADER_READY, labels, loader.ready)
    families.add(catalog.LOADER_REORDER, labels, loader.reorder)
    _failures(families, admitted)


def _failures(families: Families, admitted: AdmittedLoader) -> None:
    """Add what went wrong, and the workers' coming and going."""
    loader, labels = admitted.loader, admitted.labels
    families.add(catalog.LOADER_TIMEOUTS, labels, loader.timeouts)
    for error in catalog.LOADER_ERRORS.values:
        families.add(catalog.LOADER_ERRORS, (*labels, error), loader.errors.get(error, 0))
    families.add(catalog.LOADER_WORKER_STARTS, labels, loader.worker_starts)
    for reason in catalog.LOADER_WORKER_EXITS.values:
        exits = loader.worker_exits.get(reason, 0)
        families.add(catalog.LOADER_WORKER_EXITS, (*labels, reason), exits)
    families.add(catalog.LOADER_LAST_ABNORMAL_EXIT, labels, loader.last_abnormal_exit)
