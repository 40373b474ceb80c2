"""What goes wrong in a loader reaches the loop unchanged, and is counted by its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlmon.observe.snapshot import WorkerState
from tests.jobs import JobStarter
from tests.observing import facts, loader, observe

JOB = """
    import gc
    import json
    import os
    import signal
    import time
    import traceback

    import dlmon

    dlmon.instrument()

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Faulty(Dataset):
        def __init__(self, fault):
            self.fault = fault

        def __len__(self):
            return 8

        def __getitem__(self, index):
            if index == 5:
                if self.fault == "raise":
                    raise ValueError("a bad sample")
                if self.fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self.fault == "exit":
                    os._exit(3)
                if self.fault == "sleep":
                    time.sleep(60)
            return torch.tensor(index)


    def main(fault, **options):
        loader = dlmon.name(DataLoader(Faulty(fault), **options), "train")
        delivered = []
        iterator = iter(loader)
        error = None
        try:
            try:
                while True:
                    delivered.append(int(next(iterator)))
            except Exception as first:
                error = first
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError as again:  # torch's handler of SIGCHLD, when there was an error already
            error = error or again.__context__
        message = f"{type(error).__name__}: {error}"
        places = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        in_next = torch.utils.data.dataloader.__file__ in places
        del iterator, error
        gc.collect()  # torch's way of raising a worker's error leaves a cycle with the iterator
        told = {"delivered": delivered, "message": message, "in_next": in_next}
        print("FACTS", json.dumps(told), flush=True)
        input()


    if __name__ == "__main__":
        main(FAULT, **OPTIONS)
"""


@pytest.mark.parametrize(
    ("fault", "options", "kind", "exits", "dead", "message"),
    [
        ("raise", {}, "fetch", {}, 0, "ValueError: a bad sample"),
        ("raise", {"num_workers": 1}, "fetch", {"normal": 1}, 0, "Caught ValueError"),
        # what torch says depends on where it was: killed, exited, connection reset, end of file
        ("kill", {"num_workers": 2}, "worker_died", {"sigkill": 1}, 1, "Error"),
        ("exit", {"num_workers": 1}, "worker_died", {"error": 1}, 1, "Error"),
        # torch ends these by SIGTERM, which its workers answer with status 0: no abnormal end
        ("sleep", {"num_workers": 1, "timeout": 1}, "timeout", {"normal": 1}, 0, "timed out after"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_are_counted_by_kind_and_exits_by_reason(
    fault: str,
    options: dict[str, int],
    kind: str,
    exits: dict[str, int],
    dead: int,
    message: str,
    run_job: JobStarter,
    segment_dir: Path,
) -> None:
    job = run_job(JOB.replace("FAULT", repr(fault)).replace("OPTIONS", repr(options)))
    told = facts(job)
    assert message in told["message"]
    assert told["delivered"] == list(range(len(told["delivered"])))
    seen = loader(observe(segment_dir), "train")
    # torch's signal handler for the end of a worker may raise in the loop's own step as well, also
    # before the loop has noted the batch that was just counted.
    assert seen.batches - len(told["delivered"]) in ((0,) if told["in_next"] else (0, 1))
    counted = {kind: 1} if told["in_next"] else {}
    assert {name: count for name, count in seen.errors.items() if count} == counted
    assert seen.timeouts == (kind == "timeout")
    assert seen.worker_starts == sum(seen.worker_exits.values())
    for reason, count in exits.items():
        assert seen.worker_exits[reason] == count
    assert (seen.last_abnormal_exit is not None) == bool(set(exits) - {"normal"})
    gone = [worker for worker in seen.workers if worker.up is False]
    assert [worker.state for worker in gone] == [WorkerState.DEAD] * dead
    job.tell()
    job.finish()
