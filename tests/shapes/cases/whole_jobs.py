"""Whole processes: exit status, output and what is left of a job that ends in its own way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap

from tests.shapes.job import instrumented
from tests.shapes.records import steady
from tests.shapes.table import case, each

HEAD = """
    import os
    import signal
    import sys
    import threading

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Numbers(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return torch.tensor(index)


    loader = DataLoader(Numbers(), num_workers=WORKERS, persistent_workers=PERSISTENT)
"""

ENDS = {
    "nothing": "",
    "an epoch": "print(len(list(loader)))",
    "in the middle": "iterator = iter(loader); print(next(iterator))",
    "after a break": """
        for batch in loader:
            print(batch)
            break
    """,
    "an error": """
        for batch in loader:
            raise ValueError("in the loop")
    """,
    "exit": """
        for batch in loader:
            sys.exit(3)
    """,
    "hard exit": """
        iterator = iter(loader)
        next(iterator)
        del iterator
        os._exit(4)
    """,
    "interrupt": """
        for batch in loader:
            os.kill(os.getpid(), signal.SIGINT)
    """,
    "interrupt caught": """
        try:
            for batch in loader:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            print("caught")
        print(len(list(loader)))
    """,
    "a handler": """
        signal.signal(signal.SIGUSR1, lambda *_: print("handled", len(list(loader))))
        for batch in loader:
            signal.raise_signal(signal.SIGUSR1)
            break
    """,
    "terminated": """
        for batch in loader:
            signal.raise_signal(signal.SIGTERM)
    """,
    "a thread": """
        def loop():
            print(len(list(loader)))

        thread = threading.Thread(target=loop)
        thread.start()
    """,
    "at exit": """
        import atexit

        atexit.register(lambda: print("at exit", len(list(DataLoader(Numbers())))))
        print(len(list(loader)))
    """,
    "in __del__": """
        class Late:
            def __del__(self):
                print("late", len(list(DataLoader(Numbers()))))

        late = Late()
        late.cycle = late
        print(len(list(loader)))
        del late
        import gc
        gc.collect()
    """,
    "no files left": """
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        kept = [os.dup(0) for _ in range(32 - 12)]
        print(len(list(DataLoader(Numbers()))))
    """,
    "another directory": """
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
        print(len(list(loader)))
        os.chdir("/")
    """,
    "no environment": """
        os.environ.clear()
        print(len(list(loader)))
    """,
    "no standard output": """
        sys.stdout = sys.stderr = None
        len(list(loader))
    """,
    "modules removed": """
        for name in [n for n in sys.modules if n.startswith("torch.utils.data")]:
            del sys.modules[name]
        print(len(list(loader)))
    """,
    "reloaded": """
        import importlib

        import torch.utils.data.dataloader

        importlib.reload(torch.utils.data.dataloader)
        print(len(list(loader)), len(list(torch.utils.data.dataloader.DataLoader(Numbers()))))
    """,
}
WITHOUT_ORDER = ("in the middle", "interrupt", "terminated", "an error", "exit")
"""What workers print when their rank ends under them depends on where they are just then."""


QUICK = {("in the middle", 2), ("interrupt", 2), ("reloaded", 0)}
"""Each is three jobs that import torch: the others are left to `make full`."""


@case(
    each(end=list(ENDS), workers=[0, 2]),
    slow=lambda end, workers: (end, workers) not in QUICK,
)
def ends(end: str, workers: int) -> object:
    return ran(end, workers, persistent=False)


@case(each(end=["an epoch", "in the middle", "after a break", "an error", "interrupt"]), slow=True)
def ends_with_persistent_workers(end: str) -> object:
    return ran(end, 2, persistent=True)


def ran(end: str, workers: int, *, persistent: bool) -> object:
    head = textwrap.dedent(HEAD).replace("WORKERS", str(workers))
    script = head.replace("PERSISTENT", str(persistent)) + textwrap.dedent(ENDS[end])
    # To files, not pipes, whose end comes only after the last orphaned worker: a rank that a signal
    # ends leaves workers that may wait for ever, without dlmon too.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        job = subprocess.Popen(
            [sys.executable, "-c", script], stdout=out, stderr=err, start_new_session=True
        )
        try:
            status = job.wait(50)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
            job.wait()
        out.seek(0)
        err.seek(0)
        printed = steady(out.read()), steady(err.read())
    if workers and end in WITHOUT_ORDER:
        printed = (printed[0], printed[1].strip().rpartition("\n")[2])
    return status, printed


@case(each(strict=["", "0", "1"]), slow=lambda strict: strict != "1")
def switched_off_by_the_environment(strict: str) -> object:
    """DLMON_DISABLE=1: not even imported."""
    script = textwrap.dedent(HEAD).replace("WORKERS", "1").replace("PERSISTENT", "False")
    script += 'print(len(list(loader)), sorted(n for n in sys.modules if "dlmon" in n))\n'
    env = {**os.environ, "DLMON_DISABLE": "1", "DLMON_STRICT": strict}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env
    )
    return run.returncode, run.stdout, steady(run.stderr)


@case()
def a_directory_that_cannot_be_used() -> object:
    """Said once, in one line, and the job runs on."""
    script = textwrap.dedent(HEAD).replace("WORKERS", "1").replace("PERSISTENT", "False")
    script += "print(len(list(loader)), len(list(DataLoader(Numbers()))))\n"
    env = {**os.environ, "DLMON_DIR": "/proc/nowhere"}
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env
    )
    lines = run.stderr.splitlines()
    ours = [line for line in lines if line.startswith("dlmon:")]
    assert len(ours) == instrumented(), run.stderr
    return run.returncode, run.stdout, [line for line in lines if line not in ours]


@case()
def segments_that_are_cleaned_away() -> object:
    """Somebody empties the directory while the job runs: it goes on, and says no more than once."""
    script = textwrap.dedent(HEAD).replace("WORKERS", "1").replace("PERSISTENT", "False")
    script += textwrap.dedent("""
        print(len(list(loader)))
        for name in os.listdir(os.environ["DLMON_DIR"]):
            os.unlink(os.path.join(os.environ["DLMON_DIR"], name))
        os.rmdir(os.environ["DLMON_DIR"])
        for number in range(3):
            print(len(list(loader)), len(list(DataLoader(Numbers(), batch_size=number + 1))))
    """)
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as folder:
        env = {**os.environ, "DLMON_DIR": folder}
        run = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=env
        )
    lines = run.stderr.splitlines()
    ours = [line for line in lines if line.startswith("dlmon:")]
    assert len(ours) <= instrumented(), run.stderr
    return run.returncode, run.stdout, [line for line in lines if line not in ours]


@case()
def signals_are_handled_as_before() -> object:
    return [steady(str(signal.getsignal(number))) for number in sorted(signal.valid_signals())]
