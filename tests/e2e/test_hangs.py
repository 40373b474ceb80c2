"""Real hangs of many kinds at once: each has its name and its line, and ends when it goes on."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents import running
from tests.e2e.hanging import HANGING, NAMES, Scene, line_of, possible, source
from tests.jobs import JobStarter, wait_for

FLOOR, CEILING = 1.0, 4.0
FOR_EVER = {"lock_across_fork", "unpicklable", "pin_thread"}
NOTICED_WITHIN_SECONDS = 2.0 + 3.0
"""After the threshold; three for a machine on which all of these start at once."""
ENDED_WITHIN_SECONDS = 2.0 + 3.0


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hangs")
    segments = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    names = possible()
    config = folder / "agent.yml"
    config.write_text(
        "interval_seconds: 0.5\nweb: {listen_address: 127.0.0.1:0}\n"
        f"hangs: {{floor_seconds: {FLOOR}, ceiling_seconds: {CEILING}}}\n"
        "stacks: {enabled: true, per_hour: 1000}\n"
    )
    starter = JobStarter(folder, segments)
    with running("--config", str(config), "--dir", str(segments)) as agent:
        try:
            starter(source(folder, "healthy", "ranks", *names))
            scene = Scene(agent, folder, names)
            scene.happen()
            yield scene
        finally:
            starter.close()
            shutil.rmtree(segments, ignore_errors=True)


def test_each_is_noticed_soon_after_its_threshold(scene: Scene) -> None:
    for run in scene.names:
        finding = scene.hangs[run]["finding"]
        lasted = scene.hangs[run]["noticed"] - finding["since"]
        threshold = float(finding["evidence"].get("threshold_seconds", CEILING))
        assert threshold <= CEILING
        assert lasted < threshold + NOTICED_WITHIN_SECONDS, run


def test_each_has_one_cause(scene: Scene) -> None:
    for run in scene.names:
        names = {hang["finding"]["name"] for hang in scene.kept(run)}
        # That the loop is in its sampler and waits for no batch only its stack shows.
        assert names - {NAMES[run]} <= ({"batch_not_handed_over"} if run == "sampler" else set()), (
            run
        )


def test_stacks_have_the_guilty_line(scene: Scene) -> None:
    for run in scene.names:
        if run in ("stopped", "unpicklable", "pin_thread"):
            continue  # no line of theirs is to blame
        first = scene.hangs[run]["processes"][0]
        frames = [
            (frame["file"], frame["line"])
            for stack in first["stacks"]
            for thread in stack["threads"]
            for frame in thread["frames"]
        ]
        assert (str(HANGING), line_of(run)) in frames, run


def test_who_holds_the_interpreter_is_said(scene: Scene) -> None:
    stacks = scene.hangs["gil_held"]["processes"][0]["stacks"]
    assert any(thread["owns_gil"] for stack in stacks for thread in stack["threads"])


def test_what_the_kernel_and_the_sampler_know_is_kept(scene: Scene) -> None:
    hang = scene.hangs["endless_read"]
    assert (hang["fetch_index"], hang["fetch_samples"]) == (60, 1)
    assert [seen["role"] for seen in hang["processes"]] == ["worker 0", "rank"]
    assert hang["processes"][0]["doing"]["state"] == "S"
    assert hang["processes"][0]["doing"]["syscall"] == "read"


def test_nobody_is_stopped_traced_or_started_by_being_looked_at(scene: Scene) -> None:
    states = {"stopped": "T", "kernel": "D"}
    for run in scene.names:
        for seen in scene.hangs[run]["processes"]:
            status = Path(f"/proc/{seen['pid']}/status").read_text()
            assert "TracerPid:\t0\n" in status
            if seen["role"] != "rank":
                assert f"State:\t{states.get(run, 'S')} " in status, run


def test_the_worker_is_hung_in_the_snapshot_and_the_metrics(scene: Scene) -> None:
    for run in scene.names:
        slot = scene.found[run]["worker"]
        workers = scene.ranks[run]["loaders"][0]["workers"]
        assert [str(w["slot"]) for w in workers if w["hung"]] == ([slot] if slot else []), run
        for worker in workers:
            if worker["hung"]:
                assert worker["state"] == ("stopped" if run == "stopped" else "hung")
    metrics = scene.agent.get("/metrics")[1]
    assert re.search(r'dlmon_finding\{[^}]*finding="worker_stopped"[^}]*run="stopped"', metrics)
    assert re.search(r'dlmon_worker_hung\{[^}]*run="stopped"[^}]*worker="1"\} 1', metrics)


def test_ranks_that_wait_for_one_are_not_blamed(scene: Scene) -> None:
    def both() -> bool:
        found = {(one["name"], one["rank"], one["worker"]) for one in scene.about("ranks")}
        return found == {("worker_stuck_in_fetch", "0", "0"), ("ranks_wait_for_rank", "0", "")}

    wait_for(both, "the worker, and who waits for its rank")


def test_each_is_over_soon_after_it_goes_on(scene: Scene) -> None:
    going = [run for run in scene.names if run not in FOR_EVER]
    for run in going:
        if run == "stopped":
            os.kill(scene.workers(run)[1]["pid"], signal.SIGCONT)
        else:
            scene.go_on(run)
    for run in going:
        over = functools.partial(lambda run: not scene.about(run), run)
        wait_for(over, f"end of {run}", deadline=ENDED_WITHIN_SECONDS)
        assert all(hang["ended"] is not None for hang in scene.kept(run))
        assert not any(worker["hung"] for worker in scene.workers(run))
    for run in FOR_EVER:
        assert scene.only(run, NAMES[run])


def test_nothing_is_found_about_who_is_healthy(scene: Scene) -> None:
    wait_for(lambda: scene.rank("healthy")["loaders"][0]["epochs"] >= 2, "two epochs")
    assert scene.kept("healthy") == []
    assert len(scene.rank("healthy")["loaders"]) == 2
