"""No system call per batch: what the rank and a worker ask of the kernel is what torch asks."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_tool
from tests.jobs import JobStarter

BATCHES = 1000
TRACE_SECONDS = 250  # under strace the import of torch alone can take a minute

TRACED = """
    import os
    import sys

    if "TRACE" in os.environ:  # become the same script under strace, one file for each thread
        trace = os.environ.pop("TRACE")
        os.execv(
            os.environ["STRACE"],
            ["strace", "-qq", "-ff", "-o", trace, sys.executable, __file__],
        )

    if os.environ["OBSERVED"] == "1":
        import dlmon

        dlmon.instrument()

    from torch.utils.data import DataLoader, IterableDataset

    BATCHES = {batches}
    FIRST = 50  # by then the iteration is in its stride


    def mark(who, number):  # a call that is in the trace, and that nobody else makes
        if number in (FIRST, FIRST + BATCHES):
            os.access(f"/mark-{{who}}-{{number - FIRST}}", os.F_OK)


    class Map:
        def __init__(self, who):
            self.who = who

        def __len__(self):
            return BATCHES + 2 * FIRST

        def __getitem__(self, index):
            mark(self.who, index)
            return index


    class Stream(Map, IterableDataset):
        def __iter__(self):
            return map(self.__getitem__, range(len(self)))


    def first(samples):
        return samples[0]


    for kind in (Map, Stream):
        for workers in (0, 1):
            who = f"{{kind.__name__}}-{{workers}}"
            loader = DataLoader(kind(f"fetch-{{who}}"), collate_fn=first, num_workers=workers)
            for number, batch in enumerate(loader):
                mark(f"loop-{{who}}", number)
                assert batch == number
"""

Calls = dict[str, Counter[str]]
"""By who made them (`loop-Map-0`), system calls by name between that one's two marks."""


@pytest.fixture
def strace() -> Path:
    """A strace that may trace."""
    program = require_tool("strace")
    tried = subprocess.run(
        [program, "-o", "/dev/null", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"strace may not trace here: {tried.stderr.strip()}")
    return program


def trace(strace: Path, run_job: JobStarter, folder: Path, *, observed: bool) -> Calls:
    """Run the job under strace and return who called what."""
    folder.mkdir()
    job = run_job(
        TRACED.format(batches=BATCHES),
        env={"STRACE": str(strace), "TRACE": str(folder / "t"), "OBSERVED": str(int(observed))},
    )
    job.finish(deadline=TRACE_SECONDS)
    found: Calls = {}
    for file in folder.iterdir():
        found.update(_marked(file.read_text(errors="replace").splitlines()))
    return found


def _marked(lines: list[str]) -> Iterator[tuple[str, Counter[str]]]:
    """Count the calls of one thread from each first mark to the second."""
    open_marks: dict[str, Counter[str]] = {}
    for line in lines:
        if mark := re.match(r'access\("/mark-([\w-]+)-(\d+)"', line):
            who, number = mark.groups()
            if number == "0":
                open_marks[who] = Counter()
            else:
                yield who, open_marks.pop(who)
        elif call := re.match(r"\w+(?=\()", line):
            for calls in open_marks.values():
                calls[call[0]] += 1


@pytest.mark.slow
@pytest.mark.timeout(2 * TRACE_SECONDS + 100)
def test_a_batch_costs_no_system_call(strace: Path, run_job: JobStarter, tmp_path: Path) -> None:
    """The clock is read in user space; with workers, what torch itself calls is all there is.

    `futex` is left out where there are workers: how often a thread waits for a lock of torch's or
    of the interpreter's depends on who is scheduled when. dlmon takes none there.
    """
    plain = trace(strace, run_job, tmp_path / "plain", observed=False)
    observed = trace(strace, run_job, tmp_path / "observed", observed=True)
    assert set(observed) == set(plain)
    assert len(observed) == 8
    for who in plain:
        if who.endswith("-0"):
            assert not plain[who], who
        else:
            plain[who].pop("futex", 0)
            observed[who].pop("futex", 0)
            assert plain[who].total() >= 3 * BATCHES, who  # poll and read: it was traced
        assert observed[who] == plain[who], who
