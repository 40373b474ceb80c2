"""What the agent keeps of hangs, for whom, and what that may cost."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlmon.agent.admission import Detail
from dlmon.agent.hangs import KEPT, SAMPLES, Evidence, Hang, Hangs
from dlmon.agent.routes import Request, Router
from dlmon.agent.state import Board
from dlmon.analysis import blame
from dlmon.observe import kernel, stacks
from dlmon.observe.snapshot import Finding, Process, Snapshot
from dlmon.observe.stacks import Frame, Stack, Thread
from tests.agent.samples import (
    make_finding,
    make_hang,
    make_loader,
    make_rank,
    make_snapshot,
    make_worker,
)
from tests.jobs import wait_for


class Found:
    """A watcher that finds what the test says."""

    def __init__(self) -> None:
        self.findings: tuple[Finding, ...] = ()

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        return snapshot, self.findings


class Setting:
    """Evidence of a rank and a worker that are this test's own processes."""

    def __init__(self, worker: int, **options: Any) -> None:
        self.found = Found()
        self.hangs = Hangs()
        self.now = 0.0
        self.evidence = Evidence(
            lambda _: self.found, self.hangs, clock=lambda: self.now, **options
        )
        self.loader = make_loader(workers=(make_worker(0), make_worker(1, pid=worker)))
        self.rank = make_rank(
            run="r1", pid=os.getpid(), process=Process(state="R"), loaders=(self.loader,)
        )

    def look(self, *findings: Finding) -> None:
        self.found.findings = findings
        self.evidence.look(make_snapshot(self.rank))

    def newest(self) -> Hang:
        return self.hangs.newest()[0]

    def looked_into(self, count: int = SAMPLES) -> bool:
        seen = self.newest().processes
        return len(seen) == 2 and all(len(one.stacks) == count for one in seen)


