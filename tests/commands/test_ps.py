from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from dlmon import cli
from dlmon.analysis.deaths import Death
from dlmon.commands import _dead, ps
from dlmon.commands._table import UNKNOWN
from dlmon.observe.snapshot import Rank, Snapshot
from tests.commands.launching import LOADER, launch
from tests.jobs import Job, JobStarter, wait_for
from tests.observing import loader, observe, only_rank

ESCAPE = "\x1b"
RUN = "a-run-with-quite-a-long-name-2024-11-21"

KEYS = {
    "run", "rank", "pid", "up", "superseded", "started", "user", "script", "loader", "phase",
    "phase_seconds", "wait_ratio", "epochs", "batches", "samples", "ready", "outstanding",
    "capacity", "last_delivery", "orphan_workers", "workers", "process", "cgroup_memory", "gpus",
}  # fmt: skip
"""What scripts rely on."""


TITLES = [column.title for column in ps.COLUMNS if column.title != "GPU"]
"""Where there is no GPU."""


@dataclass(frozen=True)
class Started:
    """A job in its third batch, and where it is seen."""

    job: Job
    directory: Path


def start(run_job: JobStarter, folder: Path, **options: str) -> Job:
    (folder / "train.py").write_text(LOADER)
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    job = launch(run_job, *words, "train.py")
    job.wait_for_output("READY")
    return job


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A job that the tests only look at."""
    folder = tmp_path_factory.mktemp("running")
    directory = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    starter = JobStarter(folder, directory)
    try:
        yield Started(start(starter, folder, run=RUN, rank="2"), directory)
    finally:
        starter.close()
        shutil.rmtree(directory)


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]) -> Listing:
    return Listing(capsys)


class Listing:
    """Calls `dlmon ps` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str) -> str:
        """Return its output; `err` has what it said beside that."""
        assert cli.main(["ps", *words]) == 0
        captured = self._capsys.readouterr()
        self.err = captured.err
        return captured.out


