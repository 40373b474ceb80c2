"""A real agent, real jobs in good and in bad health, and a real Prometheus that reads the agent."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import memory_cgroups
from tests.agents import Agent, running
from tests.conftest import require_tool
from tests.dashboards.past import Moment, Scrape
from tests.dashboards.reading import ROOT
from tests.dashboards.relay import Relay, now_ms
from tests.dashboards.scripts import (
    FAULTY,
    GONE,
    HEALTHY,
    STRANGE,
    TROUBLED_AGENT,
    UNOBSERVED,
)
from tests.jobs import Job, JobStarter, wait_for
from tests.memory_cgroups import memory_cgroup
from tests.ports import free_ports

NVML = ROOT / "tests" / "observe" / "nvml" / "fake_nvml.c"
RULES = ROOT / "deploy" / "prometheus" / "rules"
GIB = 1 << 30

SCRAPE_SECONDS = 3
"""Seldom enough for an agent on a busy machine to answer in time."""

BEFORE_MS, BEHIND_MS = 500, 200
"""A scrape that begins so long before or behind an evaluation may be seen by it, or not."""

TRIES = 8
"""To find ports whose scrapes are far from evaluations: three in four are."""

LIMIT = 2 * GIB
MEMORY_CGROUPS = os.access(memory_cgroups.ROOT / "cgroup.procs", os.W_OK)

UTILIZATION = (37, 61, 13)
"""Per cent, of the GPUs of the two healthy ranks and of the faulty one."""

AGENT = """
web: {listen_address: "127.0.0.1:0"}
memory: {pss_interval_seconds: 1, pss_cpu_budget_ratio: 0.2}
limits: {loaders_per_rank: %d}
"""

RULES_OF_RECORDING = '{__name__=~".+:.+"}'

EXAMPLE_ALERTS = [
    {"alert": "DlmonExample", "expr": "dlmon_finding", "labels": {"severity": "warning"}},
    {"alert": "Others", "expr": "vector(1)", "labels": {"severity": "warning"}},
]
"""Fire at once, for whatever is found and always; the shipped ones hold for minutes first."""

NO_AGENT = "127.0.0.1:1"
"""A target of another job, about which no dashboard says anything."""

OWN_ALERTS = [alert["alert"] for alert in EXAMPLE_ALERTS]


class Prometheus:
    """A real Prometheus on a free port, in a folder of its own, scraping every `SCRAPE_SECONDS`."""

    def __init__(self, program: Path, folder: Path, targets: Sequence[str]) -> None:
        extra = folder / "example.yml"
        extra.write_text(json.dumps({"groups": [{"name": "example", "rules": EXAMPLE_ALERTS}]}))
        interval = f"{SCRAPE_SECONDS}s"
        config = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(RULES / "*.yml"), str(extra)],
            "scrape_configs": [
                {"job_name": "dlmon", "static_configs": [{"targets": list(targets)}]},
                {"job_name": "others", "static_configs": [{"targets": [NO_AGENT]}]},
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
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

    def at(self, expr: str, time: int) -> list[tuple[dict[str, str], float]]:
        """The labels and values of a query at a Unix time in ms, NaN left out."""
        found = self.ask("query", query=expr, time=time / 1000)["result"]
        numbers = [(series["metric"], float(series["value"][1])) for series in found]
        return [(labels, value) for labels, value in numbers if not math.isnan(value)]

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        return self.at(expr, now_ms())

    def times(self, selector: str) -> dict[str, list[int]]:
        """The times of the samples of a selector's series so far, in ms, by `instance`."""
        found: dict[str, set[int]] = defaultdict(set)
        for series in self.ask("query", query=f"{selector}[1h]")["result"]:
            samples = found[series["metric"].get("instance", "")]
            samples.update(round(time * 1000) for time, _ in series["values"])
        return {instance: sorted(samples) for instance, samples in found.items()}

    def answered(self, expr: str, until: int) -> tuple[list[int], list[int]]:
        """The times, in ms, at which a query was answered, and was not: one each scrape so far."""
        step, end = SCRAPE_SECONDS, until / 1000
        begin = end - (end - self.began) // step * step
        found = self.ask("query_range", query=expr, start=begin, end=end, step=step)["result"]
        points = [point for series in found for point in series["values"]]
        answered = {round(time * 1000) for time, value in points if value != "NaN"}
        every = range(round(begin * 1000), until + 1, step * 1000)
        return sorted(answered), [time for time in every if time not in answered]

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
        prometheus: Reads the agent, and one that is in trouble, through relays.
        relays: By instance; the agent's first.
    """

    agent: Agent
    prometheus: Prometheus
    relays: Mapping[str, Relay]

    def rank(self, run: str, rank: str) -> Json:
        """A rank of the snapshot."""
        snapshot = json.loads(self.agent.get("/api/v1/snapshot")[1])
        (found,) = [r for r in snapshot["ranks"] if (r["run"], r["rank"]) == (run, rank)]
        return dict(found)

    def snapshots(self) -> list[Json]:
        """What each agent said last."""
        return [relay.looks[-1].snapshot for relay in self.relays.values()]

    def moment(self) -> Moment:
        """All that is known now."""
        scraped = self.prometheus.times("dlmon_agent_build_info")
        tried = self.prometheus.times('up{job="dlmon"}')
        alerts = self.prometheus.ask("alerts")["alerts"]
        targets = self.prometheus.ask("targets")["activeTargets"]
        return Moment(
            time=now_ms(),
            scrapes=[
                Scrape(
                    instance,
                    time,
                    self.relays[instance].at(time) if time in scraped[instance] else None,
                )
                for instance, times in tried.items()
                for time in times
            ],
            evaluations=self.prometheus.times(RULES_OF_RECORDING).get("", []),
            chosen={},
            alerts=[
                {**alert["labels"], "alertstate": alert["state"]}
                for alert in alerts
                if alert["labels"]["alertname"] not in OWN_ALERTS
            ],
            targets={
                one["labels"]["instance"]: float(one["health"] == "up")
                for one in targets
                if one["labels"]["job"] == "dlmon"
            },
        )


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Start everything, and end it."""
    program = require_tool("prometheus")
    with contextlib.ExitStack() as stack:
        directory, other = (Path(stack.enter_context(_in_memory())) for _ in range(2))
        group = stack.enter_context(memory_cgroup(LIMIT)) if MEMORY_CGROUPS else None
        jobs = JobStarter(folder, directory)
        stack.callback(jobs.close)
        ranks = (jobs(HEALTHY, env={"RANK": "0"}), jobs(HEALTHY, env={"RANK": "1"}))
        faulty = jobs(FAULTY)
        if group:
            (group / "cgroup.procs").write_text(str(faulty.pid))
        stack.enter_context(_gpus(folder, (*ranks, faulty)))
        agent = stack.enter_context(_agent(folder / "agent.yml", directory))
        script = folder / "troubled.py"
        script.write_text(textwrap.dedent(TROUBLED_AGENT))
        troubled = stack.enter_context(_agent(folder / "troubled.yml", other, script, loaders=1))
        for one in (agent, troubled):
            wait_for(one.ready, "an agent that has looked")
        prometheus, relays = _scraping(stack, program, folder, [agent, troubled])
        targets = [relay.target for relay in relays]
        made = World(agent, prometheus, dict(zip(targets, relays, strict=True)))
        jobs(UNOBSERVED, name="unobserved.py", env={"DLMON_DISABLE": "1"})
        gone = jobs(GONE)
        _kill(made, gone)
        if group:
            _run_out_of_memory(made, group)
        wait_for(lambda: prometheus.times("dlmon_agent_build_info").keys() == set(targets), "both")
        (directory / "broken.seg").write_text("this is no segment")
        jobs(STRANGE, env={"DLMON_DIR": str(other), "DLMON_STRICT": None})
        yield made


