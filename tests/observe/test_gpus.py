"""GPUs as NVML tells them: the real binding over a small library, and a real GPU where one is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dlmon.agent.admission import Detail, admit
from tests.agent.samples import GPU_UUID, make_gpu, make_rank, make_snapshot
from tests.agents import Agent, running
from tests.gpus import GIB, FakeGpus, gpu_line
from tests.jobs import JobStarter, wait_for

LOST, UNINITIALIZED, NOT_LOADED = 15, 1, 9

LOOK = """
import sys, json, time, dataclasses, logging
from dlmon.observe.gpus import Gpus
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
gpus = Gpus(0.05, retry_seconds=0.2)
gpus.start(60.0)
for line in sys.stdin:
    seen = [dataclasses.asdict(gpu) for gpu in gpus.now()]
    print(json.dumps({"say": gpus.say(), "gpus": seen, "nvml": "pynvml" in sys.modules}))
    sys.stdout.flush()
gpus.close()
"""

AGENT = """
import sys
from dlmon.cli import main
from dlmon.observe.gpus import Gpus
Gpus.start.__defaults__ = (60.0,)
sys.exit(main(["agent", *sys.argv[1:]]))
"""
"""One that has all the time that it needs for a first look at GPUs before it says what it sees."""

JOB = """
    import time

    import dlmon

    dlmon.instrument(run="computing", rank=0)

    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        for batch in dlmon.name(DataLoader(list(range(1_000_000))), "train"):
            time.sleep(0.01)
