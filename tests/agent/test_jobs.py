"""Which jobs want an agent beside them: entered by themselves, told alive by /proc alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from dlmon.agent import jobs
from dlmon.observe import processes
from tests.jobs import JobStarter, wait_for

ENTERS = """
import os
from dlmon.agent import jobs
jobs.enter(os.environ["DLMON_DIR"])
print("ENTERED", flush=True)
input()
"""


def folder(directory: Path) -> Path:
    return directory / f"{jobs.PREFIX}{os.geteuid()}"


def start_of(pid: int) -> int:
    sample = processes.sample(pid)
    assert sample is not None
    return sample.start_ticks


def test_a_job_is_there_from_its_entry_to_its_end(run_job: JobStarter, segment_dir: Path) -> None:
    directory = str(segment_dir)
    assert not jobs.any_living(directory)
    job = run_job(ENTERS)
    job.wait_for_output("ENTERED")
    assert os.listdir(folder(segment_dir)) == [f"{job.pid}-{start_of(job.pid)}"]
    assert jobs.any_living(directory)
    jobs.clear(directory)
    assert jobs.any_living(directory)
    job.kill()
    job.finish(status=-signal.SIGKILL)
    assert not jobs.any_living(directory)
    assert os.listdir(folder(segment_dir)) == []
    jobs.clear(directory)
    assert not folder(segment_dir).exists()


def test_a_job_may_enter_twice_and_take_its_entry_out(segment_dir: Path) -> None:
    jobs.enter(str(segment_dir))
    jobs.enter(str(segment_dir))
    assert len(os.listdir(folder(segment_dir))) == 1
    jobs.withdraw(str(segment_dir))
    assert os.listdir(segment_dir) == []


def test_a_process_that_has_ended_and_not_been_waited_for_does_not_count(segment_dir: Path) -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    try:
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        folder(segment_dir).mkdir()
        (folder(segment_dir) / f"{child}-{start_of(child)}").touch()
        assert not jobs.any_living(str(segment_dir))
    finally:
        os.waitpid(child, 0)


def test_another_process_of_the_same_number_does_not_count(segment_dir: Path) -> None:
    folder(segment_dir).mkdir()
    (folder(segment_dir) / f"{os.getpid()}-{start_of(os.getpid()) - 1}").touch()
    assert not jobs.any_living(str(segment_dir))


@pytest.mark.parametrize("name", ["x", "1", "-1", "1-x", "01-1", "1-", "1" * 30, "1-1.seg"])
def test_what_is_no_entry_is_left_alone(name: str, segment_dir: Path) -> None:
    folder(segment_dir).mkdir()
    (folder(segment_dir) / name).touch()
    assert not jobs.any_living(str(segment_dir))
    jobs.clear(str(segment_dir))
    assert os.listdir(folder(segment_dir)) == [name]


def test_a_link_in_place_of_the_folder_is_not_followed(segment_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "1-1").touch()
    folder(segment_dir).symlink_to(tmp_path)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        jobs.enter(str(segment_dir))
    assert not jobs.any_living(str(segment_dir))
    jobs.clear(str(segment_dir))
    assert os.listdir(tmp_path) == ["1-1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_folder_of_somebody_else_is_not_used(segment_dir: Path) -> None:
    folder(segment_dir).mkdir()
    (folder(segment_dir) / "1-1").touch()
    os.chown(folder(segment_dir), 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to uid 12345, remove it"):
        jobs.enter(str(segment_dir))
    assert not jobs.any_living(str(segment_dir))
    assert os.listdir(folder(segment_dir)) == ["1-1"]


def test_entering_is_not_disturbed_by_agents_that_remove_the_folder(
    run_job: JobStarter, segment_dir: Path
) -> None:
    clearing = run_job(
        "import os\n"
        "from dlmon.agent import jobs\n"
        "print('READY', flush=True)\n"
        "while not os.path.exists(os.environ['DLMON_DIR'] + '/end'):\n"
        "    jobs.clear(os.environ['DLMON_DIR'])\n"
    )
    entering = run_job(
        "import os\n"
        "from dlmon.agent import jobs\n"
        "for _ in range(1000):\n"
        "    jobs.enter(os.environ['DLMON_DIR'])\n"
        "    assert jobs.any_living(os.environ['DLMON_DIR'])\n"
        "    jobs.withdraw(os.environ['DLMON_DIR'])\n"
    )
    clearing.wait_for_output("READY")
    entering.finish()
    (segment_dir / "end").touch()
    clearing.finish()
    wait_for(lambda: not jobs.any_living(str(segment_dir)))
