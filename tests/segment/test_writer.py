"""Making a segment: complete and locked before it is seen, or nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon.errors import SegmentError
from dlmon.segment import files, layout, writer
from dlmon.segment.reader import SegmentFile
from dlmon.segment.writer import create
from dlmon.shim import _others
from tests.jobs import Job, JobStarter
from tests.segment import forge
from tests.segment.locker import Locker


@pytest.fixture
def locker() -> Iterator[Locker]:
    with contextlib.closing(Locker()) as process:
        yield process


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("workers", [0, 1, 64, layout.MAX_WORKERS])
def test_a_segment_has_its_size_all_of_it_reserved(segment_dir: Path, workers: int) -> None:
    segment = create(str(segment_dir), forge.INFO, workers)
    status = os.stat(segment.path)
    assert status.st_size == layout.file_size(workers)
    assert status.st_blocks * 512 >= status.st_size, "a hole would be a SIGBUS when shm is full"


def test_only_its_owner_may_read_a_segment_whatever_the_umask(segment_dir: Path) -> None:
    before = os.umask(0)
    try:
        segment = create(str(segment_dir), {}, 0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(segment.path).st_mode) == 0o600


def test_the_group_may_read_a_segment_in_the_nodes_directory(
    segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "NODE_DIR", str(segment_dir))
    before = os.umask(0o777)
    try:
        segment = create(str(segment_dir), {}, 0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(segment.path).st_mode) == 0o640


@pytest.mark.parametrize("workers", [-1, layout.MAX_WORKERS + 1])
def test_no_segment_is_made_for_more_workers_than_one_holds(
    segment_dir: Path, workers: int
) -> None:
    with pytest.raises(SegmentError) as caught:
        create(str(segment_dir), {}, workers)
    assert str(caught.value) == f"{workers} workers asked for, a segment holds 0 to 4096"
    assert caught.value.reason == "limit"


def test_of_an_info_that_does_not_fit_nothing_is_left(segment_dir: Path) -> None:
    kept, own = len(writer._kept), len(files.own)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(SegmentError, match=r"info has 8204 bytes, at most 8192 fit$"):
            create(str(segment_dir), {"script": "x" * 8191}, 1)
    assert left(segment_dir) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert (len(writer._kept), len(files.own)) == (kept, own)


def test_an_info_may_fill_its_place(segment_dir: Path, run_job: JobStarter) -> None:
    segment = create(str(segment_dir), {"script": "x" * 8179}, 1)
    reads = f"""
        from dlmon.segment.reader import SegmentFile
        print(len(SegmentFile({segment.path!r}).read(0).info["script"]))
    """
    assert run_job(reads).finish() == "8179\n"


def test_in_a_directory_that_is_gone_nothing_is_made(segment_dir: Path) -> None:
    with pytest.raises(SegmentError) as caught:
        create(str(segment_dir / "gone"), {}, 1)
    assert str(caught.value) == (
        f"directory {segment_dir}/gone: no segment can be made (No such file or directory); "
        "free some space there or set DLMON_DIR to another directory on tmpfs"
    )


# ── killed at any moment ─────────────────────────────────────────────────────────────────────────

KILLS = 100

KILLED = """
    import os, sys
    from dlmon.segment import layout
    from dlmon.segment.writer import create

    def write():
        made = []
        at = [layout.cell_index(0, name) for name in ("updating", "iterations", "updated")]
        n = 0
        while True:
            n += 1
            if n <= 500:  # mappings are kept for ever
                segment = create(os.environ["DLMON_DIR"], {"n": n}, 1)
                made.append(segment.path)
                if len(made) > 2:
                    os.unlink(made.pop(0))
            for i in range(n % 50):
                for cell in at:
                    segment.cells[cell] = i

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            write()
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
"""


def look(directory: Path, alive: int | None) -> int:
    """Read every finished segment and return how many there were; `alive` is who may write."""
    seen = 0
    for name in files.segment_names(str(directory)):
        path = str(directory / name)
        try:
            file = SegmentFile(path)
        except SegmentError:
            if os.path.lexists(path):  # else it was removed before it was opened
                raise
            continue
        reading = file.read(0)
        if name.startswith(f"{alive}-"):
            assert reading.rank_holder == alive, "seen before it was locked"
            assert "n" in reading.info
        else:
            assert reading.rank_holder is None, "an unlocked file claims to be alive"
        file.close()
        seen += 1
    return seen


def test_a_writer_killed_at_any_moment_leaves_only_what_can_be_read_and_removed(
    run_job: JobStarter, segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = random.Random(7)
    job = run_job(KILLED)
    seen = 0
    for kill in range(1, KILLS + 1):
        job.tell()
        child = int(_line(job, 2 * kill - 1))
        for _ in range(moments.randrange(12)):
            seen += look(segment_dir, child)
        os.kill(child, signal.SIGKILL)
        assert _line(job, 2 * kill) == "gone"
        look(segment_dir, None)
        for path in segment_dir.glob(f"{child}-*.seg"):
            path.unlink()
    assert seen > KILLS
    half_made = [name for name in left(segment_dir) if name.startswith(".new-")]
    assert half_made, "no kill met a segment half made: this proves nothing"
    _others.remove_stale(str(segment_dir))
    assert [n for n in left(segment_dir) if n.startswith(".new-")] == half_made, "they are young"
    monkeypatch.setattr(_others, "HALF_MADE_SECONDS", -1)
    monkeypatch.setattr(_others, "STALE_SECONDS", -1)
    _others.remove_stale(str(segment_dir))
    assert left(segment_dir) == []


def _line(job: Job, number: int) -> str:
    """Return the line that a job writes last as its `number`th, from 1 on."""
    job.wait_for(lambda: job.output().count("\n") == number, f"line {number}")
    return job.output().splitlines()[-1]


def test_what_is_being_made_is_not_removed_however_old(
    segment_dir: Path, locker: Locker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_others, "HALF_MADE_SECONDS", -1)
    making = forge.put(segment_dir, forge.forge(), ".new-1-a.seg")
    forge.put(segment_dir, forge.forge(), ".new-2-b.seg")
    forge.put(segment_dir, b"", ".new-3-c.seg")
    (segment_dir / "unrelated").touch()
    locker.hold(making, [layout.slot_offset(0)])
    _others.remove_stale(str(segment_dir))
    assert left(segment_dir) == [".new-1-a.seg", "unrelated"]


def test_a_segment_that_a_worker_still_holds_is_not_removed(
    segment_dir: Path, locker: Locker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_others, "STALE_SECONDS", -1)
    path = forge.put(segment_dir, forge.forge(cells={(0, "goodbye"): 1}))
    locker.hold(path, [layout.slot_offset(2)])
    _others.remove_stale(str(segment_dir))
    assert left(segment_dir) == [path.name]
    locker.kill()
    _others.remove_stale(str(segment_dir))
    assert left(segment_dir) == []


def test_a_young_segment_is_removed_only_if_its_rank_said_goodbye(segment_dir: Path) -> None:
    forge.put(segment_dir, forge.forge(cells={(0, "goodbye"): 1}), "ended.seg")
    forge.put(segment_dir, forge.forge(), "dead.seg")
    forge.put(segment_dir, b"not a segment", "foreign.seg")
    _others.remove_stale(str(segment_dir))
    assert left(segment_dir) == ["dead.seg", "foreign.seg"]
