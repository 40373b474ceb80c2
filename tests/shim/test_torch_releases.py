"""Other torches: what the shim counts is right or said to be missing, and no job is harmed."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dlmon import shim
from dlmon.catalog import METRICS
from dlmon.observe.snapshot import Loader, Rank
from dlmon.shim._torch_names import READ, RUN_IN_PART, Name, Place
from tests.conftest import ROOT
from tests.jobs import Job, JobStarter
from tests.observing import FACTS, facts, loader, observe, only_rank
from tests.shim import overlays
from tests.shim.other_torches import CALLS, LOADER, MODULES, RENAMED, SIGNATURES, WORDED, Case
from tests.shim.release_job import TRUTH, Truth, source
from tools.torch_releases import facts as facts_of
from tools.torch_releases import sources

FIRST, LAST = (int(release.removeprefix("2.")) for release in READ)
MINORS = [f"2.{minor}" for minor in range(FIRST, LAST + 1)]
"""Releases that were read."""

FETCH_SECONDS = 600

NEEDS = {metric.name: metric.needs for metric in METRICS}

DIED = ("RuntimeError", "ConnectionResetError", "EOFError")
"""What torch raises for a dead worker, depending on where it was."""


@pytest.mark.slow
@pytest.mark.parametrize("case", WORDED, ids=lambda case: case.name)
def test_an_error_that_torch_says_otherwise_is_counted_as_another(
    case: Case, run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    job = run_job(source("faults"), env=another_torch(tmp_path, case))
    told = facts(job)
    for name, truth in TRUTH["faults"].items():
        assert_delivered(told["delivered"][name], truth)
        seen = loader(observe(segment_dir), name)
        assert positive(seen.errors) in ({truth.error: 1}, {"other": 1})
        assert (seen.batches, seen.samples) == (truth.batches, truth.samples)
    assert all(rank(segment_dir).hooks.values())
    job.tell()
    job.tell()
    job.finish()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*RENAMED, *MODULES, *SIGNATURES, *CALLS], ids=lambda case: case.name
)
def test_what_another_torch_has_changed_costs_its_metric_alone(
    case: Case, run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    job = run_job(source("usual", "held", "fork"), env=another_torch(tmp_path, case))
    check(job, segment_dir, ("usual", "held", "fork"), case.off)


def another_torch(folder: Path, case: Case) -> dict[str, str]:
    """Return the environment of a job that has the torch of a case."""
    data = overlays.copy_of_installed(folder / "data")
    case.change(data)
    return overlays.environment(folder / "site", data)


def test_the_data_loading_of_the_installed_release_is_seen_as_it_is(
    run_job: JobStarter, segment_dir: Path
) -> None:
    scenarios = ("usual", "held", "faults", "fork")
    check(run_job(source(*scenarios)), segment_dir, scenarios)


@pytest.mark.slow
@pytest.mark.timeout(FETCH_SECONDS + 120)  # the first may have to fetch them
@pytest.mark.parametrize("minor", RUN_IN_PART)
def test_the_data_loading_of_other_releases_is_seen_as_it_is(
    minor: str, run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    data = release(minor) / sources.DATA
    scenarios = ("usual", "held", "faults", "fork", "spawn")
    job = run_job(source(*scenarios), env=overlays.environment(tmp_path / "site", data))
    assert facts(job)["file"] == str(data / LOADER)
    check(job, segment_dir, scenarios)


@pytest.mark.slow
@pytest.mark.timeout(FETCH_SECONDS + 120)  # the first may have to fetch them
@pytest.mark.parametrize("entry", facts_of.entries(), ids=facts_of.place)
def test_each_name_is_in_every_release_that_was_read(entry: Place | Name) -> None:
    assert [minor for minor in MINORS if not facts_of.holds(release(minor), entry)] == []


@pytest.mark.parametrize("entry", facts_of.entries(), ids=facts_of.place)
def test_a_name_that_a_release_does_not_have_is_noticed(
    entry: Place | Name, tmp_path: Path
) -> None:
    file = tmp_path / f"{entry.module.replace('.', '/')}.py"
    file.parent.mkdir(parents=True)
    shutil.copy(overlays.installed().parents[2] / file.relative_to(tmp_path), file)
    assert facts_of.holds(tmp_path, entry)
    overlays.replace(file.parent, re.escape(entry.name), "gone")
    assert not facts_of.holds(tmp_path, entry)
    file.unlink()
    assert not facts_of.holds(tmp_path, entry)


def test_every_private_name_of_torch_that_the_shim_uses_is_in_its_tables() -> None:
    torchs = {
        name
        for path in (overlays.installed() / LOADER, *(overlays.installed() / "_utils").glob("*.py"))
        for name in defined(ast.parse(path.read_text()))
        if name.startswith("_") and not name.startswith("__")
    }
    shims = {
        name
        for path in Path(shim.__file__).parent.glob("*.py")
        if path.stem != "_torch_names"
        for name in used(ast.parse(path.read_text()))
    }
    assert "_send_idx" in torchs & shims
    tables = {part for entry in facts_of.entries() for part in facts_of.place(entry).split(".")}
    assert torchs & shims - tables == set()


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the functions, classes and attributes that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def used(tree: ast.Module) -> Iterator[str]:
    """Yield the attributes that a module reads, also those that it names in strings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def release(minor: str) -> Path:
    """Return the sources of the newest patch release of a minor version; skip if there are none."""
    problem = fetch()
    found = sources.newest_fetched().get(minor)
    if found is None:
        pytest.skip(f"the sources of torch {minor} cannot be fetched: {problem}")
    return sources.CACHE / found


