"""`uninstrument()` in jobs of their own: before torch, under `dlmon run`, from signal handlers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlmon.segment.layout import Phase
from tests.commands.launching import launch
from tests.conftest import ROOT
from tests.jobs import JobStarter
from tests.observing import facts, loader, observe, only_rank

ENV = {"PYTHONPATH": str(ROOT)}  # for tests.shim.patching

BEFORE_TORCH = """
    import sys

    import dlmon

    finders = list(sys.meta_path)
    for _ in range(3):
        dlmon.instrument()
        dlmon.uninstrument()
    assert sys.meta_path == finders

    from torch.utils.data import DataLoader

    from tests.shim import patching

    assert patching.ours() == []
    list(DataLoader([1, 2, 3]))
    dlmon.instrument()
    assert len(patching.ours()) == len(patching.PLACES)
    loader = dlmon.name(DataLoader([1, 2, 3]), "loader")
    list(loader)
    print("FACTS {}", flush=True)
    input()
"""


def test_undo_before_torch_is_imported(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(BEFORE_TORCH, env=ENV)
    facts(job)
    rank = only_rank(observe(segment_dir))
    assert [(one.name, one.batches) for one in rank.loaders] == [("loader", 3)]
    job.tell()
    job.finish()


UNDER_RUN = """
import dlmon

{before_torch}
from torch.utils.data import DataLoader

from tests.shim import patching

if __name__ == "__main__":
    {after_torch}
    assert patching.ours() == []
    assert len(list(DataLoader([1, 2, 3]))) == 3
    for method in ("fork", "spawn"):
        workers = DataLoader([1, 2, 3], num_workers=1, multiprocessing_context=method)
        assert len(list(workers)) == 3
    print("FACTS {{}}", flush=True)
    input()
"""


@pytest.mark.parametrize(
    "when", [pytest.param("before_torch", marks=pytest.mark.slow), "after_torch"]
)
def test_undo_under_dlmon_run(
    when: str, run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    places = {"before_torch": "", "after_torch": "", when: "dlmon.uninstrument()"}
    (tmp_path / "undone.py").write_text(UNDER_RUN.format(**places))
    job = launch(run_job, "undone.py", env=ENV)
    facts(job)
    assert not list(segment_dir.iterdir())
    job.tell()
    job.finish()


DISABLED = """
    import sys

    import dlmon

    finders = list(sys.meta_path)
    dlmon.instrument()
    assert sys.meta_path == finders

    from torch.utils.data import DataLoader

    from tests.shim import patching

    dlmon.instrument(run="x", rank=1)
    assert patching.ours() == []
    assert len(list(dlmon.name(DataLoader([1, 2, 3], num_workers=1), "name"))) == 3
    dlmon.uninstrument()
"""


def test_disabled_by_the_environment(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(DISABLED, env={**ENV, "DLMON_DISABLE": "1"})
    assert job.finish() == ""
    assert not list(segment_dir.iterdir())


COVERED = """
    import dlmon
    from torch.utils.data import DataLoader

    from tests.shim.patching import PLACES, Patch

    numbers = list(range(5))
    loaders = [
        dlmon.name(DataLoader(numbers), "alone"),
        dlmon.name(DataLoader(numbers, num_workers=1), "worker"),
    ]


    def epochs():
        for loader in loaders:
            assert [int(batch) for batch in loader] == numbers


    dlmon.instrument()
    theirs = [Patch(*place) for place in PLACES]
    for _ in range(10):
        epochs()
        dlmon.uninstrument()
        epochs()
        dlmon.instrument()
    for patch in theirs:
        patch.undo()
    dlmon.instrument()
    for _ in range(10):
        epochs()
        dlmon.uninstrument()
        epochs()
        dlmon.instrument()
    theirs = [Patch(*place) for place in PLACES]
    dlmon.uninstrument()
    epochs()
    print("FACTS {}", flush=True)
    input()
"""


def test_what_is_iterated_while_instrumented_is_counted_once_however_covered(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(COVERED, env=ENV)
    facts(job)
    snapshot = observe(segment_dir)
    alone, worker = loader(snapshot, "alone"), loader(snapshot, "worker")
    assert (alone.epochs, alone.batches) == (20, 100)
    assert alone.samples == 95  # a fetch under another library's patch is left to that
    assert (worker.epochs, worker.batches, worker.worker_starts) == (20, 100, 20)
    assert {alone.phase, worker.phase} == {Phase.IDLE}
    job.tell()
    job.finish()


HANDLER = """
    import random
    import signal

    import dlmon
    from torch.utils.data import DataLoader

    from tests.shim import patching

    torch = patching.state()
    random.seed({seed})
    numbers = list(range(20))
    handled = 0


    def toggle(*_):
        global handled
        handled += 1
        random.choice((dlmon.instrument, dlmon.uninstrument))()


    def collate(samples):
        return samples[0]


    signal.signal(signal.SIGALRM, toggle)
    dlmon.instrument()
    list(DataLoader(numbers))
    while handled < 500:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))
        for _ in range(5):
            loader = DataLoader(numbers, collate_fn=collate)
            assert list(dlmon.name(loader, "loader")) == numbers
    signal.setitimer(signal.ITIMER_REAL, 0)
    dlmon.uninstrument()
    assert not patching.changes(torch)
    print("FACTS {{}}", flush=True)
"""


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))]
)
def test_instrument_and_undo_in_a_signal_handler(seed: int, run_job: JobStarter) -> None:
    job = run_job(HANDLER.format(seed=seed), env=ENV)
    facts(job)
    job.finish()


LATER = """
    import os

    import dlmon
    from torch.utils.data import DataLoader

    for name in ("first", "second", "first"):
        directory = os.path.join(os.environ["DLMON_DIR"], name)
        dlmon.instrument(run=name, rank=7, dir=directory)
        loader = dlmon.name(DataLoader([1, 2, 3]), "loader")
        list(loader)
        dlmon.uninstrument()
    print("FACTS {}", flush=True)
    input()
"""


def test_what_a_later_instrument_asks_for_holds(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(LATER)
    facts(job)
    for name, batches in (("first", 6), ("second", 3)):
        rank = only_rank(observe(segment_dir / name))
        assert (rank.run, rank.rank) == (name, "7")
        assert [one.batches for one in rank.loaders] == [batches]
    job.tell()
    job.finish()
    assert not [*segment_dir.glob("*/*")]


UNDONE = """
    import dlmon
    from torch.utils.data import DataLoader

    dlmon.instrument()
    alone = dlmon.name(DataLoader([1, 2, 3]), "alone")
    worker = dlmon.name(DataLoader([1, 2, 3], num_workers=1), "worker")
    iterators = iter(alone), iter(worker)
    for iterator in iterators:
        next(iterator)
    dlmon.uninstrument()
    print("FACTS {}", flush=True)
    input()
    for iterator in iterators:
        assert len(list(iterator)) == 2
    print("FACTS {}", flush=True)
    input()
"""


def test_a_job_that_undid_is_idle_not_dead_and_leaves_nothing(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(UNDONE)
    for number in (1, 2):
        facts(job, number)
        snapshot = observe(segment_dir)
        assert only_rank(snapshot).up
        for name in ("alone", "worker"):
            assert loader(snapshot, name).phase is Phase.IDLE
            assert loader(snapshot, name).batches == 1
        job.tell()
    job.finish()
    assert not list(segment_dir.iterdir())
