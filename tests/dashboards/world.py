"""A real agent, real jobs in good and in bad health, and a real Prometheus that reads the agent."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import memory_cgroups
from tests.agents import Agent, running
from tests.conftest import require_tool
from tests.dashboards.reading import ROOT
from tests.jobs import Job, JobStarter, wait_for
from tests.memory_cgroups import memory_cgroup

NVML = ROOT / "tests" / "observe" / "nvml" / "fake_nvml.c"
RULES = ROOT / "deploy" / "prometheus" / "rules"
GIB = 1 << 30

SCRAPE_SECONDS = 3
"""Seldom enough for an agent on a busy machine to answer in time."""

LIMIT = 2 * GIB
MEMORY_CGROUPS = os.access(memory_cgroups.ROOT / "cgroup.procs", os.W_OK)

UTILIZATION = 37
"""Per cent, of both GPUs."""

AGENT = """
web: {listen_address: "127.0.0.1:0"}
memory: {pss_interval_seconds: 1, pss_cpu_budget_ratio: 0.2}
"""

HEALTHY = """
    import os
    import time

    import dlmon

    rank = int(os.environ["RANK"])
    dlmon.instrument(run="vision", rank=rank)

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Slow(Dataset):
        def __len__(self):
            return 160 * (2 - rank)  # seconds: long enough for PSS and USS of its workers

        def __getitem__(self, index):
            time.sleep(0.03 * (1 + rank))
            return torch.zeros(1000)


    if __name__ == "__main__":
        train = dlmon.name(DataLoader(Slow(), batch_size=2, num_workers=2), "train")
        val = dlmon.name(DataLoader(list(range(5))), "val")
        while True:
            for batch in train:
                time.sleep(0.01)
            for batch in val:
                pass
"""

FAULTY = """
    import time

    import dlmon

    dlmon.instrument(run="faulty", rank=0)

    import torch
    from torch.utils.data import DataLoader, Dataset, get_worker_info


    class Bad(Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            if index == 5:
                raise ValueError("a sample that cannot be read")
            return index


    class Fine(Dataset):
        def __len__(self):
            return 2000

        def __getitem__(self, index):
            time.sleep(0.01)
            return index


    class Stuck(Fine):
        def __getitem__(self, index):
            time.sleep(1.3)
            return index


    if __name__ == "__main__":
        left = dlmon.name(DataLoader(Fine(), num_workers=2), "left")
        killed = dlmon.name(DataLoader(Fine(), num_workers=1), "killed")
        bad = dlmon.name(DataLoader(Bad(), num_workers=1), "bad")
        late = dlmon.name(DataLoader(Stuck(), num_workers=1, timeout=1), "late")
        try:
            while True:
                for batch in killed:
                    pass
        except RuntimeError as error:  # never iterated again: so its finding stays
            print(error, flush=True)
        while True:
            for number, batch in enumerate(left):
                if number == 3:
                    break
            for loader in (bad, late):
                try:
                    for batch in loader:
                        pass
                except (ValueError, RuntimeError) as error:
                    print(type(error), flush=True)
"""

GONE = """
    import time

    from torch.utils.data._utils import fetch

    del fetch._IterableDatasetFetcher.fetch  # a torch that lacks one of the places to hook into

    import dlmon

    dlmon.instrument(run="gone", rank=0)

    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        for batch in dlmon.name(DataLoader(list(range(10**6)), num_workers=1), "train"):
            time.sleep(0.01)
"""

UNOBSERVED = """
    import time

    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        for batch in DataLoader(list(range(10**6)), num_workers=1):
            time.sleep(0.01)
"""

EXAMPLE_ALERT = {
    "alert": "DlmonExample",
    "expr": "dlmon_finding",
    "labels": {"severity": "warning"},
}
"""Fires at once for whatever is found; the shipped ones hold for minutes first."""


class Prometheus:
    """A real Prometheus on a free port, in a folder of its own, scraping every `SCRAPE_SECONDS`."""

    def __init__(self, program: Path, folder: Path, target: str) -> None:
        extra = folder / "example.yml"
        extra.write_text(json.dumps({"groups": [{"name": "example", "rules": [EXAMPLE_ALERT]}]}))
        interval = f"{SCRAPE_SECONDS}s"
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(RULES / "*.yml"), str(extra)],
            "scrape_configs": [
                {"job_name": "dlmon", "static_configs": [{"targets": [target]}]},
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "prometheus.log"
        self.began = time.time()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ask(self, path: str, **parameters: Any) -> Any:
        """What an endpoint of the API answers; a refusal fails with its reason."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}"
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                pytest.fail(f"{parameters}: {error.read().decode()}")

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/-/ready", timeout=9):
            return True
        return False

    def now(self, expr: str) -> list[Json]:
        """The series of an instant query, those that are no number left out."""
        found = self.ask("query", query=expr)["result"]
        return [series for series in found if not math.isnan(float(series["value"][1]))]

    def over_time(self, expr: str) -> list[Json]:
        """The series of a range query, since Prometheus was started, that have a number."""
        end = time.time()
        step = max(SCRAPE_SECONDS, (end - self.began) / 100)
        found = self.ask("query_range", query=expr, start=self.began, end=end, step=step)["result"]
        return [
            series
            for series in found
            if any(not math.isnan(float(value)) for _, value in series["values"])
        ]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=60)


