"""Where segments go: in memory, private, or nowhere, with a sentence that says what to do."""

from __future__ import annotations

import os
import stat
import subprocess
import textwrap
from pathlib import Path

import pytest

from dlmon.errors import SegmentError
from dlmon.segment import files
from tests.jobs import JobStarter
from tests.segment.places import FULL

USE = "set DLMON_DIR to a directory on tmpfs that this user may write"
root_only = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")


def refusal(configured: str | None) -> str:
    with pytest.raises(SegmentError) as caught:
        files.choose(configured)
    return str(caught.value)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shm(segment_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /dev/shm, on a node without /run/dlmon."""
    monkeypatch.setattr(files, "SHM", str(segment_dir))
    monkeypatch.setattr(files, "NODE_DIR", str(segment_dir / "no-node-directory"))
    return segment_dir


def test_a_configured_directory_that_is_missing_is_made_private(segment_dir: Path) -> None:
    wanted = segment_dir / "mine"
    before = os.umask(0)
    try:
        assert files.choose(str(wanted)) == str(wanted)
    finally:
        os.umask(before)
    assert mode(wanted) == 0o700


def test_a_configured_directory_that_is_there_stays_as_it_is(segment_dir: Path) -> None:
    segment_dir.chmod(0o750)
    assert files.choose(str(segment_dir)) == str(segment_dir)
    assert mode(segment_dir) == 0o750


def test_a_relative_directory_is_meant_from_where_the_job_is(
    segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(segment_dir)
    assert files.choose("mine") == str(segment_dir / "mine")


def test_a_directory_that_cannot_be_made_is_refused(segment_dir: Path) -> None:
    wanted = segment_dir / "a" / "b"
    assert refusal(str(wanted)) == (
        f"directory {wanted}: cannot be made (No such file or directory); {USE}"
    )


@pytest.mark.parametrize("kind", ["file", "dangling link"])
def test_what_is_no_directory_is_refused(segment_dir: Path, kind: str) -> None:
    wanted = segment_dir / "it"
    if kind == "file":
        wanted.touch(0o600)
    else:
        wanted.symlink_to(segment_dir / "nowhere")
    assert refusal(str(wanted)) == f"directory {wanted}: not writable for uid {os.getuid()}; {USE}"


def test_a_directory_on_a_disk_is_refused(tmp_path: Path) -> None:
    asked = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(tmp_path)]
    kind = subprocess.check_output(asked, text=True, timeout=60).strip()
    if kind in ("tmpfs", "ramfs"):
        pytest.skip("there is no disk under pytest's temporary directory")
    assert refusal(str(tmp_path)) == (
        f"directory {tmp_path}: is on {kind}, expected one of tmpfs, ramfs; "
        "set DLMON_DIR to a directory under /dev/shm"
    )


MOUNTS = """\
22 1 0:21 /root / rw,relatime shared:1 - btrfs /dev/sda2 rw,subvolid=257
23 22 0:22 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw
24 23 0:23 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw
25 22 8:1 / /home2 rw shared:4 - ext4 /dev/sda1 rw
26 25 0:30 / /home2/fast rw shared:5 master:1 - tmpfs none rw
""".splitlines()


@pytest.mark.parametrize(
    ("device", "path", "kind"),
    [
        ("0:23", "/dev/shm/a", "tmpfs"),
        ("0:99", "/home/ada/a", "btrfs"),  # a subvolume: its device is not in the table
        ("0:99", "/home2/fast/a", "tmpfs"),
        ("0:99", "/home2/fast", "tmpfs"),
        ("0:99", "/home2/faster", "ext4"),
        ("0:99", "/", "btrfs"),
    ],
)
def test_the_file_system_is_found_by_its_device_or_else_by_its_place(
    device: str, path: str, kind: str
) -> None:
    assert files._kind(MOUNTS, device, path) == kind


@root_only
def test_a_directory_this_user_may_not_write_is_refused(
    run_job: JobStarter, segment_dir: Path
) -> None:
    tries = f"""
        import os
        from dlmon.errors import SegmentError
        from dlmon.segment import files
        os.setuid(65534)
        for wanted in ({str(segment_dir)!r}, {str(segment_dir / "mine")!r}):
            try:
                files.choose(wanted)
            except SegmentError as error:
                print(error)
    """
    assert run_job(tries).finish().splitlines() == [
        f"directory {segment_dir}: not writable for uid 65534; {USE}",
        f"directory {segment_dir}/mine: cannot be made (Permission denied); {USE}",
    ]


def test_the_default_is_the_nodes_directory_where_it_is(
    shm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = shm / "node"
    node.mkdir()
    monkeypatch.setattr(files, "NODE_DIR", str(node))
    assert files.choose(None) == str(node)
    assert files.file_mode(str(node)) == 0o640


@pytest.mark.parametrize("configured", [None, ""])
def test_the_default_else_is_a_private_one_of_this_users(shm: Path, configured: str | None) -> None:
    own = shm / f"dlmon-{os.getuid()}"
    assert files.choose(configured) == str(own)
    assert mode(own) == 0o700
    assert files.file_mode(str(own)) == 0o600
    assert files.choose(configured) == str(own), "a second time"


@pytest.mark.parametrize("wrong", [0o770, 0o702, 0o777])
def test_a_default_directory_others_may_write_is_refused(shm: Path, wrong: int) -> None:
    own = shm / f"dlmon-{os.getuid()}"
    own.mkdir()
    own.chmod(wrong)
    uid = os.getuid()
    assert refusal(None) == (
        f"directory {own}: belongs to uid {uid} with mode {wrong:o}, expected a directory of uid "
        f"{uid} that only it may write; remove it or set DLMON_DIR"
    )


@root_only
def test_a_default_directory_that_another_user_made_is_refused(shm: Path) -> None:
    own = shm / "dlmon-0"
    own.mkdir(0o700)
    os.chown(own, 65534, 65534)
    assert refusal(None) == (
        f"directory {own}: belongs to uid 65534 with mode 700, expected a directory of uid 0 "
        "that only it may write; remove it or set DLMON_DIR"
    )


def test_a_link_in_place_of_the_default_directory_is_refused(shm: Path) -> None:
    (shm / "elsewhere").mkdir(0o700)
    own = shm / f"dlmon-{os.getuid()}"
    own.symlink_to(shm / "elsewhere")
    assert "expected a directory of uid" in refusal(None)


def test_the_directories_searched_are_the_one_given_and_each_users_in_it(shm: Path) -> None:
    for name in ("dlmon-7", "dlmon-", "dlmon-x", "dlmon-1x", "other-7"):
        (shm / name).mkdir()
    (shm / "dlmon-8").symlink_to(shm / "dlmon-7")
    (shm / "dlmon-9").touch()
    found = dict(files.user_directories(str(shm)))
    assert found == {str(shm): None, str(shm / "dlmon-7"): 7}
    assert list(files.user_directories("/nowhere")) == [("/nowhere", None)]


def test_only_finished_segments_are_named(segment_dir: Path) -> None:
    for name in ("b.seg", "a.seg", ".new-a.seg", "notes.txt"):
        (segment_dir / name).touch()
    assert files.segment_names(str(segment_dir)) == ["a.seg", "b.seg"]
    assert files.segment_names("/nowhere") == []


def test_in_a_full_directory_no_segment_is_made_and_nothing_is_left(
    run_job: JobStarter, segment_dir: Path
) -> None:
    tries = FULL + textwrap.dedent(
        """
        from dlmon.errors import SegmentError
        from dlmon.segment.writer import create

        directory = os.environ["DLMON_DIR"]
        full(directory)
        for workers in (0, 4096):
            try:
                create(directory, {}, workers)
            except SegmentError as error:
                print(error.reason, error)
        print(os.listdir(directory), len(os.listdir("/proc/self/fd")))
        """
    )
    output = run_job(tries).finish().splitlines()
    if output[0].startswith("SKIP"):
        pytest.skip(output[0])
    sentence = (
        f"io directory {segment_dir}: no segment can be made (No space left on device); "
        "free some space there or set DLMON_DIR to another directory on tmpfs"
    )
    assert output == [sentence, sentence, "['filler'] 4"]
