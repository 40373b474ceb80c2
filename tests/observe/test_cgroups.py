"""The CPUs a cgroup grants, by version 2 and 1, over trees as the kernel makes them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from dlmon.observe import cgroups
from dlmon.observe.cgroups import Cgroup


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /sys/fs/cgroup."""
    monkeypatch.setattr(cgroups, "ROOT", str(tmp_path / "cgroup"))
    return tmp_path / "cgroup"


def tree(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def member(monkeypatch: pytest.MonkeyPatch, text: str) -> Cgroup:
    """Return the cgroups of a process whose /proc/<pid>/cgroup says `text`."""
    real = cgroups._read

    def read(path: str) -> str:
        return text if path == "/proc/4000/cgroup" else real(path)

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
    assert group == Cgroup("/job/step", str(root / "job" / "step"), unified=True)
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
    group = member(monkeypatch, "0::/kubepods/pod7/box\n")
    assert group == Cgroup("/kubepods/pod7/box", str(root), unified=True)
    assert group.cpu_quota() == 0.5
    assert group.cpu_throttled_seconds() == 0.5


def test_v1_quota_is_that_of_the_cpu_controller(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, V1)
    group = member(monkeypatch, V1_MEMBER)
    assert group == Cgroup("/mem", str(root / "cpu" / "job" / "step"), unified=False)
    assert group.cpu_quota() == 1.5
    assert group.cpu_throttled_seconds() == 3.5


def test_v1_of_a_container_whose_own_cgroup_is_mounted_as_the_root(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(root, {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"})
    group = member(monkeypatch, "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n")
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