def _scraping(
    stack: contextlib.ExitStack, program: Path, folder: Path, agents: Sequence[Agent]
) -> tuple[Prometheus, list[Relay]]:
    """Start Prometheus and a relay in front of each agent, none scraped when rules are evaluated.

    Rules of a group come one after another, and Prometheus does not tell when the later ones do: so
    nobody knows if they see what comes meanwhile. It is a target's address that decides when in an
    interval it is scraped, each time: where that is too close, the relay gets another port.
    """
    relays = [_relay(stack, agent) for agent in agents]
    for number in range(1, TRIES + 1):
        place = folder / f"prometheus-{number}"
        place.mkdir()
        prometheus = Prometheus(program, place, [relay.target for relay in relays])
        stack.callback(prometheus.close)
        wait_for(prometheus.ready, "Prometheus ready")
        rounds = functools.partial(_after_an_evaluation, prometheus, relays)
        after = wait_for(rounds, "scrapes and evaluations")
        close = [any(map(_is_close, after[relay.target])) for relay in relays]
        if not any(close):
            break
        if number < TRIES:
            prometheus.close()
            relays = [
                _relay(stack, relay.agent) if is_close else relay
                for relay, is_close in zip(relays, close, strict=True)
            ]
    return prometheus, relays


def _after_an_evaluation(prometheus: Prometheus, relays: Sequence[Relay]) -> dict[str, list[int]]:
    """How long after an evaluation each target was scraped, in ms; {} before there were two."""
    evaluations = prometheus.times(RULES_OF_RECORDING).get("", [])
    scrapes = prometheus.times("up")
    if len(evaluations) < 2 or any(len(scrapes.get(one.target, [])) < 2 for one in relays):
        return {}
    interval = SCRAPE_SECONDS * 1000
    return {
        target: [(time - evaluations[-1]) % interval for time in times]
        for target, times in scrapes.items()
    }


