"""The lock that says which agent reads a directory: one at a time, gone with its holder."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dlmon.agent import lock
from dlmon.agent.lock import AgentLock, find, log_path, open_log, url
from tests.jobs import Job, JobStarter, wait_for

HOLDER = """
import os
from dlmon.agent.lock import AgentLock, find
directory = os.environ["DLMON_DIR"]
lock = AgentLock.take(directory)
print("TAKEN" if lock else "REFUSED", flush=True)
input()
lock.tell("127.0.0.1:1234")
print("TOLD", flush=True)
input()
"""

OTHER = 12345
"""A uid that is not this one's."""

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def path(directory: Path, uid: int | None = None) -> Path:
    return directory / f"{lock.PREFIX}{os.geteuid() if uid is None else uid}.lock"


@contextmanager
def taken(directory: Path) -> Iterator[AgentLock]:
    own = AgentLock.take(str(directory))
    assert own is not None
    try:
        yield own
    finally:
        own.release()


@pytest.fixture
def holder(run_job: JobStarter) -> Callable[[], Job]:
    """Start another process that takes the lock."""

    def start() -> Job:
        job = run_job(HOLDER)
        job.wait_for_output("TAKEN")
        return job

    return start


def test_one_process_at_a_time_has_it(
    holder: Callable[[], Job], run_job: JobStarter, segment_dir: Path
) -> None:
    first = holder()
    assert AgentLock.take(str(segment_dir)) is None
    run_job(HOLDER).wait_for_output("REFUSED")
    first.kill()
    first.finish(status=-signal.SIGKILL)
    with taken(segment_dir) as own:
        assert AgentLock.take(str(segment_dir)) is None  # nor this one twice
        run_job(HOLDER).wait_for_output("REFUSED")
        own.release()
        own.release()
    assert not path(segment_dir).exists()
    holder()


def test_others_learn_its_holder_and_where_that_serves(
    holder: Callable[[], Job], segment_dir: Path
) -> None:
    assert find(str(segment_dir)) is None
    job = holder()
    running = find(str(segment_dir))
    assert running is not None
    assert (running.pid, running.address) == (job.pid, "")
    job.tell()
    job.wait_for_output("TOLD")
    running = find(str(segment_dir))
    assert running is not None
    assert (running.pid, running.address) == (job.pid, "127.0.0.1:1234")
    assert running.since == path(segment_dir).stat().st_mtime
    job.kill()
    job.finish(status=-signal.SIGKILL)
    assert "127.0.0.1:1234" in path(segment_dir).read_text()
    assert find(str(segment_dir)) is None


def test_what_a_killed_agent_wrote_is_not_taken_for_the_next_ones(
    holder: Callable[[], Job], segment_dir: Path
) -> None:
    path(segment_dir).write_text("1 127.0.0.1:4321\n")
    path(segment_dir).chmod(0o600)
    holder()
    assert path(segment_dir).read_text() == ""


def test_looking_for_agents_does_not_let_ones_own_lock_go(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(segment_dir)
    with taken(segment_dir):
        for name in (str(segment_dir), f"{segment_dir}/.", str(tmp_path / "link")):
            assert find(name) is None
            assert AgentLock.take(name) is None
        run_job(HOLDER).wait_for_output("REFUSED")


MANY = """
import os, sys
from dlmon.agent.lock import AgentLock

directory = os.environ["DLMON_DIR"]
inside = os.path.join(directory, "inside")
print("READY", flush=True)
input()
had = 0
while had < 300:
    lock = AgentLock.take(directory)
    if lock is not None:
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        os.unlink(inside)
        lock.release()
        had += 1
"""


def test_no_two_have_it_however_often_it_is_removed_and_made_again(run_job: JobStarter) -> None:
    many = [run_job(MANY) for _ in range(4)]
    for job in many:
        job.wait_for_output("READY")
    for job in many:
        job.tell()
    for job in many:
        job.finish()  # FileExistsError if two were inside at once


def test_it_reads_with_the_directory_that_holds_the_users(
    holder: Callable[[], Job], segment_dir: Path
) -> None:
    job = holder()
    for below in ("dlmon-1000", "dlmon-0"):
        running = find(str(segment_dir / below))  # not even there yet
        assert running is not None
        assert running.pid == job.pid
    for other in ("dlmon-x", "mine", "dlmon-1000/mine"):
        assert find(str(segment_dir / other)) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 99, b"PID", b"PID \n", b"PID 1.2.3.4:5", b"PID no address\n", b"1 1.2.3.4:5\n",
     b"\xff\xfe \n", b"x" * 4096, b"PID 1.2.3.4:5\x1b[2J\n"],
)  # fmt: skip
def test_an_address_is_one_or_none(
    content: bytes, holder: Callable[[], Job], segment_dir: Path
) -> None:
    job = holder()
    path(segment_dir).write_bytes(content.replace(b"PID", str(job.pid).encode()))
    running = find(str(segment_dir))
    assert running is not None
    assert running.address == ""