Json = dict[str, Any]
Values = Mapping[str, str | Sequence[str]]


def interpolated(expr: str, values: Values) -> str:
    """PromQL with values in place of variables, as Grafana puts them there.

    Args:
        expr: With `$run` and the like.
        values: A text for a variable of one value; a sequence for one of several, of which a single
            `.+` is what All stands for.
    """
    filled = expr.replace("$__rate_interval", "1m").replace("$__range", "2m")
    for name, value in values.items():
        if isinstance(value, str):
            text = value.replace("\\", "\\\\").replace('"', '\\"')
        elif list(value) == [".+"]:
            text = ".+"
        else:
            parts = [re.sub(r"([\\^$*+?.()|\[\]{}])", r"\\\\\1", one) for one in value]
            text = parts[0] if len(parts) == 1 else f"({'|'.join(parts)})"
        filled = re.sub(rf"\${name}\b", text.replace("\\", "\\\\"), filled)
    assert "$" not in filled, filled
    return filled


@dataclass(frozen=True)
class World:
    """What a test looks at.

    Attributes:
        agent: Watches the jobs.
        prometheus: Reads the agent.
        ranks: The two processes of the healthy run.
    """

    agent: Agent
    prometheus: Prometheus
    ranks: tuple[Job, Job]

    def snapshot(self) -> Json:
        found: Json = json.loads(self.agent.get("/api/v1/snapshot")[1])
        return found

    def rank(self, run: str, rank: str) -> Json:
        """A rank of the snapshot."""
        (found,) = [r for r in self.snapshot()["ranks"] if (r["run"], r["rank"]) == (run, rank)]
        return dict(found)


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start everything, and end it."""
    program = require_tool("prometheus")
    segments = tempfile.TemporaryDirectory(
        prefix="dlt-", dir="/dev/shm", ignore_cleanup_errors=True
    )
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(segments))
        group = stack.enter_context(memory_cgroup(LIMIT)) if MEMORY_CGROUPS else None
        jobs = JobStarter(folder, directory)
        stack.callback(jobs.close)
        ranks = (jobs(HEALTHY, env={"RANK": "0"}), jobs(HEALTHY, env={"RANK": "1"}))
        stack.enter_context(_gpus(folder, ranks))
        config = folder / "agent.yml"
        config.write_text(AGENT)
        agent = stack.enter_context(running("--config", str(config), "--dir", str(directory)))
        target = agent.url.removeprefix("http://")
        prometheus = Prometheus(program, folder, target)
        stack.callback(prometheus.close)
        wait_for(prometheus.ready, "Prometheus ready")
        made = World(agent, prometheus, ranks)
        faulty = jobs(FAULTY)
        if group:
            (group / "cgroup.procs").write_text(str(faulty.pid))
        jobs(UNOBSERVED, name="unobserved.py", env={"DLMON_DISABLE": "1"})
        gone = jobs(GONE)
        _kill(made, gone)
        if group:
            _run_out_of_memory(made, group)
        (directory / "broken.seg").write_text("this is no segment")
        yield made


def _kill(made: World, gone: Job) -> None:
    """Kill a training process, and a worker of another one, once Prometheus has seen them live."""
    wait_for(
        lambda: made.prometheus.now('dlmon_worker_up{run="gone"}'), "the run gone in Prometheus"
    )
    os.kill(gone.pid, signal.SIGKILL)
    exits = 'dlmon_loader_worker_exits_total{loader="killed"}'
    wait_for(lambda: made.prometheus.now(exits), "the loader killed in Prometheus")

    def worker() -> int:
        for loader in made.rank("faulty", "0")["loaders"]:
            if loader["name"] == "killed" and loader["workers"][0]["pid"]:
                return int(loader["workers"][0]["pid"])
        return 0

    os.kill(wait_for(worker, "a worker to kill"), signal.SIGKILL)


def _run_out_of_memory(made: World, group: Path) -> None:
    """Have the kernel kill a process in a cgroup, once Prometheus has seen that it killed none."""
    kills = f'dlmon_cgroup_oom_kills_total{{cgroup=~".*/{group.name}"}}'
    wait_for(lambda: made.prometheus.now(kills), "the cgroup in Prometheus")
    code = f"open({str(group / 'cgroup.procs')!r}, 'w').write('0'); bytearray(b'x') * {LIMIT}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


@contextlib.contextmanager
def _gpus(folder: Path, ranks: Sequence[Job]) -> Iterator[None]:
    """Let the agent see a GPU for each rank, through the real binding and a library of our own."""
    library = folder / "libnvidia-ml.so.1"
    compiler = require_tool("gcc")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, NVML], check=True, timeout=60)
    lines = [
        f"gpu 0 0 {UTILIZATION} {3 * GIB} {8 * GIB} {job.pid} 0 GPU-{number}\n"
        for number, job in enumerate(ranks)
    ]
    (folder / "nvml").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        patch.setenv("FAKE_NVML", str(folder / "nvml"))
        yield
