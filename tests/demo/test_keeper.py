"""The keeper leaves nothing of a demo, however the demo ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from dlmon.demo.keeper import LONGEST_TMPDIR, MARK, kill_all
from tests.demo.running import ROOT
from tests.jobs import JobStarter, wait_for


def _start(temporary: Path, segment_dir: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "dlmon.demo.keeper", str(segment_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
        cwd=ROOT,
    )


@pytest.fixture
def keeper(short_tmp: Path, segment_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper whose directories are in `short_tmp` and `segment_dir`."""
    process = _start(short_tmp, segment_dir)
    yield process
    process.communicate(timeout=60)


def _directories(keeper: subprocess.Popen[bytes]) -> tuple[Path, Path]:
    assert keeper.stdout is not None
    folder, segments = json.loads(keeper.stdout.readline())
    return Path(folder), Path(segments)


def _sleeper(segments: Path, variable: str = MARK) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], env={**os.environ, variable: str(segments)})


def test_its_directories_are_private(
    keeper: subprocess.Popen[bytes], short_tmp: Path, segment_dir: Path
) -> None:
    folder, segments = _directories(keeper)
    assert folder.parent == short_tmp
    assert segments.parent == segment_dir
    assert folder.stat().st_mode & 0o777 == segments.stat().st_mode & 0o777 == 0o700


def test_a_tmpdir_in_which_sockets_cannot_be_made_is_not_used(
    tmp_path: Path, segment_dir: Path
) -> None:
    deep = tmp_path / ("x" * LONGEST_TMPDIR)
    deep.mkdir()
    with _start(deep, segment_dir) as keeper:
        folder, _ = _directories(keeper)
        assert folder.parent == Path("/tmp")
        keeper.communicate(timeout=60)
    assert not folder.exists()


def test_in_the_longest_tmpdir_used_sockets_can_be_made(short_tmp: Path, segment_dir: Path) -> None:
    deep = short_tmp / ("x" * (LONGEST_TMPDIR - len(str(short_tmp)) - 1))
    deep.mkdir()
    with _start(deep, segment_dir) as keeper:
        folder, _ = _directories(keeper)
        assert folder.parent == deep
        place = folder / "pymp-12345678"  # as multiprocessing names it, and what is in it
        place.mkdir()
        Listener(str(place / "listener-12345678"), "AF_UNIX").close()
        keeper.communicate(timeout=60)


def test_at_the_end_of_its_input_it_kills_and_removes_all(
    keeper: subprocess.Popen[bytes],
) -> None:
    folder, segments = _directories(keeper)
    (folder / "some").mkdir()
    (folder / "some" / "file").touch()
    (segments / "file").touch()
    with _sleeper(segments) as stopped:
        stopped.send_signal(signal.SIGSTOP)
        keeper.communicate(timeout=60)
        assert stopped.wait(60) == -signal.SIGKILL
    assert keeper.returncode == 0
    assert not folder.exists()
    assert not segments.exists()


def test_it_spares_processes_of_others(keeper: subprocess.Popen[bytes], segment_dir: Path) -> None:
    _, segments = _directories(keeper)
    with _sleeper(segment_dir) as other:
        keeper.communicate(timeout=60)
        assert not segments.exists()
        assert other.poll() is None
        other.kill()


def test_it_spares_who_looks_at_the_demo_from_elsewhere(keeper: subprocess.Popen[bytes]) -> None:
    _, segments = _directories(keeper)
    with _sleeper(segments, "DLMON_DIR") as other:
        keeper.communicate(timeout=60)
        assert not segments.exists()
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_does_not_end_it(keeper: subprocess.Popen[bytes], number: signal.Signals) -> None:
    folder, _ = _directories(keeper)
    keeper.send_signal(number)
    keeper.communicate(timeout=60)
    assert keeper.returncode == 0
    assert not folder.exists()


def test_named_semaphores_of_the_killed_go_with_them(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(
        """
        import multiprocessing

        if __name__ == "__main__":
            lock = multiprocessing.get_context("spawn").Lock()
            print("named", lock._semlock.name)
            input()
        """,
        env={MARK: str(segment_dir)},
    )
    name = job.wait_for_output("named /").split()[1]
    semaphore = Path(f"/dev/shm/sem.{name.removeprefix('/')}")
    assert semaphore.exists()
    kill_all(segment_dir)
    assert job.finish(status=-signal.SIGKILL)
    assert not semaphore.exists()


def test_a_batch_in_the_making_is_removed_with_its_worker(segment_dir: Path) -> None:
    with _sleeper(segment_dir) as worker:
        batch = Path(f"/dev/shm/torch_{worker.pid}_123_0")
        batch.touch()
        wait_for(lambda: b"sleep" in Path(f"/proc/{worker.pid}/cmdline").read_bytes())
        kill_all(segment_dir)
        assert worker.wait(60) == -signal.SIGKILL
    assert not batch.exists()
