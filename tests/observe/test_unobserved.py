"""Workers of jobs without the shim: real jobs with every start method, seen from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dlmon.agent.admission import MOST_UNOBSERVED, Detail, admit
from dlmon.catalog import Subject, series_per
from dlmon.observe import memory, unobserved
from dlmon.observe.due import Due
from dlmon.observe.memory import Scanner
from dlmon.observe.scans import Scans
from dlmon.observe.snapshot import Unobserved, UnobservedWorker
from dlmon.observe.unobserved import Finder, script_of
from tests.agent.samples import make_snapshot, make_unobserved
from tests.agents import running
from tests.jobs import Job, JobStarter, wait_for
from tests.observing import observe

JOB = """
    import os
    import subprocess
    import sys
    import time

    if INSTRUMENT:
        import dlmon

        dlmon.instrument(run="seen", rank=0)

    from torch.utils.data import DataLoader


    class Numbers:
        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            if index == 0 and os.fork() == 0:  # a child of a worker is no worker
                time.sleep(600)
            time.sleep(0.005)
            return index


    if __name__ == "__main__":
        loader = DataLoader(Numbers(), num_workers=2, multiprocessing_context=METHOD)
        for number, batch in enumerate(loader):
            if number == 10:
                print("goes", flush=True)
"""


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here reads segments a moment earlier."""
    monkeypatch.setattr(unobserved, "SETTLED_SECONDS", 0.0)


# Names that no job of anybody else on this machine has.
UNSEEN, SEEN = (f"{name}-{os.getpid()}.py" for name in ("unseen", "seen"))


def start(run_job: JobStarter, method: str = "fork", *, instrument: bool = False) -> Job:
    source = JOB.replace("METHOD", repr(method)).replace("INSTRUMENT", repr(instrument))
    job = run_job(source, name=SEEN if instrument else UNSEEN)
    job.wait_for_output("goes")
    return job


def children(pid: int) -> set[int]:
    """The processes below a process, at any depth."""
    lines = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    pairs = [tuple(map(int, line.split())) for line in lines]
    found: set[int] = set()
    while more := {child for child, parent in pairs if parent in {pid, *found}} - found:
        found |= more
    return found


def scan(finder: Finder, script: str) -> Unobserved | None:
    groups = [group for group in finder.scan() if group.script == script]
    return groups[0] if groups else None


def until(
    finder: Finder, script: str, holds: Callable[[tuple[UnobservedWorker, ...]], bool]
) -> Unobserved:
    """Look until the workers of a script are so."""

    def found() -> Unobserved | None:
        group = scan(finder, script)
        return group if group and holds(group.workers) else None

    group = wait_for(found, f"workers of {script}")
    assert group is not None
    return group


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow), "forkserver"]
)
def test_workers_are_found_with_their_job_and_what_they_use(
    run_job: JobStarter, method: str
) -> None:
    job = start(run_job, method)
    group = until(Finder(), UNSEEN, lambda workers: len(workers) == 2)
    assert {worker.pid for worker in group.workers} < children(job.pid)
    for worker in group.workers:
        assert worker.parent == job.pid
        assert not worker.orphan
        assert worker.process_state in "RSD"
        assert (worker.resident_bytes or 0) > 10_000_000
        assert worker.cpu_seconds >= 0
        assert worker.read_bytes is not None
        assert abs(worker.started - time.time()) < 300
    assert group.user
    assert group.cpu_seconds == pytest.approx(sum(worker.cpu_seconds for worker in group.workers))


def test_their_memory_is_scanned_within_the_budget(run_job: JobStarter) -> None:
    start(run_job)
    finder = Finder(scanner=Scanner(0.1, 0.5))
    group = until(finder, UNSEEN, lambda workers: all(worker.scanned for worker in workers))
    for worker in group.workers:
        assert worker.resident_bytes is not None
        assert 0 < (worker.unique_bytes or 0) <= (worker.proportional_bytes or 0)
        assert (worker.proportional_bytes or 0) < worker.resident_bytes  # torch's pages are shared
    without = Finder(scanner=Scanner(0.1, 0.0))
    for _ in range(3):
        group = until(without, UNSEEN, lambda workers: len(workers) == 2)
        assert {worker.scanned for worker in group.workers} == {None}


def test_a_stopped_worker_is_stopped_and_an_orphan_has_no_parent(run_job: JobStarter) -> None:
    job = start(run_job)
    finder = Finder()
    before = until(finder, UNSEEN, lambda workers: len(workers) == 2)
    # The one that has forked: its child, left alone, would be an orphan of that name as well. It is
    # the first that was started, though not by its pid where pids begin anew.
    (first,) = (worker.pid for worker in before.workers if children(worker.pid))
    os.kill(first, signal.SIGSTOP)
    until(finder, UNSEEN, lambda workers: {w.pid: w for w in workers}[first].process_state == "T")
    job.kill()
    (orphan,) = until(
        finder, UNSEEN, lambda workers: len(workers) == 1 and workers[0].orphan
    ).workers
    assert (orphan.pid, orphan.parent, orphan.process_state) == (first, None, "T")
    # Who comes later knows it too.
    other = until(Finder(), UNSEEN, lambda workers: len(workers) == 1)
    assert other.workers[0].orphan
    after = scan(finder, UNSEEN)
    assert after is not None
    assert after.cpu_seconds >= before.cpu_seconds  # that of the one that ended included


