"""Jobs in other pid and mount namespaces, as containers have, and an agent outside of them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlmon.commands import stacks
from dlmon.observe import containers
from dlmon.observe.containers import Containers
from tests.agent.samples import make_rank
from tests.agents import Agent, running
from tests.jobs import JobStarter, open_files, wait_for

JOB = """
    import sys
    import time

    import dlmon

    dlmon.instrument(run=sys.argv[1], rank=0)

    from torch.utils.data import DataLoader


    class Numbers:
        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            time.sleep(0.005)
            return index


    if __name__ == "__main__":
        loader = dlmon.name(DataLoader(Numbers(), num_workers=2), "train")
        for batch in loader:
            pass
"""

LOOK = """
import dataclasses, json, sys
from dlmon.observe.observer import Observer
observer = Observer(sys.argv[1:])
observer.observe()
rank, = observer.observe().ranks
(loader,) = rank.loaders
print(json.dumps([rank.up, rank.visible, dataclasses.asdict(rank.process),
                  [worker.up for worker in loader.workers], loader.batches]))
observer.close()
"""

OTHER_UID = 54321

# A writer, not a DataLoader: another user may not be allowed to execute this Python.
SHIFTED = """
import ctypes, os, sys, time
from dlmon.segment import writer

libc = ctypes.CDLL(None, use_errno=True)

def check(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

directory, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
check(libc.prctl(4, 1, 0, 0, 0))  # PR_SET_DUMPABLE: /proc/self is this user's again
check(libc.unshare(0x10000000 | 0x20000 | 0x20000000))  # CLONE_NEWUSER, _NEWNS, _NEWPID
for name, text in ("uid_map", f"0 {uid} 1"), ("setgroups", "deny"), ("gid_map", f"0 {uid} 1"):
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)
check(libc.mount(b"own", b"/dev/shm", b"tmpfs", 0, None))
if os.fork():
    os.wait()
else:
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
    os.makedirs(directory, 0o700)
    info = {"run": "shifted", "rank": "0", "root": "1-2", "pid": 1, "start_ticks": 2}
    segment = writer.create(directory, info, 0)
    print("there", file=sys.stderr, flush=True)
    time.sleep(600)
"""

NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc")


def permitted(*prefix: str) -> bool:
    try:
        tried = subprocess.run(
            [*prefix, "true"], capture_output=True, check=False, timeout=60
        ).returncode
    except OSError:
        return False
    return tried == 0


pytestmark = pytest.mark.skipif(
    not permitted(*NAMESPACES), reason="unshare is not permitted here: no namespace can be made"
)


class Container:
    """A job that is process 1 of a pid namespace, with a mount namespace of its own."""

    def __init__(self, script: Path, segment_dir: Path, run: str, *prefix: str, shm: str) -> None:
        command = f"{shm}; exec {shlex.quote(sys.executable)} {script} {run}"
        self.log = script.with_name(f"{run}.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*(prefix or NAMESPACES), "sh", "-ec", command],
                env={**os.environ, "DLMON_DIR": str(segment_dir), "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def close(self) -> None:
        """Kill it, whereupon the kernel kills all others of its pid namespace."""
        self.process.kill()
        self.process.wait()


Starter = Callable[..., Container]


@pytest.fixture
def start(tmp_path: Path, segment_dir: Path) -> Iterator[Starter]:
    """Start a job with a /dev/shm of its own, in which it has a directory of the usual name."""
    tmp_path.chmod(0o755)
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(JOB))
    started: list[Container] = []
    own = f"mount -t tmpfs own /dev/shm; mkdir -m 755 {segment_dir}"

    def starter(run: str, *prefix: str, directory: Path = segment_dir, shm: str = own) -> Container:
        started.append(Container(script, directory, run, *prefix, shm=shm))
        return started[-1]

    yield starter
    for container in started:
        container.close()


def ranks(agent: Agent) -> dict[str, dict[str, Any]]:
    snapshot = json.loads(agent.get("/api/v1/snapshot")[1])
    assert snapshot["superseded"] == []
    assert snapshot["refused"] == []
    return {rank["run"]: rank for rank in snapshot["ranks"]}


def until_it_runs(agent: Agent, container: Container, run: str) -> dict[str, Any]:
    """Wait until a job's batches are seen."""

    def moved() -> bool:
        assert container.process.poll() is None, container.log.read_text()
        rank = ranks(agent).get(run)
        return bool(rank and rank["loaders"] and rank["loaders"][0]["batches"] > 10)

    wait_for(agent.ready, "ready")
    wait_for(moved, "batches of a job in a container")
    return ranks(agent)[run]


