"""Who is alive, by the kernel: the byte of a slot is held exactly as long as its writer lives."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dlmon.segment import layout, locks
from dlmon.segment.reader import SegmentFile
from dlmon.segment.writer import Segment, create
from tests.jobs import Job, JobStarter, wait_for
from tests.segment import forge
from tests.segment.locker import Locker

RANK, WORKER_0, WORKER_1 = (layout.slot_offset(slot) for slot in range(3))

HOLDER = """
    import ctypes, os, signal, sys
    from dlmon.segment.writer import create
    segment = create(os.environ["DLMON_DIR"], {{}}, 1)
    print("made", flush=True)
    input()
    {ending}
"""
ENDINGS = {
    "normal": ("", 0),
    "exception": ("raise RuntimeError('as told')", 1),
    "os._exit": ("os._exit(3)", 3),
    "kill -9": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "segfault": ("ctypes.string_at(0)", -signal.SIGSEGV),
    "abort": ("os.abort()", -signal.SIGABRT),
    "exec": ("os.execv('/bin/true', ['true'])", 0),
}


@pytest.fixture
def locker() -> Iterator[Locker]:
    with contextlib.closing(Locker()) as process:
        yield process


@contextlib.contextmanager
def opened(path: Path | str, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def made(job: Job, segment_dir: Path) -> Path:
    job.wait_for_output("made")
    (path,) = segment_dir.glob("*.seg")
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_byte_is_free_once_its_holder_is_gone(
    run_job: JobStarter, segment_dir: Path, ending: str
) -> None:
    code, status = ENDINGS[ending]
    job = run_job(HOLDER.format(ending=code))
    path = made(job, segment_dir)
    with opened(path) as fd:
        assert locks.holder(fd, RANK) == job.pid
        assert locks.holder(fd, WORKER_0) is None
        job.tell()
        job.finish(status=status)
        assert locks.holder(fd, RANK) is None


def test_a_stopped_holder_is_alive(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(HOLDER.format(ending=""))
    path = made(job, segment_dir)
    with opened(path) as fd:
        job.kill(signal.SIGSTOP)
        state = Path(f"/proc/{job.pid}/stat")
        wait_for(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "stopped process")
        assert locks.holder(fd, RANK) == job.pid
        job.kill(signal.SIGKILL)
        job.finish(status=-signal.SIGKILL)
        assert locks.holder(fd, RANK) is None


def test_a_forked_child_does_not_hold_what_its_parent_held(
    run_job: JobStarter, segment_dir: Path
) -> None:
    ending = "pid = os.fork()\n    if pid == 0: signal.pause()\n    print('child', pid, flush=True)"
    job = run_job(HOLDER.format(ending=ending))
    path = made(job, segment_dir)
    with opened(path) as fd:
        job.tell()
        child = int(job.finish().split()[-1])
        assert os.path.exists(f"/proc/{child}")
        assert locks.holder(fd, RANK) is None


def test_a_strangers_read_lock_does_not_pass_for_a_writer(
    segment_dir: Path, locker: Locker
) -> None:
    path = forge.put(segment_dir, forge.forge())
    assert locker.hold(path, [RANK, WORKER_0], exclusive=False) == "held"
    reading = forge.read(path)
    assert reading.rank_holder is None
    assert reading.worker_holders == (None, None)


def test_each_byte_is_its_own_slots(segment_dir: Path, locker: Locker) -> None:
    path = forge.put(segment_dir, forge.forge())
    assert locker.hold(path, [WORKER_1]) == "held"
    reading = forge.read(path)
    assert reading.rank_holder is None
    assert reading.worker_holders == (None, locker.pid)


def test_what_another_process_holds_is_not_waited_for(segment_dir: Path, locker: Locker) -> None:
    path = forge.put(segment_dir, forge.forge())
    locker.hold(path, [RANK])
    with opened(path, os.O_RDWR) as fd:
        assert not locks.hold(fd, RANK)
        assert locks.hold(fd, WORKER_0)
    assert locker.hold(path, [WORKER_0]) == "held"


def test_a_process_does_not_see_its_own_locks(segment_dir: Path) -> None:
    segment = create(str(segment_dir), {}, 1)
    assert locks.hold(segment.fd, WORKER_0)
    assert locks.holder(segment.fd, WORKER_0) is None
    assert not segment.worker_held()


def test_a_held_worker_byte_is_seen_by_the_rank(segment_dir: Path, locker: Locker) -> None:
    segment = create(str(segment_dir), {}, 2)
    assert locker.hold(segment.path, [WORKER_1]) == "held"
    assert segment.worker_held()
    locker.kill()
    assert not segment.worker_held()


def test_closing_any_descriptor_of_the_file_loses_the_lock(
    run_job: JobStarter, segment_dir: Path
) -> None:
    """Why a process must not read its own segments; the kernel's rule, fcntl(2)."""
    ending = "open(segment.path).close()\n    print('closed', flush=True)\n    input()"
    job = run_job(HOLDER.format(ending=ending))
    path = made(job, segment_dir)
    with opened(path) as fd:
        job.tell()
        job.wait_for_output("closed")
        assert locks.holder(fd, RANK) is None


def test_a_holder_in_another_pid_namespace_is_alive_without_a_pid(segment_dir: Path) -> None:
    segment = create(str(segment_dir), {}, 0)
    asks = (
        "import sys; from dlmon.segment.reader import SegmentFile\n"
        "print(SegmentFile(sys.argv[1]).read(0).rank_holder)"
    )
    asked = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", asks, segment.path],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare failed" in asked.stderr or "Operation not permitted" in asked.stderr:
        pytest.skip("no pid namespace can be made here")
    assert asked.stdout.strip() == str(locks.ALIVE_ELSEWHERE), asked.stderr


