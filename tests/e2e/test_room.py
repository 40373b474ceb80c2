"""Real jobs that nearly fill /dev/shm or use up their descriptors, and an agent that tells."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agents import Agent, running
from tests.jobs import JobStarter, wait_for

CONFIG = """
interval_seconds: 0.2
web: {listen_address: "127.0.0.1:0"}
memory: {pss_interval_seconds: 0.2}
"""

SHM_BYTES = 64 << 20

# Its /dev/shm is small, as a container's is; its segments are where the agent reads them.
FILLS_SHM = """
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)

    def check(result):
        if result:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    own = os.path.abspath("segments")
    os.mkdir(own)
    check(libc.unshare(0x20000))  # CLONE_NEWNS
    check(libc.mount(None, b"/", None, 0x44000, None))  # MS_REC | MS_PRIVATE
    check(libc.mount(os.environ["DLMON_DIR"].encode(), own.encode(), None, 0x1000, None))  # MS_BIND
    check(libc.mount(b"own", b"/dev/shm", b"tmpfs", 0, b"size=@SIZE@"))
    os.environ["DLMON_DIR"] = own

    import dlmon

    dlmon.instrument(run="fills", rank=0)

    import torch
    from torch.utils.data import DataLoader


    class Large:
        def __len__(self):
            return 15

        def __getitem__(self, index):
            return torch.ones(1 << 20)  # 4 MiB


    if __name__ == "__main__":
        kept = []
        for batch in dlmon.name(DataLoader(Large(), num_workers=1), "train"):
            kept.append(batch)  # each has its file in /dev/shm
        print("FULL", flush=True)
        input()
        del batch, kept[5:]
        print("FREE", flush=True)
        input()
"""

LEAKS_FILES = """
    import os
    import resource
    import time

    import dlmon

    dlmon.instrument(run="leaks", rank=0)

    from torch.utils.data import DataLoader

    leaked = []


    def leak():
        if os.path.exists("enough"):
            while leaked:
                os.close(leaked.pop())
        elif len(os.listdir("/proc/self/fd")) < 120:
            leaked.append(os.open(os.devnull, os.O_RDONLY))


    class Leaking:
        def __len__(self):
            return 1_000_000

        def __getitem__(self, index):
            time.sleep(0.005)
            if WHO == "worker":
                leak()
            return index


    if __name__ == "__main__":
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
        for batch in dlmon.name(DataLoader(Leaking(), num_workers=1), "train"):
            if WHO == "rank":
                leak()
"""


@pytest.fixture
def agent(tmp_path: Path, segment_dir: Path) -> Iterator[Agent]:
    config = tmp_path / "agent.yml"
    config.write_text(CONFIG)
    with running("--config", str(config), "--dir", str(segment_dir)) as agent:
        yield agent


def findings(agent: Agent) -> list[dict[str, Any]]:
    wait_for(agent.ready, "ready")
    found: list[dict[str, Any]] = json.loads(agent.get("/api/v1/findings")[1])["findings"]
    return found


def may_mount() -> bool:
    command = ["unshare", "--mount", "mount", "-t", "tmpfs", "own", "/dev/shm"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not may_mount(), reason="no mount namespace can be made here")
def test_a_dev_shm_that_is_nearly_full_is_told_as_its_job_sees_it(
    agent: Agent, run_job: JobStarter
) -> None:
    job = run_job(FILLS_SHM.replace("@SIZE@", str(SHM_BYTES)))
    job.wait_for_output("FULL")
    (found,) = job.wait_for(lambda: findings(agent), "a finding")
    about = [found[key] for key in ("name", "run", "rank", "loader", "worker")]
    assert about == ["shm_nearly_full", "fills", "0", "", ""]
    assert found["evidence"]["size_bytes"] == str(SHM_BYTES)
    assert 0.9 * SHM_BYTES < int(found["evidence"]["used_bytes"]) < SHM_BYTES
    assert (
        "of the 67 MB of /dev/shm are in use; the most in the training process ("
        in (found["sentence"])
    )
    job.tell()
    job.wait_for_output("FREE")
    job.wait_for(lambda: not findings(agent), "its end")


@pytest.mark.parametrize(
    ("who", "loader", "worker", "sentence"),
    [
        ("worker", "train", "0", "worker 0 of train has 1"),
        pytest.param("rank", "", "", "the training process has 1", marks=pytest.mark.slow),
    ],
)
def test_who_has_nearly_all_files_open_that_it_may_is_told(
    who: str,
    loader: str,
    worker: str,
    sentence: str,
    agent: Agent,
    run_job: JobStarter,
    tmp_path: Path,
) -> None:
    job = run_job(LEAKS_FILES.replace("WHO", repr(who)))
    (found,) = job.wait_for(lambda: findings(agent), "a finding")
    about = [found[key] for key in ("name", "run", "rank", "loader", "worker")]
    assert about == ["open_files_nearly_exhausted", "leaks", "0", loader, worker]
    assert found["sentence"].startswith(sentence)
    assert found["sentence"].endswith(" of 128 descriptors open")
    assert found["evidence"]["max_fds"] == "128"
    assert 0.9 * 128 < int(found["evidence"]["open_fds"]) < 128
    (tmp_path / "enough").touch()
    wait_for(lambda: not findings(agent), "its end", job=job)
