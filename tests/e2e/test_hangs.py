"""Real hangs of many kinds at once: each has its name and its line, and ends when it goes on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.e2e.hanging import HANGING, Scene, happening, possible, source
from tests.jobs import wait_for

pytestmark = pytest.mark.timeout(300)  # a busy machine has many of them to start at once


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("hangs")
    names = possible()
    job = source(folder, "healthy", "ranks", *names)
    with happening(folder, HANGING, names, job, "healthy", "ranks") as scene:
        yield scene


def test_each_is_noticed_soon_after_its_threshold(scene: Scene) -> None:
    scene.check_noticed()


def test_each_has_one_cause(scene: Scene) -> None:
    scene.check_one_cause()


def test_stacks_have_the_guilty_line(scene: Scene) -> None:
    scene.check_stacks()


@pytest.mark.parametrize("run", ["gil_held", "gil_after", "gil_between"])
def test_who_holds_the_interpreter_is_said(scene: Scene, run: str) -> None:
    stacks = scene.hangs[run]["processes"][0]["stacks"]
    assert any(thread["owns_gil"] for stack in stacks for thread in stack["threads"])


def test_what_the_kernel_and_the_sampler_know_is_kept(scene: Scene) -> None:
    hang = scene.hangs["endless_read"]
    assert (hang["fetch_index"], hang["fetch_samples"]) == (60, 1)
    assert [seen["role"] for seen in hang["processes"]] == ["worker 0", "rank"]
    assert hang["processes"][0]["doing"]["state"] == "S"
    assert hang["processes"][0]["doing"]["syscall"] == "read"


def test_nobody_is_stopped_traced_or_started_by_being_looked_at(scene: Scene) -> None:
    scene.check_untouched()


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
    found = {(one["name"], one["rank"], one["worker"]) for one in scene.about("ranks")}
    assert found == {("worker_stuck_in_fetch", "0", "0"), ("ranks_wait_for_rank", "0", "")}


def test_that_ranks_wait_for_one_is_noticed_soon_after_its_threshold(scene: Scene) -> None:
    scene.check_waiting_noticed()


def test_each_is_over_soon_after_it_goes_on(scene: Scene) -> None:
    scene.check_over()


def test_nothing_is_found_about_who_is_healthy(scene: Scene) -> None:
    wait_for(lambda: scene.rank("healthy")["loaders"][0]["epochs"] >= 2, "two epochs")
    assert scene.kept("healthy") == []
    assert len(scene.rank("healthy")["loaders"]) == 2