# ── joining as a worker ──────────────────────────────────────────────────────────────────────────

ATTACH = """
    import sys
    from dlmon.segment.writer import attach
    segment = attach({path!r}, {worker}, {generation})
    print("joined" if segment else "refused", flush=True)
    input()
"""


def taken(segment_dir: Path, generation: int) -> Segment:
    segment = create(str(segment_dir), {}, 2)
    segment.cells[layout.cell_index(0, "generation")] = generation
    return segment


def test_a_worker_joins_the_generation_it_was_started_for(
    run_job: JobStarter, segment_dir: Path
) -> None:
    segment = taken(segment_dir, 7)
    job = run_job(ATTACH.format(path=segment.path, worker=1, generation=7))
    job.wait_for_output("joined")
    assert locks.holder(segment.fd, WORKER_1) == job.pid
    assert locks.holder(segment.fd, WORKER_0) is None


@pytest.mark.parametrize(("worker", "generation"), [(0, 6), (0, 8), (2, 7), (4000, 7)])
def test_a_worker_that_is_late_or_has_no_slot_touches_nothing(
    run_job: JobStarter, segment_dir: Path, worker: int, generation: int
) -> None:
    segment = taken(segment_dir, 7)
    before = bytes(segment.bytes)
    job = run_job(ATTACH.format(path=segment.path, worker=worker, generation=generation))
    job.wait_for_output("refused")
    assert bytes(segment.bytes) == before
    assert not segment.worker_held(), "while it still lives"


def test_a_worker_whose_byte_is_taken_touches_nothing(
    run_job: JobStarter, segment_dir: Path, locker: Locker
) -> None:
    segment = taken(segment_dir, 7)
    assert locker.hold(segment.path, [WORKER_0]) == "held"
    before = bytes(segment.bytes)
    job = run_job(ATTACH.format(path=segment.path, worker=0, generation=7))
    job.wait_for_output("refused")
    assert bytes(segment.bytes) == before
    assert locks.holder(segment.fd, WORKER_0) == locker.pid


def test_a_worker_does_not_follow_a_link_to_another_file(
    run_job: JobStarter, segment_dir: Path
) -> None:
    segment = taken(segment_dir, 7)
    link = segment_dir / "link.seg"
    link.symlink_to(segment.path)
    run_job(ATTACH.format(path=str(link), worker=0, generation=7)).wait_for_output("refused")
    assert not segment.worker_held()


def test_a_worker_whose_segment_is_gone_runs_unobserved(
    run_job: JobStarter, segment_dir: Path
) -> None:
    path = str(segment_dir / "gone.seg")
    run_job(ATTACH.format(path=path, worker=0, generation=7)).wait_for_output("refused")


CLAIMS = 2000

CLAIMER = """
    import os, random
    from dlmon.segment import layout, locks
    from dlmon.segment.writer import _discard, attach

    def slow_hold(fd, offset):
        for _ in range(random.randrange(3000)):
            pass
        held = hold(fd, offset)
        for _ in range(random.randrange(3000)):
            pass
        return held

    hold, locks.hold = locks.hold, slow_hold  # wide gaps: any moment may be the wrong one
    path, worker = {path!r}, {worker}
    GENERATION = layout.cell_index(0, "generation")
    TAKEN = layout.cell_index(0, "hooks")
    OWNER = layout.cell_index(worker + 1, "pid")
    me = os.getpid()
    joined = wrong = 0
    asks = os.open(path, os.O_RDONLY)
    for _ in range({claims}):
        generation = int.from_bytes(os.pread(asks, 8, GENERATION * 8), "little")
        segment = attach(path, worker, generation)
        if segment is None:
            continue
        joined += 1
        cells = segment.cells
        cells[OWNER] = me
        for _ in range(20):
            wrong += cells[TAKEN] > generation or cells[OWNER] != me
        _discard(segment.fd)
    print("joined", joined, "wrong", wrong, flush=True)
"""


def test_no_slot_ever_has_two_writers_while_takes_race_against_claims(
    run_job: JobStarter, segment_dir: Path
) -> None:
    segment = taken(segment_dir, 1)
    generation = layout.cell_index(0, "generation")
    last_taken = layout.cell_index(0, "hooks")
    jobs = [
        run_job(CLAIMER.format(path=segment.path, worker=worker, claims=CLAIMS))
        for worker in (0, 0, 1)
    ]
    takes = held = 0
    moments = random.Random(7)
    while not all(job.ended() for job in jobs):
        for _ in range(moments.randrange(5000)):
            pass
        segment.cells[generation] += 1  # first, as a rank does: see `Session`
        if segment.worker_held():
            held += 1
        else:
            segment.cells[last_taken] = segment.cells[generation]
            takes += 1
    results = [job.finish().split() for job in jobs]
    assert [int(result[3]) for result in results] == [0, 0, 0], "wrong"
    joined = [int(result[1]) for result in results]
    assert min(joined) > 0, "one never got its slot"
    assert sum(joined) > CLAIMS // 10, joined
    assert takes > CLAIMS // 50
    assert held > CLAIMS // 50


def test_reading_a_segment_takes_no_lock_from_its_writers(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(HOLDER.format(ending=""))
    path = made(job, segment_dir)
    for _ in range(3):
        file = SegmentFile(str(path))
        assert file.read(0).rank_holder == job.pid
        file.close()