def _is_close(after: int) -> bool:
    return after <= BEHIND_MS or after >= SCRAPE_SECONDS * 1000 - BEFORE_MS


def _relay(stack: contextlib.ExitStack, agent: Agent) -> Relay:
    relay = Relay(agent)
    stack.callback(relay.close)
    return relay


def _in_memory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="dlt-", dir="/dev/shm", ignore_cleanup_errors=True)


def _agent(
    config: Path, directory: Path, script: Path | None = None, loaders: int = 64
) -> contextlib.AbstractContextManager[Agent]:
    config.write_text(AGENT % loaders)
    return running("--config", str(config), "--dir", str(directory), script=script)


def _kill(made: World, gone: Job) -> None:
    """Kill a training process, and a worker of another one, once Prometheus has seen them live.

    A worker that the training process leaves behind is stopped before, so that it stays.
    """
    wait_for(
        lambda: made.prometheus.now('dlmon_worker_up{run="gone"}'), "the run gone in Prometheus"
    )
    os.kill(_worker(made, "gone", "train"), signal.SIGSTOP)
    os.kill(gone.pid, signal.SIGKILL)
    exits = 'dlmon_loader_worker_exits_total{loader="killed"}'
    wait_for(lambda: made.prometheus.now(exits), "the loader killed in Prometheus")
    os.kill(_worker(made, "faulty", "killed"), signal.SIGKILL)


def _worker(made: World, run: str, name: str) -> int:
    """The pid of a loader's first worker, once it has one."""

    def pid() -> int:
        for loader in made.rank(run, "0")["loaders"]:
            if loader["name"] == name and loader["workers"][0]["pid"]:
                return int(loader["workers"][0]["pid"])
        return 0

    return wait_for(pid, f"a worker of {name}")


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
        f"gpu 0 0 {used} {(number + 1) * GIB} {8 * GIB} {job.pid} 0 GPU-{number}\n"
        for number, (job, used) in enumerate(zip(ranks, UTILIZATION, strict=True))
    ]
    (folder / "nvml").write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(folder))
        patch.setenv("FAKE_NVML", str(folder / "nvml"))
        yield
