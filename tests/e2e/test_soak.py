"""Healthy jobs of all sorts for a while, and hangs among them: all of these and none of those."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.agents import Agent, running
from tests.conftest import require_tool
from tests.e2e.hanging import NAMES, Scene, kind, possible, source
from tests.jobs import JobStarter

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
"""`make soak` takes half an hour."""

HEALTHY = [f"varied-{number}" for number in range(5)]

JUMPS = """
#define _GNU_SOURCE
#include <time.h>
#include <unistd.h>
#include <sys/syscall.h>
/* The wall clock is set every ten seconds, by up to a day, forwards and backwards. */
int clock_gettime(clockid_t id, struct timespec *t) {
    static const long by[] = {0, 3600, -3600, 86400, 5, -86400};
    int r = syscall(SYS_clock_gettime, id, t);
    if (r == 0 && id == CLOCK_REALTIME) {
        struct timespec m;
        syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &m);
        t->tv_sec += by[m.tv_sec / 10 % 6];
    }
    return r;
}
"""


class Watcher:
    """Notes everything that an agent ever finds, and takes in its log so that it never blocks.

    Attributes:
        found: Run, name and sentence of each.
        ahead: Hours that its wall clock was ahead of ours.
    """

    def __init__(self, agent: Agent) -> None:
        self.found: set[tuple[str, str, str]] = set()
        self.ahead: set[int] = set()
        self._agent = agent
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look), threading.Thread(target=self._drain)]
        for thread in self._threads:
            thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            seen = json.loads(self._agent.get("/api/v1/findings")[1])
            self.ahead.add(round((seen.get("time", time.time()) - time.time()) / 3600))
            for one in seen.get("findings", ()):
                self.found.add((one["run"], one["name"], one["sentence"]))

    def _drain(self) -> None:
        assert self._agent.process.stderr is not None
        for _ in self._agent.process.stderr:
            pass

    def close(self) -> None:
        self._over.set()
        self._threads[0].join()
        self._agent.process.kill()
        self._threads[1].join()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
def test_all_that_hangs_is_found_and_nothing_that_is_healthy(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jumps.c").write_text(JUMPS)
    jumps = tmp_path / "jumps.so"
    gcc = str(require_tool("gcc"))
    subprocess.run([gcc, "-shared", "-fPIC", "-o", jumps, tmp_path / "jumps.c"], check=True)
    config = tmp_path / "agent.yml"
    config.write_text(
        "interval_seconds: 0.5\nweb: {listen_address: 127.0.0.1:0}\n"
        "hangs: {floor_seconds: 2, ceiling_seconds: 60}\nstacks: {per_hour: 3600}\n"
    )
    with monkeypatch.context() as patched:
        patched.setenv("LD_PRELOAD", str(jumps))
        agents = running("--config", str(config), "--dir", str(segment_dir))
        agent = agents.__enter__()
    watcher = Watcher(agent)
    try:
        end = time.monotonic() + SECONDS
        run_job(source(tmp_path, *HEALTHY))
        hung: list[str] = []
        while time.monotonic() < end or len(hung) < 20:
            names = [f"{name}-{len(hung)}" for name in possible()]
            folder = tmp_path / names[0]
            folder.mkdir()
            with contextlib.closing(JobStarter(folder, segment_dir)) as start:
                start(source(folder, *names))
                Scene(agent, folder, names).happen()
            hung += names
    finally:
        watcher.close()
        agents.__exit__(None, None, None)
    healthy = [found for found in watcher.found if kind(found[0]) == "varied"]
    assert healthy == []
    noticed = {(run, name) for run, name, _ in watcher.found}
    assert {(run, NAMES[kind(run)]) for run in hung} <= noticed
    assert len(hung) >= 20
    assert watcher.ahead == {0, 1, -1, 24, -24}
