"""The CPUs and memory of a cgroup, by version 2 and 1, over trees as the kernel makes them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from dlmon.observe import cgroups
from dlmon.observe.cgroups import Cgroup
from dlmon.observe.snapshot import CgroupMemory
from tests.jobs import JobStarter
from tests.memory_cgroups import memory_cgroup


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /sys/fs/cgroup."""
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path / "cgroup"))
    return tmp_path / "cgroup"


def tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def member(monkeypatch: pytest.MonkeyPatch, text: str, mounts: str = "") -> Cgroup:
    """Return the cgroups of a process whose /proc/<pid>/cgroup says `text`.

    Args:
        monkeypatch: To say it.
        text: What it says.
        mounts: What /proc/self/mountinfo says.
    """
    real = cgroups._read
    said = {"/proc/4000/cgroup": text, "/proc/self/mountinfo": mounts}

    def read(path: str) -> str:
        return said[path] if path in said else real(path)

    monkeypatch.setattr(cgroups, "_read", read)
    return cgroups.of(4000)


V2 = {
    "cpu.stat": "usage_usec 9\n",
    "job/cpu.max": "400000 100000\n",
    "job/cpu.stat": "usage_usec 900\nnr_throttled 3\nthrottled_usec 2500000\n",
    "job/step/cpu.max": "max 100000\n",
    "job/step/cpu.stat": "usage_usec 900\nthrottled_usec 1250000\nthrottled_usec_x 7\n",
    "loose/cpu.max": "max 100000\n",
}
V1 = {
    "cpu/job/cpu.cfs_quota_us": "150000\n",
    "cpu/job/cpu.cfs_period_us": "100000\n",
    "cpu/job/step/cpu.cfs_quota_us": "-1\n",
    "cpu/job/step/cpu.cfs_period_us": "100000\n",
    "cpu/job/step/cpu.stat": "nr_periods 5\nthrottled_time 3500000000\n",
    "memory/mem/memory.limit_in_bytes": "1000\n",
}
V1_MEMBER = "9:cpu,cpuacct:/job/step\n4:memory:/mem\n1:name=systemd:/\n0::/\n"


def test_v2_quota_is_the_tightest_of_all_levels(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, V2)
    group = member(monkeypatch, "0::/job/step\n")
    assert group.path == "/job/step"
    assert group.cpu_directory == group.memory_directory == str(root / "job" / "step")
    assert group.cpu_quota() == 4.0
    assert group.cpu_throttled_seconds() == 1.25


def test_v2_without_a_limit_grants_no_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(root, V2)
    group = member(monkeypatch, "0::/loose\n")
    assert group.cpu_quota() is None
    assert group.cpu_throttled_seconds() is None


def test_v2_of_a_container_whose_own_cgroup_is_mounted_as_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, {"cpu.max": "50000 100000\n", "cpu.stat": "throttled_usec 500000\n"})
    mounts = f"31 23 0:28 /kubepods/pod7/box {root} ro,nosuid - cgroup2 cgroup rw\n"
    group = member(monkeypatch, "0::/kubepods/pod7/box\n", mounts)
    assert group.path == "/kubepods/pod7/box"
    assert group.cpu_directory == group.memory_directory == str(root)
    assert group.cpu_quota() == 0.5
    assert group.cpu_throttled_seconds() == 0.5


def test_below_a_cgroup_that_is_mounted_as_the_root_paths_begin_there(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, {"job/cpu.max": "50000 100000\n", "cpu.max": "400000 100000\n"})
    mounts = f"31 23 0:28 /kubepods/pod7 {root} ro,nosuid - cgroup2 cgroup rw\n"
    group = member(monkeypatch, "0::/kubepods/pod7/job\n", mounts)
    assert group.cpu_directory == str(root / "job")
    assert group.cpu_quota() == 0.5


@pytest.mark.parametrize(
    ("mounted", "path"),
    [
        ("/", "/gone"),
        ("/kubepods/pod7/agent", "/kubepods/pod7/job"),
        ("/kubepods/pod7/agent", "/kubepods/pod7/agent2"),
        ("/kubepods/pod7/agent", "/"),
        ("/..", "/job"),
    ],
)
def test_the_limits_of_another_cgroup_are_not_taken_for_those_of_one_not_to_be_seen_from_here(
    root: Path, monkeypatch: pytest.MonkeyPatch, mounted: str, path: str
) -> None:
    tree(root, {"cpu.max": "50000 100000\n", "cpu.stat": "throttled_usec 5\n", **V2_MEMORY})
    tree(root, {"memory.max": "1000\n", "job/cpu.max": "1 100000\n"})
    mounts = f"31 23 0:28 {mounted} {root} ro,nosuid - cgroup2 cgroup rw\n"
    group = member(monkeypatch, f"0::{path}\n", mounts)
    assert group == Cgroup(path)
    assert group.cpu_quota() is None
    assert group.cpu_throttled_seconds() is None
    assert group.memory() == CgroupMemory()