@pytest.fixture
def sleeper() -> Iterator[int]:
    """A process that is no Python, once it sleeps: at first it loads its libraries."""
    with subprocess.Popen(["sleep", "600"]) as process:
        wait_for(lambda: kernel.doing(process.pid).state == "S", "sleep")
        yield process.pid
        process.kill()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stacks that cost nothing; returns the pids that they were taken of."""
    taken: list[int] = []
    there = Stack((Thread("MainThread", 1, False, True, (Frame("read", "/a/data.py", 7),)),))

    def take(pid: int) -> Stack:
        taken.append(pid)
        return there

    monkeypatch.setattr(stacks, "take", take)
    monkeypatch.setattr("dlmon.agent.hangs.SECONDS_BETWEEN", 0.01)
    return taken


def test_a_worker_and_its_rank_are_looked_into_once(sleeper: int, quick: list[int]) -> None:
    setting = Setting(sleeper)
    for _ in range(5):
        setting.look(make_finding())
    wait_for(setting.looked_into, "stacks")
    setting.look(make_finding())
    assert len(setting.hangs.newest()) == 1
    assert quick == [sleeper, os.getpid()] * SAMPLES
    worker, rank = setting.newest().processes
    assert (worker.role, rank.role) == ("worker 1", "rank")
    assert worker.doing.state == "S"
    assert worker.doing.syscall in ("clock_nanosleep", None) or os.uname().machine != "x86_64"


def test_a_hang_that_is_over_has_an_end_and_may_come_again(sleeper: int, quick: list[int]) -> None:
    setting = Setting(sleeper)
    setting.look(make_finding())
    setting.look()
    assert setting.newest().ended == setting.newest().noticed
    setting.look(make_finding())
    newest, before = setting.hangs.newest()
    assert (newest.ended, before.ended) == (None, before.noticed)
    wait_for(lambda: len(quick) == 4 * SAMPLES, "stacks of both")


def test_a_rank_alone_is_looked_into_when_no_worker_is_named(
    sleeper: int, quick: list[int]
) -> None:
    setting = Setting(sleeper)
    setting.look(make_finding(name="rank_stuck_in_step", worker=""))
    wait_for(lambda: len(quick) == SAMPLES, "stacks")
    assert set(quick) == {os.getpid()}
    wait_for(lambda: len(setting.newest().processes) == 1, "what was seen")


def test_a_pid_that_may_be_somebody_elses_is_not_looked_into(
    sleeper: int, quick: list[int]
) -> None:
    """The rank is in another pid namespace, and all that is known is what it called itself."""
    setting = Setting(sleeper)
    setting.rank = dataclasses.replace(setting.rank, visible=False)
    setting.look(make_finding())
    wait_for(lambda: len(quick) == SAMPLES, "stacks")
    assert set(quick) == {sleeper}
    wait_for(lambda: len(setting.newest().processes) == 1, "what was seen")


def test_the_log_has_the_innermost_frames_once(
    sleeper: int, quick: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    setting = Setting(sleeper)
    with caplog.at_level(logging.WARNING):
        setting.look(make_finding())
        wait_for(lambda: caplog.messages, "a line")
        setting.look(make_finding())
    (line,) = caplog.messages
    assert line.startswith(f"worker_stuck_in_fetch: worker 1 (pid {sleeper}, state S")
    assert "at read (/a/data.py:7), holding the GIL; rank (pid" in line
    assert quick


def test_no_more_stacks_are_taken_in_an_hour_than_allowed(sleeper: int, quick: list[int]) -> None:
    setting = Setting(sleeper, per_hour=2)
    many = [make_finding(worker="1", loader=f"l{number}") for number in range(3)]
    setting.look(*many)
    wait_for(lambda: len(quick) == 2 * SAMPLES, "stacks of two")  # of the rank: no such loader
    wait_for(lambda: setting.newest().processes, "what the kernel says of the third")
    assert setting.newest().trouble == (
        "stacks of 2 hangs were taken within the hour (stacks.per_hour)"
    )
    assert setting.newest().processes[0].stacks == ()
    assert setting.newest().processes[0].doing.state is not None
    setting.now = 3600.0
    setting.look(make_finding())
    wait_for(setting.looked_into, "stacks, an hour later")


def test_stacks_can_be_switched_off(sleeper: int, quick: list[int]) -> None:
    setting = Setting(sleeper, enabled=False)
    setting.look(make_finding())
    wait_for(lambda: setting.looked_into(0), "what the kernel says")
    assert setting.newest().trouble == "stacks are switched off (stacks.enabled)"
    assert quick == []


def test_what_cannot_be_looked_into_keeps_what_the_kernel_says(
    sleeper: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlmon.agent.hangs.SECONDS_BETWEEN", 0.01)
    setting = Setting(sleeper)
    setting.look(make_finding())
    wait_for(setting.looked_into, "the attempts")
    worker, _ = setting.newest().processes
    assert worker.stacks[0].trouble.startswith("py-spy: ")
    assert worker.doing.state == "S"


def test_a_process_that_is_gone_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmon.agent.hangs.SECONDS_BETWEEN", 0.01)
    with subprocess.Popen(["true"]) as process:
        process.wait()
        setting = Setting(process.pid)
        setting.look(make_finding())
        wait_for(setting.looked_into, "the attempts")
    worker, _ = setting.newest().processes
    assert worker.stacks[0].trouble == f"process {process.pid} has ended"
    assert worker.doing.state is None


def test_an_error_while_looking_costs_no_other_hang(
    sleeper: int, monkeypatch: pytest.MonkeyPatch, quick: list[int]
) -> None:
    take, broken = stacks.take, threading.Event()

    def breaks_once(pid: int) -> Stack:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("no idea")
        return take(pid)

    monkeypatch.setattr(stacks, "take", breaks_once)
    setting = Setting(sleeper)
    setting.look(make_finding(), make_finding(name="worker_stopped"))
    wait_for(setting.looked_into, "stacks of the second")
    assert setting.hangs.newest()[1].trouble == "the agent failed; see its log"
    assert quick


def of_loaders(loaders: int, workers: int) -> list[Finding]:
    """Hangs of all workers of some loaders, loader by loader."""
    return [
        make_finding(loader=f"l{loader}", worker=str(worker))
        for loader in range(loaders)
        for worker in range(workers)
    ]


def with_stacks(hangs: Hangs) -> list[Hang]:
    return [one for one in hangs.newest() if any(seen.stacks for seen in one.processes)]


def test_of_more_open_hangs_than_are_kept_those_with_stacks_stay(
    sleeper: int, quick: list[int]
) -> None:
    setting = Setting(sleeper, per_hour=20)
    setting.look(*of_loaders(loaders=16, workers=8))
    wait_for(lambda: all(one.processes for one in setting.hangs.newest()), "a look at all")
    wait_for(lambda: len(quick) == 20 * SAMPLES, "stacks")
    wait_for(lambda: len(with_stacks(setting.hangs)) == 20, "all that were taken")
    assert len(setting.hangs.newest()) == KEPT


def test_stacks_are_taken_of_each_loader_before_a_second_worker_of_any(
    sleeper: int, quick: list[int]
) -> None:
    setting = Setting(sleeper, per_hour=5)
    many = of_loaders(loaders=4, workers=8)
    setting.look(many[0])
    setting.look(*many)
    wait_for(lambda: len(quick) == 5 * SAMPLES, "stacks")
    wait_for(lambda: len(with_stacks(setting.hangs)) == 5, "all that were taken")
    seen = {(one.finding.loader, one.finding.worker) for one in with_stacks(setting.hangs)}
    assert seen == {("l0", "0"), ("l1", "0"), ("l2", "0"), ("l3", "0"), ("l0", "1")}


@dataclasses.dataclass
class Slow:
    """Stacks that the test lets be taken."""

    asked: threading.Event = dataclasses.field(default_factory=threading.Event)
    go: threading.Event = dataclasses.field(default_factory=threading.Event)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, quick: list[int]) -> Slow:
    slow, take = Slow(), stacks.take

    def takes(pid: int) -> Stack:
        slow.asked.set()
        slow.go.wait()
        return take(pid)

    monkeypatch.setattr(stacks, "take", takes)
    return slow


def test_a_hang_for_which_there_is_no_room_costs_no_later_one_its_stacks(
    sleeper: int, slow: Slow, quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlmon.agent.hangs.WAITING", 1)
    setting = Setting(sleeper, per_hour=3)
    first, waits, too_many, later = of_loaders(loaders=4, workers=1)
    setting.look(first)
    slow.asked.wait()
    setting.look(first, waits, too_many)
    assert setting.newest().trouble == "too many hangs at once"
    slow.go.set()
    wait_for(lambda: len(quick) == 2 * SAMPLES, "stacks of two")
    setting.look(first, waits, too_many, later)
    wait_for(lambda: len(quick) == 3 * SAMPLES, "stacks of the last")
    assert setting.newest().trouble == ""


def test_hangs_without_stacks_leave_room_for_those_with(
    sleeper: int, slow: Slow, quick: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlmon.agent.hangs.WAITING", 3)
    monkeypatch.setattr("dlmon.agent.hangs.FOR_STACKS", 1)
    setting = Setting(sleeper, per_hour=1)
    first, *rest, later = of_loaders(loaders=6, workers=1)
    setting.look(first)
    slow.asked.wait()
    setting.look(first, *rest)
    setting.now = 3600.0
    setting.look(first, *rest, later)
    slow.go.set()
    wait_for(lambda: len(quick) == 2 * SAMPLES, "stacks of two")
    wait_for(lambda: len(with_stacks(setting.hangs)) == 2, "both that were taken")
    assert {one.finding.loader for one in with_stacks(setting.hangs)} == {"l0", "l5"}
    hidden = [one for one in setting.hangs.newest() if not one.processes]
    assert [one.finding.loader for one in hidden] == ["l4", "l3"]
    assert {one.trouble for one in hidden} == {
        "stacks of 1 hangs were taken within the hour (stacks.per_hour)"
    }


def test_what_tells_the_least_is_not_kept() -> None:
    """Those that have ended go first, then those without stacks, the oldest before others."""
    hangs = Hangs()
    there = [hangs.add(make_hang()) for _ in range(KEPT - 4)]
    over = [hangs.add(make_hang(ended=1.0, trouble=why)) for why in ("", "none")]
    bare = [hangs.add(make_hang(trouble="none")) for _ in range(2)]
    for goes in (*over, *bare, *there[:2]):
        assert len(hangs.some([goes])) == 1
        hangs.add(make_hang())
        assert hangs.some([goes]) == []
        assert len(hangs.newest()) == KEPT


def test_only_the_newest_of_one_sort_are_kept() -> None:
    hangs = Hangs()
    numbers = [hangs.add(make_hang(noticed=float(number))) for number in range(KEPT + 5)]
    kept = hangs.newest()
    assert [hang.noticed for hang in kept] == [float(KEPT + 4 - n) for n in range(KEPT)]
    assert hangs.change(numbers[0], ended=1.0) is None


# --- what is served ---


def served(path: str, *, trusted: bool, findings: Sequence[Finding] = ()) -> Any:
    board = Board(Detail.FULL, 1000)
    board.publish(make_snapshot(findings=tuple(findings)))
    hangs = Hangs()
    hangs.add(make_hang())
    response = Router(board, 1.0, hangs).respond(Request(path, trusted=trusted))
    assert response.status == 200
    return json.loads(response.body)


def test_stacks_are_for_who_asks_from_this_machine() -> None:
    (hang,) = served("/api/v1/hangs", trusted=True)["hangs"]
    worker = hang["processes"][0]
    assert worker["stacks"][1]["threads"][0]["frames"][0] == {
        "function": "Photos.__getitem__",
        "file": "/home/alice/data.py",
        "line": 48,
    }
    assert worker["doing"] == {"state": "D", "wchan": "nfs_wait_bit", "syscall": "read"}
    assert (hang["fetch_index"], hang["finding"]["severity"]) == (18112, "critical")
    untrusted = json.dumps(served("/api/v1/hangs", trusted=False))
    assert "data.py" not in untrusted
    assert "nfs_wait_bit" in untrusted


def test_findings_are_served_with_their_severity() -> None:
    found = served("/api/v1/findings", trusted=False, findings=[make_finding()])
    assert found["findings"][0]["name"] == "worker_stuck_in_fetch"
    assert found["findings"][0]["severity"] == "critical"
    assert found["time"] > 0


def test_findings_need_a_snapshot() -> None:
    router = Router(Board(Detail.FULL, 1000), 1.0)
    assert router.respond(Request("/api/v1/findings")).status == 503
    assert json.loads(router.respond(Request("/api/v1/hangs")).body) == {"hangs": []}


# --- what stacks show, and the kernel ---


def stack(*functions: str, gil: bool = False, name: str = "MainThread") -> Stack:
    frames = tuple(
        Frame(f, "/x/torch/utils/data/dataloader.py", n) for n, f in enumerate(functions)
    )
    return Stack((Thread(name, 1, False, gil, frames),))


def test_the_most_complete_of_several_stacks_counts() -> None:
    taken = [Stack(trouble="too quick"), stack("a"), stack("a", "b"), stack("b")]
    path = "/x/torch/utils/data/dataloader.py"
    assert blame.summary(taken) == f"at a ({path}:0) < b ({path}:1)"
    assert blame.summary([Stack(trouble="too quick")]) == "too quick"
    assert blame.summary([]) == ""


def test_who_holds_the_interpreter_comes_first() -> None:
    main, other = stack("main").threads[0], stack("other", gil=True).threads[0]
    assert "other" in blame.summary([Stack((main, other))])


def test_a_loop_in_its_sampler_is_told_from_one_that_waits_for_a_batch() -> None:
    loop = "_MultiProcessingDataLoaderIter._try_put_index"
    assert blame.asks_sampler([stack("Slow.__iter__", "_BaseDataLoaderIter._next_index", loop)])
    assert not blame.asks_sampler([stack("wait", "_MultiProcessingDataLoaderIter._try_get_data")])
    assert not blame.asks_sampler([])


def test_the_kernel_says_what_this_process_does() -> None:
    doing = kernel.doing(os.getpid())
    assert doing.state == "R"
    assert doing.syscall is not None
    assert kernel.pin_threads(os.getpid()) == 0
    assert kernel.pin_threads(2**31 - 1) is None
    assert kernel.doing(2**31 - 1) == kernel.Doing()


def test_threads_that_pin_are_counted_by_their_name() -> None:
    over, named = threading.Event(), threading.Event()

    def pins() -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("pt_data_pin")
        named.set()
        over.wait()

    thread = threading.Thread(target=pins)
    thread.start()
    named.wait()
    assert kernel.pin_threads(os.getpid()) == 1
    over.set()
    thread.join()
    wait_for(lambda: kernel.pin_threads(os.getpid()) == 0, "its end")
