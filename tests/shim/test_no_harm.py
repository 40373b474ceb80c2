"""What jobs do that a shim must survive: each of these went wrong once."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlmon.segment.layout import Phase
from dlmon.shim import _others
from tests.jobs import JobStarter, wait_for
from tests.observing import facts, loader, observe, observer

PLAIN_DATASET = """
    class Plain:  # of a module that does not know torch
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return index


    if __name__ == "__main__":
        import dlmon

        dlmon.instrument()

        from torch.utils.data import DataLoader

        loader = DataLoader(
            Plain(), collate_fn=list, num_workers=1, multiprocessing_context=METHOD
        )
        assert list(loader) == [[i] for i in range(6)]
        print("FACTS {}", flush=True)
        input()
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_worker_that_has_not_imported_torch(
    method: str, run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(PLAIN_DATASET.replace("METHOD", repr(method)))
    facts(job)
    seen = loader(observe(segment_dir), "loader")
    assert (seen.batches, [worker.batches for worker in seen.workers]) == (6, [6])
    job.tell()
    job.finish()


INHERITED = """
    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader, IterableDataset


    class Outer(IterableDataset):
        def __init__(self):
            self.inner = iter(DataLoader(list(range(3000))))  # made before the fork

        def __iter__(self):
            for _ in range(2500):
                yield next(self.inner)


    loader = DataLoader(Outer(), num_workers=1, batch_size=2)
    assert sum(1 for _ in loader) == 1250
    print("FACTS {}", flush=True)
    input()
"""


def test_a_worker_with_an_iterator_from_before_the_fork(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(INHERITED)
    facts(job)
    seen = loader(observe(segment_dir), "loader")
    assert (seen.batches, seen.samples, seen.workers[0].batches) == (1250, 2500, 1250)
    job.tell()
    job.finish()


HANDLERS = """
    import json
    import signal
    import time

    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader


    class Enough(Exception):
        pass


    def iterate(*_):
        assert sum(int(x) for x in DataLoader([1, 2, 3])) == 6


    def stop(*_):
        raise Enough


    loader = DataLoader([1, 2, 3])
    signal.signal(signal.SIGALRM, iterate)
    for number in range(500):
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + number % 50 * 0.00002)
        for _ in range(10):
            list(loader)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, stop)
    loader = DataLoader(list(range(10_000_000)))
    caught = sent = 0
    iterator = iter(loader)
    for _ in range(300):
        sent += 1
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0011)
            end = time.monotonic() + 0.5
            while time.monotonic() < end:
                try:
                    next(iterator)
                except StopIteration:  # a generator of torch's that the signal ended
                    iterator = iter(loader)
        except Enough:
            caught += 1
            iterator = iter(loader)
    print("FACTS", json.dumps({"caught": caught, "sent": sent}), flush=True)
"""


def test_signal_handlers_that_iterate_or_raise(run_job: JobStarter) -> None:
    told = facts(run_job(HANDLERS))
    assert told["caught"] == told["sent"]


ENDED = """
    import os

    import dlmon

    dlmon.instrument(run="ended", rank=0)

    from torch.utils.data import DataLoader

    loader = DataLoader([1, 2, 3])
    list(loader)
    child = os.fork()
    if child == 0:
        list(loader)
        print("FACTS {}", flush=True)
        input()
        os._exit(0)  # no goodbye
    os.waitpid(child, 0)
"""


def test_a_child_without_goodbye_is_no_rank_that_died(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(ENDED)
    facts(job)
    with observer(segment_dir) as observing:
        assert loader(observing.observe(), "loader").batches == 6
        job.tell()
        job.finish()
        assert observing.observe().ranks == ()


NESTED = """
    import json
    import time

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset

    now = time.monotonic
    spent = {"wait": 0.0, "step": 0.0}


    class Outer(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            begun = now()
            inner = dlmon.name(DataLoader([1.0, 2.0]), "inner")
            for _ in inner:
                time.sleep(0.01)
            if index:  # the first is startup
                spent["wait"] += now() - begun
            return torch.zeros(1)


    outer = dlmon.name(DataLoader(Outer()), "outer")
    for _ in outer:
        begun = now()
        time.sleep(0.02)
        spent["step"] += now() - begun
    print("FACTS", json.dumps(spent), flush=True)
    input()
"""


def test_a_loader_inside_the_dataset_of_the_rank(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(NESTED)
    spent = facts(job)
    outer = loader(observe(segment_dir), "outer").phase_seconds
    assert outer[Phase.WAIT] == pytest.approx(spent["wait"], abs=0.2)
    assert outer[Phase.STEP] == pytest.approx(spent["step"], abs=0.2)
    assert outer[Phase.PAUSE] == 0
    job.tell()
    job.finish()


EXHAUSTED = """
    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader, IterableDataset


    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(5))


    loader = DataLoader(Stream())
    first = iter(loader)
    list(first)
    for _ in range(3):
        list(loader)
    print("FACTS {}", flush=True)
    input()
    assert next(first, None) is None
    print("FACTS {}", flush=True)
    input()
"""


def test_an_exhausted_iterator_does_not_write_to_its_successors_cells(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(EXHAUSTED)
    facts(job)
    before = loader(observe(segment_dir), "loader")
    job.tell()
    facts(job, 2)
    after = loader(observe(segment_dir), "loader")
    assert (after.fetch, after.wait, after.batches) == (before.fetch, before.wait, 20)
    job.tell()
    job.finish()


MADE_IN_ONE_PLACE = """
    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader


    def make(length):
        return DataLoader(list(range(length)))


    class Mine(DataLoader):
        def __init__(self, length):
            super().__init__(list(range(length)))


    train, val = [make(n) for n in (20, 3)]
    mine = Mine(4)
    for number, _ in enumerate(train):
        if number in (5, 10):
            list(val)
    list(val)
    list(mine)
    print("FACTS {}", flush=True)
    input()
"""


def test_loaders_of_one_place_do_not_exchange_their_names(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(MADE_IN_ONE_PLACE)
    facts(job)
    (rank,) = observe(segment_dir).ranks
    assert sorted(one.batches for one in rank.loaders) == [4, 9, 20]
    assert "mine" in [one.name for one in rank.loaders]
    job.tell()
    job.finish()


FORKS_IN_WORKER = """
    import os

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Forks(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            child = os.fork()
            if child == 0:
                list(DataLoader([1, 2, 3]))
                os._exit(0)
            os.waitpid(child, 0)
            return torch.tensor(index)


    loader = dlmon.name(DataLoader(Forks(), num_workers=1), "forks")
    assert len(list(loader)) == 4
    print("FACTS {}", flush=True)
    input()
"""


def test_a_workers_child_does_not_write_the_workers_cells(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(FORKS_IN_WORKER)
    facts(job)
    seen = loader(observe(segment_dir), "forks")
    assert (seen.batches, seen.workers[0].batches) == (4, 4)
    job.tell()
    job.finish()


LOST = """
    import glob
    import os

    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader

    list(DataLoader([1, 2, 3]))
    (path,) = glob.glob(os.environ["DLMON_DIR"] + "/*.seg")
    os.close(os.open(path, os.O_RDONLY))  # any close of the file drops the rank's lock
    print("FACTS {}", flush=True)
    input()
"""


def test_the_segment_of_a_living_job_that_lost_its_lock_is_not_removed(
    run_job: JobStarter, segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run_job(LOST)
    facts(job)
    monkeypatch.setattr(_others, "STALE_SECONDS", -1)
    _others.remove_stale(str(segment_dir))
    assert len(list(segment_dir.iterdir())) == 1
    assert observe(segment_dir).ranks[0].up
    job.kill()
    wait_for(job.ended, "end")
    _others.remove_stale(str(segment_dir))
    assert list(segment_dir.iterdir()) == []


def test_a_full_table_of_segments_is_said_once_and_harms_nobody(run_job: JobStarter) -> None:
    job = run_job("""
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

        import dlmon

        dlmon.instrument()

        from torch.utils.data import DataLoader

        loaders = [dlmon.name(DataLoader([1, 2]), f"l{n}") for n in range(20)]
        for loader in loaders:
            assert len(list(loader)) == 2
        print("FACTS {}", flush=True)
    """)
    facts(job)
    wait_for(job.ended, "end")
    assert job.output().count("segments are in use") == 1
