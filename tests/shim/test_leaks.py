"""A thousand iterators, made and dropped in every way, leave things where they were."""

from __future__ import annotations

from typing import Any

import pytest

from tests.jobs import JobStarter
from tests.observing import facts

MEGABYTE = 1 << 20
DEADLINE_SECONDS = 280.0

JOB = """
    import gc
    import json
    import multiprocessing
    import os
    import sys
    import threading
    import traceback

    if {observed}:
        import dlmon

        dlmon.instrument()

    from torch.utils.data import DataLoader

    WORKERS = {workers}
    TIMES = {times}


    class Data:
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == self.fails_at:
                raise ValueError(index)
            return index

        fails_at = None


    class Failing(Data):
        fails_at = 2


    def new(data=Data, workers=WORKERS, **options):
        return DataLoader(data(), num_workers=workers, collate_fn=list, **options)


    loader, other, failing = new(), new(), new(Failing)
    by_workers = [new(workers=workers) for workers in ((0, 1, 2) if WORKERS else (0,) * 3)]


    def to_the_end(number):
        assert len(list(loader)) == 4


    def broken_off(number):
        for _ in loader:
            break


    def deleted_before_the_first(number):
        iterator = iter(loader)
        del iterator


    def never_exhausted(number):
        iterator = iter(loader)
        next(iterator)


    def two_at_once(number):
        assert len(list(zip(loader, other))) == 4


    def two_of_one_loader(number):
        assert len(list(zip(loader, loader))) == 4


    def fails(number):
        try:
            list(failing)
        except ValueError as error:
            # With workers torch's own traceback and exception keep the iterator in a cycle.
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None


    def in_a_cycle(number):
        if WORKERS:  # torch itself then waits five seconds for each worker
            return
        cycle = [iter(loader)]
        cycle.append(cycle)
        next(cycle[0])
        del cycle
        gc.collect()  # until then it lives, and has a segment of its own


    def in_a_thread(number):
        thread = threading.Thread(target=to_the_end, args=(number,))
        thread.start()
        thread.join()


    def of_a_new_loader(number):
        assert len(list(new())) == 4


    def of_a_new_loader_with_a_name(number):
        one = new()
        if {observed}:
            dlmon.name(one, f"name {{number % 3}}")
        assert len(list(one)) == 4


    def with_other_num_workers(number):
        assert len(list(by_workers[number % 3])) == 4


    def of_a_new_persistent_loader(number):
        one = new(persistent_workers=WORKERS > 0)
        for _ in one:
            break
        assert len(list(one)) == len(list(one)) == 4


    WAYS = [
        to_the_end,
        broken_off,
        deleted_before_the_first,
        never_exhausted,
        two_at_once,
        two_of_one_loader,
        fails,
        in_a_cycle,
        in_a_thread,
        of_a_new_loader,
        of_a_new_loader_with_a_name,
        with_other_num_workers,
        of_a_new_persistent_loader,
    ]


    def tables():
        found = {{}}
        for module in [m for name, m in sys.modules.items() if name.startswith("dlmon")]:
            for name, value in vars(module).items():
                if isinstance(value, (dict, list, set)) and name != "__builtins__":
                    found[f"length of {{module.__name__}}.{{name}}"] = len(value)
        return found


    def state():
        gc.collect()
        for thread in threading.enumerate()[1:]:  # those that fed the workers' queues
            thread.join(30)
        multiprocessing.active_children()  # forgets those that have ended
        return {{
            "fds": len(os.listdir("/proc/self/fd")),
            "segments": len(os.listdir(os.environ["DLMON_DIR"])),
            "threads": threading.active_count(),
            "children": children(),
            **tables(),
            "objects": len(gc.get_objects()),
        }}


    def children():
        count = 0
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{{pid}}/stat") as stat:
                    count += int(stat.read().rpartition(")")[2].split()[1]) == os.getpid()
            except OSError:
                pass
        return count


    def resident():
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


    def run(times):
        states = {{}}
        for way in WAYS:
            for number in range(3):
                way(number)
            before = state()
            for number in range(times):
                way(number)
            states[way.__name__] = before, state()
        return states


    run(0)  # fills caches and makes the segments
    gc.freeze()  # torch's 170,000 objects are not looked at each time
    before = resident()
    states = run(TIMES)
    told = {{"states": states, "grown": resident() - before}}
    print("FACTS", json.dumps(told), flush=True)
"""


def tell(run_job: JobStarter, *, observed: bool, workers: int, times: int) -> dict[str, Any]:
    job = run_job(JOB.format(observed=observed, workers=workers, times=times))
    job.finish(deadline=DEADLINE_SECONDS)
    return facts(job)


def check(run_job: JobStarter, *, workers: int, times: int) -> None:
    """Compare states around each way of using up iterators, and memory with and without us.

    A thread that fed a worker's queue and has ended leaves 15 objects for a while.
    """
    most = 20 if workers else 5  # `before` itself is among them
    plain = tell(run_job, observed=False, workers=workers, times=times)
    observed = tell(run_job, observed=True, workers=workers, times=times)
    for way, (before, after) in observed["states"].items():
        objects = after.pop("objects") - before.pop("objects")
        assert before["segments"], way  # it was observed
        assert {what for what in after if after[what] != before.get(what)} == set(), way
        assert objects <= most, way
    assert observed["grown"] <= plain["grown"] + MEGABYTE


@pytest.mark.slow
def test_a_thousand_iterators_in_the_rank_leave_nothing(run_job: JobStarter) -> None:
    check(run_job, workers=0, times=1000)


@pytest.mark.slow
def test_a_hundred_iterators_with_workers_leave_nothing(run_job: JobStarter) -> None:
    check(run_job, workers=1, times=8)


@pytest.mark.slow
@pytest.mark.timeout(2 * DEADLINE_SECONDS + 20)
def test_a_thousand_iterators_with_workers_leave_nothing(run_job: JobStarter) -> None:
    check(run_job, workers=1, times=80)
