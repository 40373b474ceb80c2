"""Where a loop's time went is what the loop's own clock says, phase by phase."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dlmon.segment.layout import Phase
from tests.jobs import JobStarter, wait_for
from tests.observing import facts, loader, observe, observer

TOLERANCE = 0.01  # of wall time
JOB_SECONDS = 250  # half a minute, and its spawned workers' imports of torch on a busy machine

JOB = """
    import json
    import time

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset

    THRESHOLD = 10.0  # a longer gap is a checkpoint: step up to here, pause after
    now = time.monotonic


    class Slow(Dataset):
        def __init__(self, length):
            self.length = length

        def __len__(self):
            return self.length

        def __getitem__(self, index):
            time.sleep(0.02)
            return torch.tensor(index)


    def iterate(loader, spent, body, stop=None):
        # `body(number)` returns what of its time was pause
        begun = now()
        iterator = iter(loader)
        number = 0
        while True:
            entered = now()
            try:
                next(iterator)
            except StopIteration:
                spent["teardown"] += now() - entered
                return
            delivered = now()
            if number:
                spent["wait"] += delivered - entered
            else:
                spent["startup"] += delivered - begun
            pause = body(number)
            number += 1
            spent["pause"] += pause
            spent["step"] += now() - delivered - pause
            if number == stop:
                begun = now()
                del iterator
                spent["teardown"] += now() - begun
                return


    def main(method):
        train = dlmon.name(
            DataLoader(Slow(12), batch_size=2, num_workers=2, multiprocessing_context=method),
            "train",
        )
        val = dlmon.name(DataLoader(Slow(3), num_workers=1, multiprocessing_context=method), "val")
        phases = ("startup", "wait", "step", "pause", "teardown")
        spent = {name: dict.fromkeys(phases, 0.0) for name in ("train", "val")}
        outside = dict.fromkeys(("train", "val"), 0.0)

        def work(number):
            time.sleep(0.05)
            return 0.0

        def work_and_validate(number):
            work(number)
            if number != 2:
                return 0.0
            begun = now()
            iterate(val, spent["val"], work)
            return now() - begun

        def work_and_save(number):
            begun = now()
            time.sleep(11.5 if number == 3 else 0.05)
            return max(0.0, now() - begun - THRESHOLD)

        begun = now()
        iterate(train, spent["train"], work)
        for body, stop in ((work, 3), (work_and_validate, None), (work_and_save, None)):
            paused = now()
            time.sleep(0.2)
            outside["train"] += now() - paused
            iterate(train, spent["train"], body, stop)
        wall = now() - begun
        print("FACTS", json.dumps({"wall": wall, "spent": spent, "outside": outside}), flush=True)
        input()


    if __name__ == "__main__":
        main(METHOD)
"""


@pytest.mark.slow
@pytest.mark.timeout(2 * JOB_SECONDS + 60)
def test_phases_are_those_of_the_loops_own_clock(run_job: JobStarter, segment_dir: Path) -> None:
    jobs = {}
    for method in ("fork", "spawn"):  # both at once: mostly they sleep
        directory = segment_dir / method
        directory.mkdir(mode=0o700)
        source = JOB.replace("METHOD", repr(method))
        jobs[method] = run_job(source, env={"DLMON_DIR": str(directory)})
    for method, job in jobs.items():
        job.wait_for_output("FACTS", deadline=JOB_SECONDS)
        counted = facts(job)
        wall = counted["wall"]
        snapshot = observe(segment_dir / method)
        for name, outside in counted["outside"].items():
            seen = loader(snapshot, name)
            assert seen.phase is Phase.IDLE
            for phase, seconds in seen.phase_seconds.items():
                counted_seconds = counted["spent"][name][phase.name.lower()]
                assert seconds == pytest.approx(counted_seconds, abs=TOLERANCE * wall), (
                    f"{method}, {name}, {phase.name}"
                )
            if name == "train":
                total = sum(seen.phase_seconds.values()) + outside
                assert total == pytest.approx(wall, rel=TOLERANCE), method
        job.tell()
        job.finish()


PERSISTENT = """
    import json
    import time

    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader

    now = time.monotonic


    def main():
        loader = DataLoader(list(range(40)), num_workers=1, persistent_workers=True)
        gap = 0.0
        for epoch in range(2):
            steps = []
            for number, _ in enumerate(loader):
                begun = now()
                time.sleep(0.05)
                steps.append(now() - begun)
                if epoch == 0 and number == 19:
                    break
            time.sleep(2)
            print("FACTS", json.dumps({"steps": steps, "gap": gap}), flush=True)
            input()
            gap = now() - begun


    if __name__ == "__main__":
        main()
"""


def test_what_follows_a_break_is_pause_and_no_counter_goes_down(
    run_job: JobStarter, segment_dir: Path
) -> None:
    """With persistent workers nothing shows a break until the next iter().

    How long the loop worked before it cannot be told: the last step is taken for a usual one.
    """
    job = run_job(PERSISTENT)
    *closed, _ = facts(job)["steps"]
    usual = sum(closed) / len(closed)
    with observer(segment_dir) as observing:
        broken = loader(observing.observe(), "loader")
        assert broken.phase is Phase.STEP
        assert broken.phase_seconds[Phase.STEP] == pytest.approx(sum(closed) + usual, abs=0.1)
        job.tell()
        told = facts(job, 2)
        over = loader(observing.observe(), "loader")
    assert over.phase is Phase.IDLE
    assert over.phase_seconds[Phase.PAUSE] == pytest.approx(told["gap"] - usual, abs=0.1)
    steps = sum(closed) + usual + sum(told["steps"])
    assert over.phase_seconds[Phase.STEP] == pytest.approx(steps, abs=0.2)
    assert all(over.phase_seconds[p] >= s for p, s in broken.phase_seconds.items())
    job.tell()
    job.finish()


BLOCKED = """
    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Blocks(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            if index == 2:
                with open(FIFO) as fifo:  # nobody writes yet
                    fifo.read()
            return torch.tensor(index)


    def main():
        loader = DataLoader(Blocks(), num_workers=WORKERS)
        for batch in loader:
            print("got", int(batch), flush=True)
        print("done", flush=True)
        input()


    if __name__ == "__main__":
        main()
"""


@pytest.mark.parametrize("workers", [0, 1], ids="workers={}".format)
def test_wait_goes_on_rising_while_next_is_blocked(
    workers: int, run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = BLOCKED.replace("FIFO", repr(str(fifo))).replace("WORKERS", str(workers))
    job = run_job(source)
    job.wait_for_output("got 1")
    with observer(segment_dir) as observing:

        def waited() -> float:
            return loader(observing.observe(), "loader").phase_seconds[Phase.WAIT]

        def fetched() -> float:
            seen = loader(observing.observe(), "loader")
            return sum(worker.fetch_seconds for worker in seen.workers)

        first = wait_for(waited, "wait that is shown")
        assert loader(observing.observe(), "loader").phase is Phase.WAIT
        second = wait_for(lambda: (w := waited()) > first + 0.5 and w, "rising wait")
        if workers:
            wait_for(lambda: fetched() > 0.5, "fetch that is shown")
        fifo.open("w").close()
        job.wait_for_output("done")
        assert waited() >= second
    job.tell()
    job.finish()