"""


class Looking:
    """A process that looks at GPUs all the time, and says what it sees when asked."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOOK],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def gpus(self) -> list[dict[str, Any]]:
        gpus: list[dict[str, Any]] = self.ask()["gpus"]
        return gpus

    def until(self, holds: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """Wait until what is seen is so, and return that: it is old soon."""

        def seen() -> tuple[list[dict[str, Any]], ...]:
            gpus = self.gpus()
            return (gpus,) if holds(gpus) else ()

        (gpus,) = wait_for(seen, "GPUs")
        return gpus


@contextmanager
def looking(environment: dict[str, str]) -> Iterator[Looking]:
    look = Looking(environment)
    try:
        yield look
    finally:
        look.process.kill()
        look.process.communicate()


def test_a_gpu_is_what_nvml_says_of_it(fake_gpus: FakeGpus) -> None:
    fake_gpus.has(gpu_line(processes="17,4242"), gpu_line(uuid="GPU-b", util=100))
    with looking(fake_gpus.environment) as look:
        first, second = look.until(lambda gpus: len(gpus) == 2)
        said = look.ask()["say"]
    assert said.startswith("2 GPUs (Fake H200)")
    assert first == {
        "index": "0",
        "uuid": "GPU-a",
        "name": "Fake H200",
        "utilization": 0.37,
        "memory_used_bytes": 3 * GIB,
        "memory_total_bytes": 8 * GIB,
        "pids": [17, 4242],
    }
    assert (second["index"], second["utilization"]) == ("1", 1.0)


def test_what_is_not_supported_or_not_permitted_is_not_known(fake_gpus: FakeGpus) -> None:
    fake_gpus.has(gpu_line(util=-1, processes="!"))
    with looking(fake_gpus.environment) as look:
        (gpu,) = look.until(bool)
        assert "but not who uses them" in look.ask()["say"]
    assert (gpu["utilization"], gpu["pids"]) == (None, None)
    assert gpu["memory_used_bytes"] == 3 * GIB


def test_a_divided_gpu_is_shown_as_its_instances(fake_gpus: FakeGpus) -> None:
    fake_gpus.has(
        gpu_line(mig=1),
        gpu_line("mig", uuid="MIG-1", processes="11"),
        gpu_line("mig", uuid="MIG-2", processes="12"),
        gpu_line(uuid="GPU-whole"),
    )
    with looking(fake_gpus.environment) as look:
        gpus = look.until(lambda gpus: len(gpus) == 3)
    assert [(gpu["index"], gpu["uuid"]) for gpu in gpus] == [
        ("0:0", "MIG-1"),
        ("0:1", "MIG-2"),
        ("1", "GPU-whole"),
    ]
    assert [gpu["utilization"] for gpu in gpus] == [None, None, 0.37]
    assert [gpu["pids"] for gpu in gpus][:2] == [[11], [12]]


def test_a_gpu_that_is_lost_is_absent_the_others_go_on_and_it_comes_back(
    fake_gpus: FakeGpus,
) -> None:
    fake_gpus.has(gpu_line(), gpu_line(uuid="GPU-b"))
    with looking(fake_gpus.environment) as look:
        look.until(lambda gpus: len(gpus) == 2)
        fake_gpus.has(gpu_line(status=LOST), gpu_line(uuid="GPU-b", util=99))
        (left,) = look.until(lambda gpus: len(gpus) == 1)
        assert left["uuid"] == "GPU-b"
        fake_gpus.has(gpu_line(), gpu_line(uuid="GPU-b"))
        look.until(lambda gpus: len(gpus) == 2)


@pytest.mark.parametrize("gone", [UNINITIALIZED, NOT_LOADED])
def test_a_driver_that_restarts_is_gone_for_a_while(fake_gpus: FakeGpus, gone: int) -> None:
    fake_gpus.has(gpu_line())
    with looking(fake_gpus.environment) as look:
        look.until(bool)
        fake_gpus.has(f"dead {gone}\n", f"init {NOT_LOADED}\n")
        look.until(lambda gpus: not gpus)
        wait_for(lambda: "asked again every" in look.ask()["say"], "a reason")
        fake_gpus.has(gpu_line())
        look.until(bool)


def test_a_driver_that_is_loaded_later_is_found(fake_gpus: FakeGpus) -> None:
    fake_gpus.has(f"init {NOT_LOADED}\n", f"dead {UNINITIALIZED}\n")
    with looking(fake_gpus.environment) as look:
        assert re.match("no GPU: NVML says: Driver Not Loaded", look.ask()["say"])
        fake_gpus.has(gpu_line())
        look.until(bool)


def test_while_a_call_hangs_nothing_waits_and_what_is_old_is_absent(fake_gpus: FakeGpus) -> None:
    fake_gpus.has(gpu_line(), gpu_line(uuid="GPU-b"))
    with looking(fake_gpus.environment) as look:
        look.until(lambda gpus: len(gpus) == 2)
        fake_gpus.has(gpu_line(hang=600), gpu_line(uuid="GPU-b"))
        look.until(lambda gpus: not gpus)  # it answers, though NVML does not


def test_without_nvml_there_is_nothing_and_the_binding_is_not_even_loaded(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text("no library, and none behind it is looked for")
    with looking({"LD_LIBRARY_PATH": str(tmp_path)}) as look:
        answer = look.ask()
        assert answer["say"].startswith("no GPU: libnvidia-ml.so.1")
        assert (answer["gpus"], answer["nvml"]) == ([], False)


def test_a_driver_that_is_installed_later_is_found(
    fake_gpus: FakeGpus, nvml_library: Path, tmp_path: Path
) -> None:
    fake_gpus.has(gpu_line())
    folder = tmp_path / "driver"
    folder.mkdir()
    library = folder / "libnvidia-ml.so.1"
    library.write_text("no library, and none behind it is looked for")
    with looking({**fake_gpus.environment, "LD_LIBRARY_PATH": str(folder)}) as look:
        wait_for(lambda: "looked for again every" in look.ask()["say"], "a reason")
        whole = folder / "whole"
        shutil.copy(nvml_library / library.name, whole)
        whole.replace(library)
        look.until(bool)


# --- which of them get series ---


def shown(*gpus: Any, **rank: Any) -> list[str]:
    snapshot = make_snapshot(make_rank(**rank), gpus=gpus)
    return [admitted.gpu.uuid for admitted in admit(snapshot, Detail.FULL, 10_000).gpus]


def test_a_gpu_that_no_rank_uses_has_no_series() -> None:
    other = make_gpu(index="1", uuid="GPU-other", pids=(1,))
    assert shown(make_gpu(), other) == [GPU_UUID]
    assert shown(make_gpu(), other, gpus=()) == []


def test_a_gpu_of_which_nobody_says_who_uses_it_has_series_while_a_job_runs() -> None:
    hidden = make_gpu(pids=None)
    assert shown(hidden, gpus=()) == [GPU_UUID]
    assert shown(hidden, gpus=(), up=False) == []


# --- the agent ---


def gpu_series(agent: Agent) -> dict[str, dict[str, str]]:
    """The labels of each series of GPUs, by name."""
    return {
        sample.name: sample.labels
        for family in text_string_to_metric_families(agent.get("/metrics")[1])
        for sample in family.samples
        if "uuid" in sample.labels
    }


def test_the_agent_shows_the_gpu_that_a_rank_computes_on(
    fake_gpus: FakeGpus,
    run_job: JobStarter,
    segment_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    job = run_job(JOB)
    fake_gpus.has(gpu_line(processes="1"), gpu_line(uuid="GPU-b", processes=f"1,{job.pid}"))
    for name, value in fake_gpus.environment.items():
        monkeypatch.setenv(name, value)
    with running("--dir", str(segment_dir), script=tmp_path / "agent.py") as agent:
        assert "2 GPUs (Fake H200)" in agent.greeting
        series = job.wait_for(lambda: gpu_series(agent), "GPU in the metrics")
        snapshot = job.wait_for(lambda: _with_gpus(agent), "GPU in the snapshot")
    gpu = {"gpu": "1", "uuid": "GPU-b"}
    assert series == {
        "dlmon_rank_gpu_info": {"run": "computing", "rank": "0", **gpu},
        "dlmon_gpu_utilization_ratio": gpu,
        "dlmon_gpu_memory_used_bytes": gpu,
        "dlmon_gpu_memory_total_bytes": gpu,
    }
    assert [gpu["uuid"] for gpu in snapshot["gpus"]] == ["GPU-a", "GPU-b"]
    assert snapshot["ranks"][0]["gpus"] == ["GPU-b"]


def _with_gpus(agent: Agent) -> dict[str, Any]:
    """The snapshot if it has GPUs; when NVML was late, it has none for a moment."""
    snapshot: dict[str, Any] = json.loads(agent.get("/api/v1/snapshot")[1])
    return snapshot if snapshot["gpus"] else {}


def test_the_agent_goes_on_at_its_clock_while_nvml_hangs(
    fake_gpus: FakeGpus, segment_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus.has(gpu_line(hang=600))
    for name, value in fake_gpus.environment.items():
        monkeypatch.setenv(name, value)
    with running("--dir", str(segment_dir), "--interval", "100ms") as agent:
        assert "NVML has not answered yet" in agent.greeting
        wait_for(agent.ready, "ready")
        first = json.loads(agent.get("/api/v1/snapshot")[1])["time"]
        wait_for(
            lambda: json.loads(agent.get("/api/v1/snapshot")[1])["time"] > first + 0.5,
            "further snapshots",
        )
        agent.process.terminate()
        assert agent.process.wait(timeout=30) == 0


# --- a real one ---

REAL_JOB = """
    import dlmon

    dlmon.instrument(run="real", rank=0)

    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    if __name__ == "__main__":
        data = TensorDataset(torch.randn(4096, 3, 64, 64), torch.randint(10, (4096,)))
        model = nn.Sequential(
            nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(64, 10),
        ).cuda()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        while True:
            for images, labels in DataLoader(data, batch_size=256, num_workers=2):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(images.cuda()), labels.cuda()).backward()
                optimizer.step()
            print("epoch", flush=True)
"""


def smi(query: str) -> list[list[str]]:
    answer = subprocess.run(
        ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    return [[word.strip() for word in line.split(",")] for line in answer.splitlines()]


def require_gpu() -> None:
    """Skip where no real GPU can be trained on: nobody can install one."""
    if shutil.which("nvidia-smi") is None:
        pytest.skip("no GPU: nvidia-smi is not installed")
    ask = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([sys.executable, "-c", ask], check=False, timeout=100).returncode:
        pytest.skip("no GPU that this torch can use")


@pytest.mark.slow
def test_a_real_gpu_is_what_nvidia_smi_says_of_it(run_job: JobStarter, segment_dir: Path) -> None:
    require_gpu()
    job = run_job(REAL_JOB)
    job.wait_for_output("epoch")
    with running("--dir", str(segment_dir)) as agent:
        job.wait_for(lambda: "dlmon_gpu_memory_used_bytes" in gpu_series(agent), "a GPU")
        close = job.wait_for(lambda: _alike(agent), "agreement with nvidia-smi")
        assert close
        users = {pid for pid, _ in smi("compute-apps=pid,gpu_uuid")}
        if str(job.pid) in users:  # else a container hides who computes
            series = gpu_series(agent)["dlmon_rank_gpu_info"]
            assert [str(job.pid), series["uuid"]] in smi("compute-apps=pid,gpu_uuid")


def _alike(agent: Agent) -> bool:
    """Tell whether agent and nvidia-smi agree, one moment apart."""
    gpus = {gpu["uuid"]: gpu for gpu in json.loads(agent.get("/api/v1/snapshot")[1])["gpus"]}
    time.sleep(0.5)
    for uuid, used, total, busy in smi("gpu=uuid,memory.used,memory.total,utilization.gpu"):
        gpu = gpus[uuid]
        if abs(gpu["memory_used_bytes"] / (1 << 20) - float(used)) > 64:
            return False
        if gpu["memory_total_bytes"] >> 20 != int(total):
            return False
        if abs(gpu["utilization"] - float(busy) / 100) > 0.3:
            return False
    return True