def test_v1_quota_is_that_of_the_cpu_controller(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, V1)
    group = member(monkeypatch, V1_MEMBER)
    assert group.path == "/mem"
    assert group.cpu_directory == str(root / "cpu" / "job" / "step")
    assert group.memory_directory == str(root / "memory" / "mem")
    assert group.cpu_quota() == 1.5
    assert group.cpu_throttled_seconds() == 3.5


def test_v1_of_a_container_whose_own_cgroup_is_mounted_as_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"})
    mounts = "".join(
        f"31 23 0:28 /docker/abc {root}/{controller} ro - cgroup cgroup rw,{controller}\n"
        for controller in ("cpu", "memory")
    )
    group = member(monkeypatch, "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n", mounts)
    assert group.path == "/docker/abc"
    assert group.cpu_quota() == 2.0
    assert group.cpu_throttled_seconds() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max\n",
        "1000\n",
        "x 100000\n",
        "100000 0\n",
        "-1 100000\n",
        "100000 max\n",
        "² 100000\n",
    ],
)
def test_a_quota_that_cannot_be_understood_is_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    tree(root, {"job/cpu.max": text, "job/cpu.stat": f"throttled_usec {text}"})
    group = member(monkeypatch, "0::/job\n")
    assert group.cpu_quota() is None


@pytest.mark.parametrize("text", ["", "nonsense", "0:", "::", "5:cpu\n", "\ufffd:\ufffd\n"])
def test_a_process_whose_cgroups_are_not_told_has_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    group = member(monkeypatch, text)
    assert group.cpu_quota() is None
    assert group.cpu_throttled_seconds() is None


def test_a_cgroup_outside_of_this_namespace_is_not_to_be_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, {"cpu.max": "100000 100000\n"})
    tree(root.parent, {"cpu.max": "1 100000\n", "other/cpu.max": "1 100000\n"})
    group = member(monkeypatch, "0::/../other\n")
    assert group == Cgroup("/../other", None, unified=True)
    assert group.cpu_quota() is None


def test_a_process_that_is_gone_has_no_cgroups() -> None:
    assert cgroups.of(2**30) == Cgroup()


def test_of_this_very_process_the_kernels_files_are_understood() -> None:
    group = cgroups.of(os.getpid())
    assert group.path is not None
    assert group.path.startswith("/")
    assert (group.cpu_quota() or 1) > 0
    assert (group.cpu_throttled_seconds() or 0) >= 0


# --- frozen ---


@pytest.mark.parametrize(
    ("text", "frozen"),
    [
        ("populated 1\nfrozen 1\n", True),
        ("populated 1\nfrozen 0\n", False),
        ("populated 1\n", False),
        ("frozen x\n", False),
    ],
)
def test_v2_tells_in_its_events_if_it_is_frozen(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str, frozen: bool
) -> None:
    tree(root, {"job/cgroup.events": text})
    assert member(monkeypatch, "0::/job\n").frozen() is frozen


@pytest.mark.parametrize(
    ("text", "frozen"),
    [("FROZEN\n", True), ("FREEZING\n", True), ("THAWED\n", False), ("", False)],
)
def test_v1_tells_in_its_freezer_if_it_is_frozen(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str, frozen: bool
) -> None:
    tree(root, {"freezer/docker/abc/freezer.state": text, "cgroup.events": "frozen 1\n"})
    assert member(monkeypatch, "7:freezer:/docker/abc\n0::/\n").frozen() is frozen


def test_who_is_in_no_cgroup_that_can_be_seen_is_not_known_to_be_frozen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, {"freezer/freezer.state": "FROZEN\n", "cgroup.events": "frozen 1\n"})
    assert member(monkeypatch, "7:freezer:/elsewhere\n").frozen() is None
    assert member(monkeypatch, "0::/../elsewhere\n").frozen() is None
    assert member(monkeypatch, "").frozen() is None


# --- memory ---

GB = 1 << 30
NO_LIMIT_V1 = "9223372036854771712\n"