# ── What others may have put there ───────────────────────────────────────────────────────────────


def a_link(at: Path) -> None:
    at.symlink_to(at.with_name("victim"))


def a_hard_link(at: Path) -> None:
    os.link(at.with_name("victim"), at)


def somebody_elses(at: Path) -> None:
    at.write_text("theirs")
    os.chown(at, OTHER, OTHER)


@pytest.mark.parametrize(
    "put",
    [
        a_link,
        a_hard_link,
        pytest.param(os.mkfifo, id="a_fifo"),
        pytest.param(Path.mkdir, id="a_directory"),
        pytest.param(somebody_elses, marks=root_only),
    ],
)
def test_what_is_no_file_of_ones_own_is_left_alone(
    put: Callable[[Path], None], segment_dir: Path
) -> None:
    victim = segment_dir / "victim"
    victim.write_text("precious")
    put(path(segment_dir))
    put(Path(log_path(str(segment_dir))))
    before = {entry.name: entry.lstat() for entry in segment_dir.iterdir()}
    with pytest.raises(OSError, match=r"."):
        AgentLock.take(str(segment_dir))
    assert find(str(segment_dir)) is None
    log = open_log(str(segment_dir))
    assert os.readlink(f"/proc/self/fd/{log}") == os.devnull
    os.close(log)
    assert victim.read_text() == "precious"
    after = {entry.name: entry.lstat() for entry in segment_dir.iterdir()}
    for name, status in before.items():
        assert after[name].st_mode == status.st_mode
        assert after[name].st_mtime == status.st_mtime


@root_only
@pytest.mark.parametrize(("uid", "mode"), [(OTHER, 0o644), (0, 0o666)])
def test_a_lock_file_that_others_could_hold_attests_nobody(
    uid: int, mode: int, holder: Callable[[], Job], segment_dir: Path
) -> None:
    holder()
    assert find(str(segment_dir)) is not None
    os.chown(path(segment_dir), uid, uid)
    path(segment_dir).chmod(mode)
    assert find(str(segment_dir)) is None


@root_only
@pytest.mark.parametrize(
    ("owner", "holds", "known"),
    [(OTHER, OTHER, True), (0, 0, True), (0, OTHER, False), (OTHER, 0, True)],
)
def test_agents_of_root_and_of_the_directorys_owner_count_and_no_others(
    owner: int, holds: int, known: bool, holder: Callable[[], Job], segment_dir: Path
) -> None:
    """As seen by root, whose own is uid 0."""
    job = holder()
    os.chown(segment_dir, owner, owner)
    os.rename(path(segment_dir), path(segment_dir, holds))
    os.chown(path(segment_dir, holds), holds, holds)
    running = find(str(segment_dir))
    assert (running is not None) == known
    if running is not None:
        assert running.pid == job.pid


def test_who_may_ask_is_not_decided_by_the_umask(segment_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        with taken(segment_dir):
            assert stat.S_IMODE(path(segment_dir).stat().st_mode) == 0o644
    finally:
        os.umask(before)


def test_a_new_log_is_empty_and_private(segment_dir: Path) -> None:
    log = Path(log_path(str(segment_dir)))
    for _ in range(2):
        fd = open_log(str(segment_dir))
        assert log.read_text() == ""
        os.write(fd, b"said")
        os.close(fd)
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1:10356", "http://127.0.0.1:10356/"),
        ("[::1]:80", "http://[::1]:80/"),
        ("0.0.0.0:80", f"http://{os.uname().nodename}:80/"),
        ("[::]:80", f"http://{os.uname().nodename}:80/"),
    ],
)
def test_an_address_is_shown_as_one_that_can_be_opened(address: str, shown: str) -> None:
    assert url(address) == shown


def test_a_lock_goes_over_exec_with_its_descriptor(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(
        "import os, sys\n"
        "from dlmon.agent.lock import AgentLock\n"
        "directory = os.environ['DLMON_DIR']\n"
        "if len(sys.argv) == 1:\n"
        "    lock = AgentLock.take(directory)\n"
        "    os.set_inheritable(lock.fd, True)\n"
        "    os.execv(sys.executable, [sys.executable, __file__, str(lock.fd)])\n"
        "lock = AgentLock.adopt(directory, int(sys.argv[1]))\n"
        "lock.tell('[::1]:1')\n"
        "print('TOLD', os.get_inheritable(lock.fd), flush=True)\n"
        "input()\n"
    )
    job.wait_for_output("TOLD False")
    running = find(str(segment_dir))
    assert running is not None
    assert (running.pid, running.address) == (job.pid, "[::1]:1")
    job.tell()
    job.finish()
    wait_for(lambda: find(str(segment_dir)) is None, "end of the lock")
