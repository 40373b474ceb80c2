"""The whole demo as a user runs it: seen in /metrics, going wrong for real, leaving nothing."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.demo.running import FEW, Demo
from tests.jobs import wait_for

Start = Callable[..., Demo]


def test_both_loaders_are_seen_and_ctrl_c_leaves_nothing(start_demo: Start) -> None:
    demo = start_demo(*FEW)
    for loader in ("train", "val"):
        before = demo.wait_for_metric("dlmon_loader_batches_total", loader=loader)
        demo.wait_for_metric("dlmon_loader_batches_total", above=before, loader=loader)
    assert demo.end(signal.SIGINT) == 130
    assert demo.nothing_left()
    assert "\r" not in demo.output()
    assert "Traceback" not in demo.output()


def test_ctrl_c_while_the_training_starts_is_quiet(start_demo: Start) -> None:
    demo = start_demo(*FEW)
    demo.wait_for_output("Ctrl-C ends everything and removes all files")
    assert demo.end(signal.SIGINT) == 130
    assert demo.nothing_left()
    assert demo.output().endswith(
        "ending the training and the agent\nended; nothing is left behind\n"
    )


@pytest.mark.slow
def test_after_the_last_epoch_it_ends_by_itself(start_demo: Start) -> None:
    demo = start_demo(*FEW, "--epochs", "1", "--num-workers", "1")
    assert demo.process.wait(100) == 0, demo.output()
    assert demo.nothing_left()
    assert "epoch   1   loss" in demo.output()
    assert "epoch   2" not in demo.output()


def test_a_killed_worker_is_counted_and_training_goes_on(start_demo: Start) -> None:
    demo = start_demo(*FEW, "--fault", "kill")
    exits = "dlmon_loader_worker_exits_total"
    assert demo.wait_for_metric(exits, loader="train", reason="sigkill") == 1
    demo.wait_for_output(r"epoch   2   \w+: ")
    demo.wait_for_output(r"epoch   3   loss")
    assert demo.metric(exits, loader="train", reason="sigkill") == [1]
    assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert demo.nothing_left()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_hung_and_stopped_workers_end_with_the_demo(
    start_demo: Start, number: signal.Signals
) -> None:
    demo = start_demo(*FEW, "--fault", "hang")
    answer = _answer_the_hung_worker(demo)
    try:
        assert "epoch   2" not in demo.output()
        for pid in demo.processes("dlmon.demo.train"):
            os.kill(pid, signal.SIGSTOP)
        demo.end(number)
        wait_for(demo.nothing_left, "end of all processes and files")
    finally:
        os.close(answer)


def _answer_the_hung_worker(demo: Demo) -> int:
    """Open the other end of what the worker reads from: possible only once somebody reads."""

    def opened() -> int | None:
        for fifo in demo.temporary.glob("dlmon-demo-*/photographs/storage-that-never-answers"):
            with suppress(OSError):  # ENXIO: nobody reads yet
                return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        return None

    descriptor = wait_for(opened, "a worker that reads for ever")
    assert descriptor is not None
    return descriptor


def test_a_training_that_dies_by_itself_is_reported_and_the_page_stays(start_demo: Start) -> None:
    demo = start_demo(*FEW)
    demo.wait_for_metric("dlmon_loader_batches_total", loader="val")
    (rank,) = _ranks(demo)
    os.kill(rank, signal.SIGKILL)
    demo.wait_for_output("the training ended by itself: killed by SIGKILL; the page stays up")
    wait_for(lambda: demo.metric("dlmon_rank_up") == [0], "the dead rank in /metrics")
    assert demo.end(signal.SIGINT) == 130
    assert demo.nothing_left()


def _ranks(demo: Demo) -> list[int]:
    training = demo.processes("dlmon.demo.train")
    return [pid for pid in training if _parent(pid) == demo.process.pid]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_failed_training_with_an_end_in_sight_gives_its_status(start_demo: Start) -> None:
    demo = start_demo(*FEW, "--epochs", "1000")
    demo.wait_for_metric("dlmon_loader_batches_total", loader="train")
    (rank,) = _ranks(demo)
    os.kill(rank, signal.SIGKILL)
    assert demo.process.wait(60) == 128 + signal.SIGKILL
    assert "the training failed: killed by SIGKILL" in demo.output()
    assert demo.nothing_left()


@pytest.mark.slow
def test_a_leak_is_seen_to_grow(start_demo: Start) -> None:
    demo = start_demo(*FEW, "--fault", "leak")
    demo.wait_for_output("epoch   2")
    for worker in "01":
        memory = partial(
            demo.wait_for_metric,
            "dlmon_worker_resident_memory_bytes",
            loader="train",
            worker=worker,
        )
        memory(above=memory() + 5_000_000)


@pytest.mark.slow
def test_a_slow_worker_fetches_longer_than_the_other(start_demo: Start) -> None:
    demo = start_demo(*FEW, "--fault", "slow-worker")
    demo.wait_for_output("epoch   2")

    def seconds() -> list[float]:
        name = "dlmon_worker_fetch_seconds_total"
        return [demo.wait_for_metric(name, loader="train", worker=worker) for worker in "01"]

    before = seconds()

    def far_apart() -> bool:
        slow, other = (now - then for now, then in zip(seconds(), before, strict=True))
        return 0 < 4 * other < slow

    wait_for(far_apart, "a worker that fetches for more than four times as long as the other")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_starved_loop_waits_more_than_it_works(start_demo: Start) -> None:
    # It waits for nearly every batch of one worker, and no other competes with its step.
    demo = start_demo(*FEW, "--num-workers", "1", "--fault", "starve")

    def waits() -> bool:
        wait, step = (
            demo.wait_for_metric("dlmon_loader_time_seconds_total", loader="train", phase=phase)
            for phase in ("wait", "step")
        )
        return wait > step

    wait_for(waits, "more wait than step", deadline=200)