V2_MEMORY = {
    "memory.stat": "anon 1\n",
    "job/memory.max": f"{16 * GB}\n",
    "job/memory.current": f"{15 * GB}\n",
    "job/memory.stat": f"anon {8 * GB}\nfile 9\nshmem {2 * GB}\ninactive_file {4 * GB}\n",
    "job/memory.events": "low 0\nmax 12\noom 3\noom_kill 2\n",
    "job/step/memory.max": f"{12 * GB}\n",
    "job/step/memory.current": f"{5 * GB}\n",
    "job/step/memory.stat": f"anon {3 * GB}\nshmem {GB}\ninactive_file {GB}\n",
    "job/step/memory.events": "oom_kill 1\n",
    "loose/memory.max": "max\n",
    "loose/memory.current": "5000\n",
    "loose/memory.stat": "anon 2000\nshmem 500\ninactive_file 1000\n",
}


def test_v2_memory_is_bound_by_the_level_that_is_full_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, V2_MEMORY)
    memory = member(monkeypatch, "0::/job/step\n").memory()
    assert memory == CgroupMemory(
        limit_bytes=12 * GB,
        working_set_bytes=4 * GB,
        anon_bytes=4 * GB,
        oom_kills=1,
        room_bytes=6 * GB,  # of the 16 GB that the whole job may have, others use 6
        binding_limit_bytes=16 * GB,
    )


def test_v2_memory_without_a_limit_is_still_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, V2_MEMORY)
    memory = member(monkeypatch, "0::/loose\n").memory()
    assert memory == CgroupMemory(working_set_bytes=4000, anon_bytes=2500)


def test_v1_memory_is_that_of_the_memory_controller(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = "rss 1\nshmem 1\ninactive_file 1\n"
    totals = f"total_rss {GB}\ntotal_shmem {GB}\ntotal_inactive_file {3 * GB}\n"
    tree(
        root,
        {
            "memory/memory.limit_in_bytes": NO_LIMIT_V1,
            "memory/mem/memory.limit_in_bytes": f"{4 * GB}\n",
            "memory/mem/memory.usage_in_bytes": f"{6 * GB}\n",
            "memory/mem/memory.stat": stat + totals,
            "memory/mem/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n",
        },
    )
    memory = member(monkeypatch, V1_MEMBER).memory()
    assert memory == CgroupMemory(
        limit_bytes=4 * GB,
        working_set_bytes=3 * GB,
        anon_bytes=2 * GB,
        oom_kills=7,
        room_bytes=2 * GB,
        binding_limit_bytes=4 * GB,
    )


def test_memory_above_its_limit_leaves_no_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(root, {"job/memory.max": "1000\n", "job/memory.stat": "anon 1500\n"})
    assert member(monkeypatch, "0::/job\n").memory().room_bytes == 0


@pytest.mark.parametrize("text", ["", "nonsense\n", "anon\n", "anon x\n", "anon ²\n", "anon -1\n"])
def test_memory_that_cannot_be_understood_is_none(
    root: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    tree(root, {"job/memory.max": text, "job/memory.stat": text, "job/memory.events": text})
    assert member(monkeypatch, "0::/job\n").memory() == CgroupMemory()


def test_a_process_without_cgroups_has_no_memory_of_theirs() -> None:
    assert cgroups.of(2**30).memory() == CgroupMemory()


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory cgroup with a limit of 64 MB."""
    with memory_cgroup(64 << 20) as directory:
        yield directory


USES = """
    import sys
    sys.stdin.readline()
    kept = bytearray(b"x") * 40_000_000
    print("kept", flush=True)
    sys.stdin.readline()
    kept += bytearray(b"x") * 80_000_000
"""


def test_of_a_real_cgroup_limit_use_and_the_kill_for_want_of_memory_are_seen(
    limited: Path, run_job: JobStarter
) -> None:
    job = run_job(USES)
    (limited / "cgroup.procs").write_text(str(job.pid))
    group = cgroups.of(job.pid)
    assert group.path == f"/{limited.name}"
    job.tell()
    job.wait_for_output("kept")
    memory = group.memory()
    assert memory.limit_bytes == memory.binding_limit_bytes == 64 << 20
    assert memory.anon_bytes is not None
    assert memory.working_set_bytes is not None
    assert memory.room_bytes is not None
    assert 35_000_000 < memory.anon_bytes < 60_000_000
    assert memory.anon_bytes + memory.room_bytes == 64 << 20
    assert 35_000_000 < memory.working_set_bytes < 64 << 20
    assert memory.oom_kills == 0
    job.tell()
    job.finish(status=-9)
    assert group.memory().oom_kills == 1