def test_workers_that_the_shim_observes_are_left_out(
    run_job: JobStarter, segment_dir: Path
) -> None:
    start(run_job, instrument=True)
    start(run_job)
    finder = Finder()
    (loader,) = observe(segment_dir).ranks[0].loaders
    observed = [worker.pid for worker in loader.workers if worker.pid]
    assert len(observed) == 2
    finder.now(observed)
    until(finder, UNSEEN, lambda workers: len(workers) == 2)
    assert scan(finder, SEEN) is None


def test_an_agent_shows_only_the_job_without_the_shim(
    run_job: JobStarter, segment_dir: Path
) -> None:
    seen = start(run_job, instrument=True)
    unseen = start(run_job)
    with running("--dir", str(segment_dir)) as agent:

        def groups() -> dict[str, set[int | None]]:
            answer = json.loads(agent.get("/api/v1/snapshot")[1])["unobserved"]
            return {g["script"]: {w["parent"] for w in g["workers"]} for g in answer}

        wait_for(agent.ready, "ready")
        unseen.wait_for(lambda: UNSEEN in groups(), "the job without the shim")
        assert groups()[UNSEEN] == {unseen.pid}
        assert seen.pid not in {pid for parents in groups().values() for pid in parents}
        page = agent.get("/metrics")[1]
        assert f'script="{UNSEEN}",state="stopped"' in page


@pytest.mark.parametrize(
    ("words", "script"),
    [
        (["{script}", "--secret", "x"], "{name}"),
        (["-u", "-X", "dev", "-Wignore", "{script}", "-c"], "{name}"),
        (["-c", "import time; time.sleep(600)"], ""),
        (["-um", "{module}", "--secret"], "-m {module}"),
    ],
)
def test_a_script_is_named_without_its_arguments(
    tmp_path: Path, words: list[str], script: str
) -> None:
    path = tmp_path / "sleeping.py"
    path.write_text("import time\ntime.sleep(600)\n")
    names = {"script": str(path), "name": path.name, "module": path.stem}
    command = [sys.executable, *(word.format(**names) for word in words)]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        try:
            wait_for(lambda: script_of(process.pid) == script.format(**names), "its name")
        finally:
            process.kill()


def test_old_processes_are_asked_once_a_minute_only() -> None:
    due = Due()
    first, pids = due.look(1000.0)
    assert set(first) == pids >= {os.getpid()}
    assert os.getpid() in due.look(1010.0)[0]  # young
    assert os.getpid() not in due.look(1031.0)[0]
    assert os.getpid() in due.look(1061.0)[0]


@pytest.fixture
def finder_in_thread() -> Iterator[Finder]:
    finder = Finder(0.05)
    finder.start()
    yield finder
    finder.close()


def test_a_search_that_fails_is_logged_once_and_goes_on(
    finder_in_thread: Finder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[int] = []

    def fails(*_: object) -> None:
        looks.append(1)
        raise OSError("no /proc")

    monkeypatch.setattr(finder_in_thread, "scan", fails)
    assert finder_in_thread.now(()) == ()  # before it is told who is observed it does not look
    wait_for(lambda: len(looks) > 2, "further looks")
    assert finder_in_thread.now(()) == ()
    assert len([record for record in caplog.records if "unobserved" in record.message]) == 1


def test_a_process_whose_command_line_never_comes_costs_all_their_values_but_tells_no_old_ones(
    finder_in_thread: Finder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = (make_unobserved(),)
    hangs, asked = threading.Event(), threading.Event()

    def looks() -> tuple[Unobserved, ...]:
        if asked.is_set():
            hangs.wait(60)
        asked.set()
        return found

    monkeypatch.setattr(finder_in_thread, "scan", looks)
    wait_for(lambda: finder_in_thread.now(()) == found, "what is found")
    monkeypatch.setattr(unobserved, "STALE_SECONDS", 0.1)
    wait_for(lambda: finder_in_thread.now(()) == (), "its end")
    hangs.set()


def test_workers_are_shown_while_the_scan_of_one_waits(
    run_job: JobStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run_job)
    hangs = threading.Event()
    monkeypatch.setattr(memory, "scan", lambda _: hangs.wait(60) and None)
    scanner = Scanner(0.1, 0.5)
    with closing(Scans(scanner)) as scans:
        finder = Finder(scanner=scanner, scan=scans.run)
        until(finder, UNSEEN, lambda workers: len(workers) == 2 and scanner.under_way is not None)
        for _ in range(3):
            until(finder, UNSEEN, lambda workers: len(workers) == 2)
        hangs.set()


def test_of_many_scripts_those_with_the_most_workers_have_series() -> None:
    groups = tuple(make_unobserved(script=f"{i}.py") for i in range(MOST_UNOBSERVED + 3))
    admitted = admit(make_snapshot(unobserved=groups), Detail.FULL, 1_000_000)
    assert [one.group.script for one in admitted.unobserved] == [
        f"{i}.py" for i in range(MOST_UNOBSERVED)
    ]
    assert admitted.dropped["series_limit"] == 3 * series_per(Subject.UNOBSERVED)
