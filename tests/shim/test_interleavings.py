"""Thousands of random interleavings: no error, no difference in what is delivered, no orphan.

An interleaving is one job of up to `steps` steps: loaders of every small shape are built, copied,
named, iterated in part or to the end, left by `break` or an exception, and deleted; datasets and
collate functions fail; hooks go in and out, also in the middle of a fetch, and other libraries
patch above and below; threads and forked children do all of this at the same time. A model in
plain Python says what each iterator must deliver, and of the jobs that are instrumented all along
what dlmon must count: `tests.shim.interleaving`, `tests.shim.modelled`.

Without workers an interleaving takes about 20 ms of CPU time, with workers about 150 ms.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from dlmon.segment.layout import Phase
from tests.conftest import ROOT
from tests.jobs import JobStarter
from tests.observing import facts, observe, only_rank

EXPLORE = """
    from tests.shim.interleaving import {machine}, explore

    explore({machine}, interleavings={interleavings}, steps=15, seconds={seconds})
    input()
"""

RULES = (
    "instrument",
    "uninstrument",
    "patch",
    "unpatch",
    "build",
    "copy",
    "name",
    "forget_loader",
    "iterate",
    "step",
    "finish",
    "delete",
    "epoch",
    "collect",
    "threads",
    "fork",
)
SECONDS = 100
SLOW_SECONDS = 1500
MANY = 2500 if os.environ.get("CI") else 10_000
"""CI has an hour for everything; `make full` explores ten thousand."""


def explore(run_job: JobStarter, machine: str, interleavings: int, seconds: int) -> Counter[str]:
    """Return what was done; the failure's message says by which steps it went wrong."""
    source = EXPLORE.format(machine=machine, interleavings=interleavings, seconds=seconds)
    job = run_job(source, env={"PYTHONPATH": str(ROOT)})
    job.wait_for_output("FACTS", deadline=seconds)
    done = Counter(facts(job))
    assert done["interleavings"] >= interleavings
    return done


@pytest.mark.parametrize(("machine", "interleavings"), [("Interleaving", 200), ("WithWorkers", 20)])
def test_random_interleavings(machine: str, interleavings: int, run_job: JobStarter) -> None:
    done = explore(run_job, machine, interleavings, SECONDS)
    assert 0 < done["watched"] < done["interleavings"]


@pytest.mark.slow
@pytest.mark.timeout(SLOW_SECONDS + 60)
@pytest.mark.parametrize(
    ("machine", "interleavings"), [("Interleaving", MANY), ("WithWorkers", 400)]
)
def test_many_random_interleavings(
    machine: str, interleavings: int, run_job: JobStarter, segment_dir: Path
) -> None:
    done = explore(run_job, machine, interleavings, SLOW_SECONDS)
    assert min(done[rule] for rule in RULES) > interleavings / 1000, done
    assert min(done["watched"], done["batches counted"]) > interleavings / 4, done
    assert done["segments"] < 100  # for a dozen names, with others of that name at the same time
    rank = only_rank(observe(segment_dir))
    assert rank.up
    assert (rank.shim_errors, rank.orphan_workers) == (0, 0)
    assert {one.phase for one in rank.loaders} == {Phase.IDLE}
