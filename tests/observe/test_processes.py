"""What the operating system says of processes, read from /proc."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlmon.observe import processes
from dlmon.observe.processes import Sampler, Totals
from dlmon.observe.snapshot import Process
from tests.jobs import JobStarter, wait_for


def test_this_process_runs_and_has_memory() -> None:
    seen = processes.sample(os.getpid())
    assert seen is not None
    assert seen.status == "R"
    assert seen.cpu_seconds > 0
    assert seen.resident_bytes is not None
    assert seen.resident_bytes > 1 << 20
    assert seen.start_ticks == int(
        Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    )


@pytest.mark.parametrize("pid", [2**31 - 1, 2**40, -1, 0])
def test_of_a_process_that_is_not_there_nothing_is_known(pid: int) -> None:
    assert processes.sample(pid) is None


def test_a_process_whose_name_is_made_to_confuse_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) Z 0 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "600"]) as process:
        try:
            name = Path(f"/proc/{process.pid}/comm")
            wait_for(lambda: name.read_text() == "a) Z 0 (b\n", "exec")
            seen = processes.sample(process.pid)
            assert seen is not None
            assert seen.status in "RSD"
            assert seen.cpu_seconds < 60
        finally:
            process.kill()


def test_a_zombie_is_one(run_job: JobStarter) -> None:
    job = run_job("import os\nprint(os.spawnlp(os.P_NOWAIT, 'true', 'true'), flush=True)\ninput()")
    pid = int(job.wait_for_output("\n"))

    def zombie() -> bool:
        seen = processes.sample(pid)
        return seen is not None and seen.status == "Z"

    wait_for(zombie, "zombie")


def test_who_looks_again_sees_the_same_process_until_it_is_gone() -> None:
    sampler = Sampler()
    with subprocess.Popen(["sleep", "600"]) as process:
        first, second = sampler.sample(process.pid), sampler.sample(process.pid)
        assert first is not None
        assert second is not None
        assert first.start_ticks == second.start_ticks
        process.kill()
    assert sampler.sample(process.pid) is None
    assert sampler.sample(process.pid) is None


def test_who_looks_again_closes_what_is_no_longer_asked_for() -> None:
    before = set(os.listdir("/proc/self/fd"))
    sampler = Sampler()
    sampler.sample(os.getpid())
    sampler.sample(os.getppid())
    assert len(set(os.listdir("/proc/self/fd")) - before) == 2
    sampler.keep({os.getpid()})
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    sampler.keep(())
    assert set(os.listdir("/proc/self/fd")) == before


def test_where_few_files_may_be_open_processes_are_seen_all_the_same() -> None:
    looks = (
        "import os, resource\n"
        "from dlmon.observe.processes import Sampler\n"
        "from dlmon.observe.statuses import ExitStatuses\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "sampler, statuses = Sampler(), ExitStatuses()\n"
        "pids = [int(name) for name in os.listdir('/proc') if name.isdecimal()]\n"
        "seen = {pid: sample for pid in pids if (sample := sampler.sample(pid))}\n"
        "for pid, sample in seen.items(): statuses.follow((pid, sample.start_ticks))\n"
        "print(len(os.listdir('/proc/self/fd')) < 48, len(seen) > len(pids) / 2)"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            process = stack.enter_context(subprocess.Popen(["sleep", "600"]))
            stack.callback(process.kill)
        looked = subprocess.check_output([sys.executable, "-c", looks], text=True, timeout=60)
    assert looked == "True True\n"


def test_of_this_process_everything_is_known() -> None:
    seen = processes.rank_process(os.getpid())
    assert seen.cpu_seconds is not None
    assert seen.resident_bytes is not None
    assert seen.open_fds is not None
    assert seen.max_fds is not None
    assert seen.cpus is not None
    assert 0 < seen.open_fds <= seen.max_fds
    assert 0 < seen.cpus <= len(os.sched_getaffinity(0))


def test_cpus_granted_are_those_of_the_affinity(run_job: JobStarter) -> None:
    one = min(os.sched_getaffinity(0))
    job = run_job(f"import os\nos.sched_setaffinity(0, [{one}])\nprint('set', flush=True)\ninput()")
    job.wait_for_output("set")
    assert processes.rank_process(job.pid).cpus == 1.0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_of_another_users_process_is_absent() -> None:
    looks = (
        "import os, sys; from dlmon.observe import processes, shm\n"
        "os.setuid(65534)\n"
        "pid = int(sys.argv[1])\n"
        "seen = processes.rank_process(pid)\n"
        "print(seen.resident_bytes > 0, seen.open_fds, shm.SharedMemory().seen_by(pid))"
    )
    looked = subprocess.check_output(
        [sys.executable, "-c", looks, str(os.getpid())], text=True, timeout=60
    )
    assert looked == "True None None\n"


def test_of_a_process_that_is_gone_everything_is_absent() -> None:
    assert processes.rank_process(2**31 - 1) == Process()


def test_cpu_time_is_summed_over_the_processes_a_slot_has_had() -> None:
    totals: Totals[float] = Totals()
    assert totals.total("slot") is None
    assert totals.add("slot", (10, 1), 1.5) == 1.5
    assert totals.add("slot", (10, 1), 2.0) == 2.0
    assert totals.add("slot", (11, 1), 0.5) == 2.5
    assert totals.add("slot", (11, 2), 0.25) == 2.75, "a pid used again"
    assert totals.total("slot") == 2.75
    assert totals.add("other", (12, 1), 7.0) == 7.0
    totals.keep({"other"})
    assert totals.total("slot") is None
    assert totals.total("other") == 7.0