@functools.cache
def fetch() -> str:
    """Fetch the releases that are not there yet, and return how that ended."""
    if sources.newest_fetched().keys() >= set(MINORS):
        return ""
    command = [sys.executable, "-m", "tools.torch_releases", "--fetch"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the index did not give them within {FETCH_SECONDS} s"
    said = (done.stdout + done.stderr).strip()
    return said.splitlines()[-1] if said else "the index has no wheel for this Python"


def check(
    job: Job,
    segment_dir: Path,
    scenarios: tuple[str, ...],
    off: frozenset[str] = frozenset(),
) -> None:
    """Compare what a job delivers, and what is seen of it, with the truth.

    Args:
        job: One of `release_job.source`.
        segment_dir: Where its segments are.
        scenarios: What it does.
        off: The hooks that must be told to be missing; the metrics that need them are not compared.
    """
    truths = {name: truth for one in scenarios for name, truth in TRUTH[one].items()}
    told = facts(job)
    for name, truth in truths.items():
        assert_delivered(told["delivered"][name], truth)
    if "iterator" not in off:
        assert {hook for hook, placed in rank(segment_dir).hooks.items() if not placed} == off
        for name, truth in truths.items():
            if name.startswith("held"):
                assert_queued(job, segment_dir, name, truth)
    job.tell()
    facts(job, 2)
    if "iterator" not in off:
        seen = {one.name: one for one in rank(segment_dir).loaders}
        assert seen.keys() == truths.keys()
        for name, truth in truths.items():
            assert_counted(seen[name], truth)
    assert_says_what_is_missing(segment_dir, job, "iterator" in off)
    job.tell()
    job.finish()


def rank(segment_dir: Path) -> Rank:
    return only_rank(observe(segment_dir))


def known(metric: str, seen: Loader) -> bool:
    """Say if the agent shows a metric of a loader: nothing that it needs is missing."""
    return not set(NEEDS[metric]) & set(seen.missing_hooks)


def assert_delivered(delivered: list[list[object]], truth: Truth) -> None:
    for got, wanted in zip(delivered, truth.epochs, strict=True):
        assert got == wanted or (wanted == ["*"] and got[0] in DIED and len(got) == 1)


def assert_queued(job: Job, segment_dir: Path, name: str, truth: Truth) -> None:
    """Check the queue of an iterator that is held, once its workers have nothing to do any more."""
    outstanding, ready = truth.held
    if known("dlmon_loader_ready_batches", loader(observe(segment_dir), name)):
        job.wait_for(lambda: loader(observe(segment_dir), name).ready == ready, f"ready {ready}")
    seen = loader(observe(segment_dir), name)
    if known("dlmon_loader_outstanding_batches", seen):
        assert seen.outstanding == outstanding


def assert_counted(seen: Loader, truth: Truth) -> None:
    """Check what is shown of a loader whose iterators are gone."""
    errors = {truth.error: 1} if truth.error else {}
    values = {
        "dlmon_loader_batches_total": (seen.batches, truth.batches),
        "dlmon_loader_epochs_total": (seen.epochs, len(truth.epochs)),
        "dlmon_loader_errors_total": (positive(seen.errors), errors),
        "dlmon_loader_timeouts_total": (seen.timeouts, int(truth.error == "timeout")),
        "dlmon_loader_samples_total": (seen.samples, truth.samples),
        "dlmon_loader_discarded_batches_total": (seen.discarded, truth.discarded),
        "dlmon_loader_worker_starts_total": (seen.worker_starts, truth.starts),
        "dlmon_loader_worker_exits_total": (positive(seen.worker_exits), truth.exits),
        "dlmon_loader_ready_batches": (seen.ready, 0),
        "dlmon_loader_outstanding_batches": (seen.outstanding, 0),
    }
    shown = {metric: pair for metric, pair in values.items() if known(metric, seen)}
    assert {m: was for m, (was, _) in shown.items()} == {m: is_ for m, (_, is_) in shown.items()}


def positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}


def assert_says_what_is_missing(segment_dir: Path, job: Job, everything: bool) -> None:
    """Check that a job of which nothing can be seen says so once, and any other says nothing."""
    said = [line for line in job.output().splitlines() if not line.startswith(FACTS)]
    if everything:
        assert not observe(segment_dir).ranks
        assert ["not observed" in line for line in said] == [True]
    else:
        assert said == []