def on_terminal(directory: Path, columns: int, **env: str) -> list[str]:
    """The lines `dlmon ps` writes to a terminal that is so many columns wide."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", 0) as terminal:
        with os.fdopen(theirs, "wb", 0) as program:
            fcntl.ioctl(program, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
            environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
            subprocess.run(
                [sys.executable, "-m", "dlmon", "ps", "--dir", str(directory)],
                stdin=subprocess.DEVNULL,
                stdout=program,
                env={**environment, "TERM": "xterm", **env},
                timeout=60,
                check=True,
            )
        return b"".join(_until_hung_up(terminal)).decode().splitlines()


def _until_hung_up(terminal: IO[bytes]) -> Iterator[bytes]:
    """What is written to a terminal, which comes after a moment, until nobody can write more."""
    with contextlib.suppress(OSError):  # EIO: nobody
        while part := terminal.read(1 << 16):
            yield part


# ── A running job ────────────────────────────────────────────────────────────────────────────────


def test_each_rank_and_loader_has_a_line(running: Started, listed: Listing) -> None:
    heading, train, val = listed("--dir", str(running.directory)).splitlines()
    assert heading.split() == TITLES
    pid = str(running.job.pid)
    assert train.split()[:5] == [RUN, "2", pid, "train", "step"]
    assert re.search(r" +\d+ %  +3  +1  +[0-4]/4  2/2  +\d+ [kMG]B  +\d", train), train
    assert val.split()[:5] == [RUN, "2", pid, "val", "idle"]
    assert re.search(rf" +\d+ %  +2  +1  +{UNKNOWN}  {UNKNOWN}  +{UNKNOWN}  +\d", val), val
    assert listed.err == ""


def test_a_pipe_gets_all_columns_and_no_colour(running: Started) -> None:
    words = [sys.executable, "-m", "dlmon", "ps", "--dir", str(running.directory)]
    env = {**os.environ, "COLUMNS": "40", "TERM": "xterm"}
    output = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert ESCAPE not in output.stdout
    assert output.stdout.splitlines()[0].split() == TITLES
    assert RUN in output.stdout


def test_a_locale_without_the_dash_gets_something_else(running: Started) -> None:
    words = [sys.executable, "-m", "dlmon", "ps", "--dir", str(running.directory)]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    output = subprocess.run(words, env=env, capture_output=True, timeout=60, check=True).stdout
    assert b"  ?  ?  " in output  # QUEUE and WORKERS of a loader without any


def test_a_terminal_gets_colours_unless_they_are_not_wanted(running: Started) -> None:
    assert ESCAPE in "".join(on_terminal(running.directory, 200))
    assert ESCAPE not in "".join(on_terminal(running.directory, 200, NO_COLOR="1"))
    assert ESCAPE in "".join(on_terminal(running.directory, 200, NO_COLOR=""))
    assert ESCAPE not in "".join(on_terminal(running.directory, 200, TERM="dumb"))


@pytest.mark.parametrize(("columns", "whole"), [(200, True), (80, False), (60, False)])
def test_a_line_fits_on_the_terminal(columns: int, whole: bool, running: Started) -> None:
    lines = on_terminal(running.directory, columns, NO_COLOR="1")
    assert len(lines) == 3
    assert max(map(len, lines)) <= columns
    assert (RUN in lines[1]) is whole
    assert all(title in lines[0] for title in ("RUN", "RANK", "PID", "LOADER", "PHASE", "WAIT"))


def test_json_is_an_array_of_objects_in_base_units(running: Started, listed: Listing) -> None:
    train, val = json.loads(listed("--json", "--dir", str(running.directory)))
    assert set(train) == set(val) == KEYS
    assert (train["run"], train["rank"], train["pid"]) == (RUN, "2", running.job.pid)
    assert (train["up"], train["superseded"]) == (True, False)
    assert train["script"].endswith("/train.py")
    assert (train["loader"], train["phase"], train["batches"], train["epochs"]) == (
        "train",
        "step",
        3,
        1,
    )
    assert set(train["phase_seconds"]) == {"startup", "wait", "step", "pause", "teardown"}
    assert 0 <= train["wait_ratio"] <= 1
    assert 0 <= train["ready"] <= train["outstanding"] <= train["capacity"] == 4
    assert train["started"] <= train["last_delivery"]
    assert [(w["slot"], w["up"], w["orphan"]) for w in train["workers"]] == [
        (0, True, False),
        (1, True, False),
    ]
    for worker in train["workers"]:
        assert 1_000_000 < worker["unique_bytes"] < worker["resident_bytes"]
        assert worker["copied_bytes"] is None  # nobody has scanned it before
    assert train["process"]["resident_bytes"] > 1_000_000
    assert train["gpus"] == []
    assert (val["workers"], val["capacity"]) == ([], 0)


def test_of_the_living_none_is_listed_as_dead(running: Started, listed: Listing) -> None:
    assert listed("--dead", "--dir", str(running.directory)) == ""
    assert listed.err == f"dlmon ps: nobody died in {running.directory}, as far as is known\n"
    assert listed("--dead", "--json", "--dir", str(running.directory)) == "[]\n"


def test_the_directory_of_the_environment_is_searched_too(
    running: Started, listed: Listing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLMON_DIR", str(running.directory))
    assert RUN in listed()


def test_a_dead_rank_that_another_took_over_is_not_listed_with_the_living(
    running: Started,
) -> None:
    rank = only_rank(observe(running.directory))
    dead = dataclasses.replace(rank, up=False, started=rank.started - 1)
    older = dataclasses.replace(rank, started=rank.started - 2)
    snapshot = Snapshot(time=rank.started, ranks=(rank,), superseded=(dead, older))
    rows = [row for row in ps.rows(snapshot) if row.loader.name == "train"]
    shown = [(row.rank.rank, row.superseded, ps.cells(row, 0)[4].text) for row in rows]
    assert shown == [("2", True, "superseded"), ("2", False, "step")]


def test_of_a_dead_rank_that_another_took_over_the_orphans_are_listed(running: Started) -> None:
    rank = only_rank(observe(running.directory))
    train, val = sorted(rank.loaders, key=lambda one: one.name)
    orphans = tuple(dataclasses.replace(worker, orphan=True) for worker in train.workers)
    left = (dataclasses.replace(train, workers=orphans), val)
    dead = dataclasses.replace(rank, up=False, started=rank.started - 1, loaders=left)
    snapshot = Snapshot(time=rank.started, ranks=(rank,), superseded=(dead,))
    rows = [row for row in ps.rows(snapshot) if row.superseded]
    shown = [(row.loader.name, ps.cells(row, 0)[4].text, ps.cells(row, 0)[9].text) for row in rows]
    assert shown == [("train", "dead", "2 orphans")]


def test_ranks_are_in_order_of_their_number(running: Started) -> None:
    rank = only_rank(observe(running.directory))
    names = ("10", "9", "0", "odd", "1" * 5000)
    ranks: tuple[Rank, ...] = tuple(dataclasses.replace(rank, rank=name) for name in names)
    order = [row.rank.rank for row in ps.rows(Snapshot(time=0, ranks=ranks))]
    assert order[::2] == ["1" * 5000, "odd", "0", "9", "10"]


# ── Nothing, and trouble ─────────────────────────────────────────────────────────────────────────


def test_nothing_found_is_no_error_and_says_where_and_what_to_do(
    segment_dir: Path, listed: Listing
) -> None:
    missing = segment_dir / "missing"
    assert listed("--dir", str(segment_dir), "--dir", str(missing)) == ""
    assert listed.err.startswith(
        f"dlmon ps: no DataLoader is observed in {segment_dir}, {missing} (no such directory); "
    )
    assert "dlmon run train.py" in listed.err
    assert "dlmon.instrument()" in listed.err
    assert listed("--json", "--dir", str(segment_dir)) == "[]\n"
    assert listed.err == ""


def test_files_that_are_refused_are_counted_and_the_first_is_explained(
    segment_dir: Path, listed: Listing
) -> None:
    (segment_dir / "1-a.seg").write_bytes(b"x")
    listed("--json", "--dir", str(segment_dir))
    assert listed.err.startswith(f"dlmon ps: 1 file refused: segment {segment_dir}/1-a.seg: ")
    (segment_dir / "2-b.seg").write_bytes(b"x")
    listed("--json", "--dir", str(segment_dir))
    assert re.fullmatch(r"dlmon ps: 2 files refused, the first: segment .+\n", listed.err)


def test_a_stopped_worker_and_a_dead_rank_with_its_orphans_are_marked(
    run_job: JobStarter, tmp_path: Path, segment_dir: Path, listed: Listing
) -> None:
    job = start(run_job, tmp_path)
    train = loader(observe(segment_dir), "train")
    pids = [worker.pid for worker in train.workers if worker.pid is not None]
    assert len(pids) == 2
    for pid in pids:  # stopped, they outlive their rank
        os.kill(pid, signal.SIGSTOP)
    where = ("--dir", str(segment_dir))
    wait_for(lambda: "  2/2 2 stopped  " in listed(*where), "stopped workers", job=job)
    job.kill(signal.SIGKILL)
    job.finish(status=-signal.SIGKILL)
    _, train_line, val_line = listed(*where).splitlines()
    assert "  dead  " in train_line
    assert "  2 orphans  " in train_line
    assert "  dead  " in val_line
    assert "orphan" not in val_line
    assert listed.err == ""
    heading, line, words = listed("--dead", *where).splitlines()
    assert heading.split() == [column.title for column in _dead.COLUMNS]
    assert line.split()[1:] == ["0", str(job.pid), UNKNOWN, UNKNOWN, "lost", UNKNOWN]
    assert words.startswith("    rank 0 of run ")
    assert words.endswith("; 2 of its workers live on")
    (document,) = json.loads(listed("--dead", "--json", *where))
    assert set(document) == {field.name for field in dataclasses.fields(Death)}
    assert (document["kind"], document["sentence"]) == ("rank", words.strip())
    assert [(o["worker"], o["state"]) for o in document["others"] if o["worker"]] == [
        ("0", "stopped"),
        ("1", "stopped"),
    ]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "orphan" not in listed(*where), "end of the orphans")
