"""What `dlmon ps` says of memory and GPUs, and of workers that are not observed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dlmon import cli
from dlmon.commands import ps
from dlmon.commands._table import UNKNOWN
from dlmon.observe import unobserved
from dlmon.observe.snapshot import Gpu, Loader, Worker
from tests.agent.samples import (
    NOW,
    make_gpu,
    make_loader,
    make_rank,
    make_snapshot,
    make_unobserved,
    make_worker,
)
from tests.commands.launching import LOADER, launch
from tests.gpus import FakeGpus, gpu_line
from tests.jobs import JobStarter


def shown(loader: Loader, *gpus: Gpu) -> dict[str, str]:
    """A line by column."""
    rank = make_rank(loaders=(loader,), gpus=tuple(gpu.uuid for gpu in gpus))
    (row,) = ps.rows(make_snapshot(rank, gpus=(*gpus, make_gpu(uuid="GPU-other"))))
    titles = [column.title for column in ps.COLUMNS]
    return dict(zip(titles, [cell.text for cell in ps.cells(row, NOW)], strict=True))


@pytest.mark.parametrize(
    ("workers", "text"),
    [
        ((make_worker(0), make_worker(1)), "180 MB"),
        ((make_worker(0), make_worker(1, unique_bytes=None)), UNKNOWN),
        ((make_worker(0), make_worker(1, up=False, unique_bytes=None)), "90 MB"),
        ((make_worker(0, up=None, unique_bytes=None),), UNKNOWN),
        ((), UNKNOWN),
    ],
)
def test_uss_is_that_of_all_living_workers_or_not_known(
    workers: tuple[Worker, ...], text: str
) -> None:
    assert shown(make_loader(workers=workers))["USS"] == text


@pytest.mark.parametrize(
    ("gpus", "text"),
    [
        ((make_gpu(utilization=0.0),), "0 %"),
        ((make_gpu(utilization=0.9), make_gpu(uuid="GPU-2", utilization=0.3)), "60 %"),
        ((make_gpu(utilization=None),), UNKNOWN),
        ((), UNKNOWN),
    ],
)
def test_gpu_is_how_busy_those_of_the_rank_are(gpus: tuple[Gpu, ...], text: str) -> None:
    assert shown(make_loader(), *gpus)["GPU"] == text


def test_the_gpu_of_a_rank_has_a_column_where_the_node_has_one(
    run_job: JobStarter, tmp_path: Path, segment_dir: Path, fake_gpus: FakeGpus
) -> None:
    (tmp_path / "train.py").write_text(LOADER)
    job = launch(run_job, "train.py")
    job.wait_for_output("READY")

    def listed(*words: str) -> str:
        command = [sys.executable, "-m", "dlmon", "ps", "--dir", str(segment_dir), *words]
        env = {**os.environ, **fake_gpus.environment}
        return subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        ).stdout

    assert "GPU" not in listed()
    fake_gpus.has(gpu_line(util=90), gpu_line(uuid="GPU-b", util=37, processes=str(job.pid)))
    heading, train, _ = listed().splitlines()
    assert heading.split()[-2:] == ["GPU", "LAST"]
    assert "  37 %  " in train
    [gpu] = json.loads(listed("--json"))[0]["gpus"]
    assert (gpu["uuid"], gpu["utilization"]) == ("GPU-b", 0.37)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            [{}],
            "2 DataLoader workers of 2 jobs not observed: finetune.py by bob (2); ",
        ),
        (
            [{"workers": make_unobserved().workers[:1], "script": ""}],
            "1 DataLoader worker of 1 job not observed: a script not known by bob (1); ",
        ),
        (
            [{"script": name, "user": "x"} for name in "abcd"],
            "8 DataLoader workers of 8 jobs not observed: a by x (2), b by x (2), c by x (2), …; ",
        ),
    ],
)
def test_workers_that_are_not_observed_are_told_in_a_line(
    changes: list[dict[str, object]], line: str
) -> None:
    groups = [make_unobserved(**change) for change in changes]
    assert ps.others(groups) == line + "`dlmon run` shows more"


def test_workers_without_the_shim_are_found_unless_a_directory_is_given(
    run_job: JobStarter,
    segment_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(unobserved, "SETTLED_SECONDS", 0.0)
    monkeypatch.setenv("DLMON_DIR", str(segment_dir))
    names = {seen: f"{seen}-{os.getpid()}.py" for seen in ("seen", "unseen")}
    for seen, name in names.items():
        first = "import dlmon\ndlmon.instrument()\n" if seen == "seen" else ""
        run_job(first + LOADER, name=name).wait_for_output("READY")

    def told(*words: str) -> str:
        assert cli.main(["ps", *words]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    monkeypatch.setattr(ps, "SCRIPTS_NAMED", 1000)  # other jobs of this machine are among them
    line = told()
    assert " not observed: " in line
    assert re.search(rf"\b{names['unseen']} by \S+ \(2\)", line)
    assert f" {names['seen']} by" not in line
    assert line.endswith("; `dlmon run` shows more")
    assert " not observed: " not in told("--dir", str(segment_dir))