def status(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{name}:")).partition(":")[2].strip()


def test_a_job_in_a_container_is_seen_with_the_pids_that_it_has_here(
    start: Starter, segment_dir: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        assert "looking into containers" in agent.greeting
        container = start("inside")
        rank = until_it_runs(agent, container, "inside")
        assert (rank["up"], rank["visible"]) == (True, True)
        assert status(rank["pid"], "NSpid").split() == [str(rank["pid"]), "1"]
        assert str(container.process.pid) == status(rank["pid"], "PPid")
        process = rank["process"]
        assert process["resident_bytes"] > 10_000_000
        assert process["cpu_seconds"] > 0
        assert process["cgroup"] in Path(f"/proc/{rank['pid']}/cgroup").read_text()
        workers = rank["loaders"][0]["workers"]
        assert [worker["up"] for worker in workers] == [True, True]
        for worker in workers:
            assert status(worker["pid"], "PPid") == str(rank["pid"])
            assert worker["resident_bytes"] > 10_000_000
            assert worker["cpu_seconds"] is not None
        os.kill(workers[1]["pid"], signal.SIGSTOP)
        wait_for(
            lambda: ranks(agent)["inside"]["loaders"][0]["workers"][1]["state"] == "stopped",
            "the right worker stopped",
        )


@pytest.mark.slow
def test_dlmon_ps_sees_it_too(start: Starter, segment_dir: Path) -> None:
    start("listed")

    def listed() -> str:
        command = [sys.executable, "-m", "dlmon", "ps", "--dir", str(segment_dir)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    wait_for(lambda: "listed" in listed(), "the job")


@pytest.mark.slow
def test_a_container_that_ends_leaves_its_last_words_and_no_file_open(
    start: Starter, segment_dir: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        container = start("ending")
        before = until_it_runs(agent, container, "ending")["loaders"][0]["batches"]
        container.close()
        wait_for(lambda: not ranks(agent)["ending"]["up"], "its death")
        wait_for(lambda: not open_segments(agent.process.pid), "its files closed")
        rank = ranks(agent)["ending"]
        assert (rank["up"], rank["visible"]) == (False, False)
        assert rank["loaders"][0]["batches"] >= before
        assert [worker["up"] for worker in rank["loaders"][0]["workers"]] == [False, False]


def open_segments(pid: int) -> list[str]:
    """The segments, and directories with some, that a process has open: they keep a tmpfs alive."""
    return [name for name in open_files(pid) if "/dlt-" in name and ".lock" not in name]


@pytest.mark.slow
def test_two_containers_with_the_same_pids_are_two_jobs(start: Starter, segment_dir: Path) -> None:
    with running("--dir", str(segment_dir)) as agent:
        first, second = start("one"), start("two")
        pids = {
            until_it_runs(agent, first, "one")["pid"],
            until_it_runs(agent, second, "two")["pid"],
        }
        assert len(pids) == 2


@pytest.mark.slow
def test_a_job_that_shares_the_shared_memory_of_its_node_is_seen_once(
    start: Starter, segment_dir: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        container = start("shared", shm=":")
        rank = until_it_runs(agent, container, "shared")
        assert status(rank["pid"], "NSpid").split()[-1] == "1"
        assert [worker["up"] for worker in rank["loaders"][0]["workers"]] == [True, True]
        snapshot = json.loads(agent.get("/api/v1/snapshot")[1])
        assert snapshot["segments"] == len(list(segment_dir.glob("*.seg")))


@pytest.mark.slow
def test_a_user_namespace_shifts_uids_and_the_job_is_seen(
    tmp_path: Path, segment_dir: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    script = tmp_path / "shifted.py"
    script.write_text(SHIFTED)
    # Named by the uid that the job has inside; outside it is OTHER_UID.
    command = [sys.executable, str(script), f"{segment_dir}/dlmon-0", str(OTHER_UID)]
    with running("--dir", str(segment_dir)) as agent:
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
            try:
                assert job.stderr is not None
                assert job.stderr.readline() == "there\n", job.stderr.read()
                wait_for(agent.ready, "ready")
                wait_for(lambda: "shifted" in ranks(agent), "the job")
                rank = ranks(agent)["shifted"]
            finally:
                job.kill()
        assert (rank["up"], rank["visible"]) == (True, True)


def test_links_in_a_container_lead_nowhere(tmp_path: Path, segment_dir: Path) -> None:
    (segment_dir / "real").mkdir()
    (segment_dir / "link").symlink_to("real")
    (segment_dir / "out").symlink_to("/")
    root = os.open(segment_dir, os.O_RDONLY)
    try:
        os.close(containers._below(root, "/real"))
        for path in ("/link", "/out/dev/shm", "/missing"):
            with pytest.raises(OSError, match=path.split("/")[1]):
                containers._below(root, path)
    finally:
        os.close(root)


def test_a_directory_that_is_not_in_memory_is_not_gone_to(
    tmp_path: Path, segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On storage that does not answer that could take for ever."""
    disk = tmp_path.stat().st_dev
    if disk == os.stat("/dev/shm").st_dev:
        pytest.skip("temporary files are in shared memory here")
    own = f"mount --bind {tmp_path} /dev/shm; mkdir {segment_dir}; echo there; exec sleep 600"
    gone_to: list[int] = []
    below = containers._below

    def record(root: int, path: str) -> int:
        gone_to.append(os.stat("dev/shm", dir_fd=root).st_dev)
        return below(root, path)

    monkeypatch.setattr(containers, "_below", record)
    with subprocess.Popen([*NAMESPACES, "sh", "-ec", own], stdout=subprocess.PIPE) as held:
        try:
            assert held.stdout is not None
            assert held.stdout.readline() == b"there\n"
            found = [place.path for place in Containers([str(segment_dir)]).look()]
        finally:
            held.kill()
    assert [path for path in found if segment_dir.name in path] == []
    assert disk not in gone_to


def test_a_link_instead_of_a_users_directory_is_not_followed(
    start: Starter, segment_dir: Path
) -> None:
    target = segment_dir / "dlmon-7"
    target.mkdir()
    (target / "x.seg").write_bytes(b"not to be read")
    link = f"mount -t tmpfs own /dev/shm; mkdir {segment_dir}; ln -s {target} {segment_dir}/dlmon-8"
    held = subprocess.Popen([*NAMESPACES, "sh", "-ec", f"{link}; exec sleep 600"])
    try:
        looking = Containers([str(segment_dir)])
        places = wait_for(
            lambda: [p for p in looking.look() if p.path.endswith(segment_dir.name)], "the place"
        )
        assert os.listdir(places[0].fd) in ([], ["dlmon-8"])
        wait_for(lambda: os.listdir(places[0].fd) == ["dlmon-8"], "the link")
        assert [p for p in looking.look() if "dlmon-8" in p.path] == []
    finally:
        held.kill()
        held.wait()


def test_a_directory_that_is_not_found_for_once_is_the_same_when_it_is_again(
    segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"mount -t tmpfs own /dev/shm; mkdir {segment_dir}"
    held = subprocess.Popen([*NAMESPACES, "sh", "-ec", f"{own}; exec sleep 600"])
    try:
        looking = Containers([str(segment_dir)])
        (place,) = wait_for(looking.look, "the place")
        with monkeypatch.context() as patched:
            patched.setattr(looking, "_search", lambda *_: False)
            assert looking.look() == (place,)
        assert looking.look() == (place,)
    finally:
        held.kill()
        held.wait()
    wait_for(lambda: looking.look() == (), "its end")


def test_an_agent_in_a_container_sees_that_jobs_outside_live(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB.replace("sys.argv[1]", '"outside"'))
    job.wait_for(lambda: list(segment_dir.glob("*.seg")), "a segment")
    command = [*NAMESPACES, sys.executable, "-c", LOOK, str(segment_dir)]

    def look() -> tuple[Any, ...]:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return tuple(json.loads(answer.stdout)) if answer.returncode == 0 else ()

    job.wait_for(lambda: (seen := look()) and seen[3] == [True, True], "workers")
    up, visible, process, _, batches = look()
    assert (up, visible) == (True, False)
    assert set(process.values()) == {None}  # no process here is this one, whatever pid it wrote
    assert batches > 0


def test_no_stack_is_taken_of_a_pid_that_is_another_namespaces() -> None:
    assert list(stacks._of_rank(make_rank(visible=False, loaders=()))) == []
    assert [subject.pid for subject in stacks._of_rank(make_rank(loaders=()))] == [4242]
