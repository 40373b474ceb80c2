"""A real job, a real agent, and what is left when one of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agents import Agent, running
from tests.jobs import Job, JobStarter, wait_for

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

NOTICED_WITHIN_SECONDS = 2.0
"""The agent looks once a second. A busy machine makes it late: it is its own looks that count."""

JOB = """
    import time

    import dlmon

    dlmon.instrument(run=RUN, rank=0)

    import torch
    from torch.utils.data import DataLoader, Dataset


    class Numbers(Dataset):
        def __len__(self):
            return 100_000

        def __getitem__(self, index):
            time.sleep(0.002)
            return torch.tensor(index)


    def main():
        train = dlmon.name(DataLoader(Numbers(), num_workers=2, persistent_workers=True), "train")
        val = dlmon.name(DataLoader(list(range(10))), "val")
        for number, batch in enumerate(train):
            if number % 20 == 0:
                for _ in val:
                    pass


    if __name__ == "__main__":
        main()
"""


def scrape(agent: Agent) -> Samples:
    """Return all samples of a page, by name and labels; a duplicate series fails."""
    samples: Samples = {}
    for family in text_string_to_metric_families(agent.get("/metrics")[1]):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    """Return the one sample of that name whose labels include these, None if there is none."""
    found = [
        sample
        for (sample_name, have), sample in samples.items()
        if sample_name == name and labels.items() <= dict(have).items()
    ]
    assert len(found) <= 1, (name, labels, found)
    return found[0] if found else None


def start(run_job: JobStarter, agent: Agent, run: str) -> Job:
    """Start a job and wait until the agent shows its batches moving."""
    job = run_job(JOB.replace("RUN", repr(run)))

    def moved() -> bool:
        return (
            value(scrape(agent), "dlmon_loader_batches_total", run=run, loader="train") or 0
        ) > 50

    job.wait_for(moved, "batches in the metrics")
    return job


def soon(agent: Agent, event: float, holds: Callable[[Samples], bool]) -> None:
    """Wait until the metrics say what they must say soon after an event, a Unix time.

    No look that began later than that may have missed it.
    """

    def said() -> bool:
        snapshot = _snapshot(agent)
        if holds(scrape(agent)):  # made of that look, or of a later one
            return True
        assert snapshot["time"] - snapshot["duration_seconds"] < event + NOTICED_WITHIN_SECONDS
        return False

    wait_for(said, "metrics")


def test_both_loaders_are_shown_and_promtool_has_nothing_to_say(
    run_job: JobStarter, segment_dir: Path, promtool: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        start(run_job, agent, "shown")
        samples = scrape(agent)
        for loader in ("train", "val"):
            assert value(samples, "dlmon_loader_batches_total", loader=loader)
        assert value(samples, "dlmon_rank_up", run="shown") == 1
        for worker in "01":
            assert value(samples, "dlmon_worker_up", loader="train", worker=worker) == 1
        page = agent.get("/metrics")[1]
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=page, text=True, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.slow
def test_a_killed_rank_is_shown_dead_with_its_last_counters_and_its_orphans(
    run_job: JobStarter, segment_dir: Path, tmp_path: Path
) -> None:
    config = tmp_path / "agent.yml"
    config.write_text("web: {listen_address: 127.0.0.1:0}\nkeep: {dead_seconds: 30}\n")
    with running("--config", str(config), "--dir", str(segment_dir)) as agent:
        job = start(run_job, agent, "killed")
        workers = [
            int(row["pid"])
            for rank in _ranks(agent)
            for loader in rank["loaders"]
            for row in loader["workers"]
        ]
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)  # so that they outlive their rank
        before = scrape(agent)
        job.kill()
        soon(agent, time.time(), lambda s: value(s, "dlmon_rank_up", run="killed") == 0)
        after = scrape(agent)
        assert value(after, "dlmon_rank_orphan_workers", run="killed") == 2
        assert value(after, "dlmon_worker_up", loader="train", worker="0") == 1
        for name in ("dlmon_loader_batches_total", "dlmon_loader_samples_total"):
            assert (value(after, name, loader="train") or 0) >= (
                value(before, name, loader="train") or 0
            )
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        soon(agent, time.time(), lambda s: value(s, "dlmon_rank_orphan_workers", run="killed") == 0)
        assert value(scrape(agent), "dlmon_worker_up", loader="train", worker="0") == 0
        wait_for(
            lambda: not list(segment_dir.glob("*.seg")),
            "files removed after keep.dead_seconds",
            deadline=90,
        )
        soon(agent, time.time(), lambda s: value(s, "dlmon_rank_up", run="killed") is None)


def test_counters_do_not_go_down_when_the_agent_is_killed_and_starts_again(
    run_job: JobStarter, segment_dir: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        start(run_job, agent, "kept")
        before = scrape(agent)
        agent.process.kill()
    with running("--dir", str(segment_dir)) as agent:
        wait_for(agent.ready, "ready")
        after = scrape(agent)
    kept = {
        key: sample
        for key, sample in before.items()
        if key[0].endswith(("_total", "_bucket", "_count", "_sum"))
        and key[0].startswith(("dlmon_loader_", "dlmon_worker_batches", "dlmon_worker_fetch"))
    }
    assert len(kept) > 150
    assert [key for key, sample in kept.items() if after[key] < sample] == []


@pytest.mark.slow
def test_two_processes_that_claim_one_rank_never_make_a_duplicate_series(
    run_job: JobStarter, segment_dir: Path
) -> None:
    with running("--dir", str(segment_dir)) as agent:
        first = start(run_job, agent, "claimed")
        second = run_job(JOB.replace("RUN", repr("claimed")))
        wait_for(lambda: len(list(segment_dir.iterdir())) >= 4, "segments of both")
        superseded = wait_for(lambda: _snapshot(agent)["superseded"], "one superseded")
        assert superseded[0]["pid"] == first.pid  # both live: the newer one has the series
        scrape(agent)  # fails on a duplicate
        second.kill()
        wait_for(lambda: _ranks(agent)[0]["pid"] == first.pid, "the living one shown")
        assert value(scrape(agent), "dlmon_rank_up", run="claimed") == 1


def _snapshot(agent: Agent) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(agent.get("/api/v1/snapshot")[1])
    return found


def _ranks(agent: Agent) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = _snapshot(agent)["ranks"]
    return found
