"""The agent beside jobs: it stays while it is needed, and nobody falls between two."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dlmon.agent import beside, jobs
from dlmon.agent.beside import _Stay
from dlmon.agent.config import Config, Web
from dlmon.agent.daemon import Daemon
from dlmon.agent.lock import AgentLock, find
from dlmon.observe.snapshot import Snapshot
from tests.agent.samples import make_snapshot
from tests.jobs import JobStarter

ADDRESS = "127.0.0.1:1234"


class Between(AgentLock):
    """A lock that has something happen at the moment in which it is let go."""

    happens: Callable[[], None]

    def release(self) -> None:
        super().release()
        self.happens()


@pytest.fixture
def no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "LINGER_SECONDS", 0.0)
    # What comes back opens its log as standard error: here that stays pytest's.
    monkeypatch.setattr(beside, "open_log", lambda _: os.dup(sys.stderr.fileno()))


def make_stay(directory: Path, happens: Callable[[], None] = lambda: None) -> _Stay:
    lock = Between.take(str(directory))
    assert isinstance(lock, Between)
    lock.happens = happens
    return _Stay(lock, ADDRESS)


def with_ranks(*, up: bool) -> Snapshot:
    snapshot = make_snapshot()
    ranks = tuple(replace(rank, up=up, died=None if up else 1.0) for rank in snapshot.ranks)
    return replace(snapshot, ranks=ranks, superseded=())


def test_it_stays_while_a_job_lives_that_was_entered(no_lingering: None, segment_dir: Path) -> None:
    stay = make_stay(segment_dir)
    jobs.enter(str(segment_dir))
    assert not stay.is_over(None)
    assert not stay.is_over(with_ranks(up=False))
    jobs.withdraw(str(segment_dir))
    assert stay.is_over(None)
    assert os.listdir(segment_dir) == []


def test_it_stays_while_a_rank_lives_also_a_superseded_one(
    no_lingering: None, segment_dir: Path
) -> None:
    stay = make_stay(segment_dir)
    seen = with_ranks(up=True)
    assert not stay.is_over(seen)
    assert not stay.is_over(replace(seen, ranks=(), superseded=seen.ranks))
    assert stay.is_over(with_ranks(up=False))


def test_it_lingers_after_the_last(segment_dir: Path) -> None:
    stay = make_stay(segment_dir)
    assert not stay.is_over(None)
    assert stay.lock.fd >= 0
    stay.lock.release()


def test_for_a_job_that_is_entered_as_it_lets_its_lock_go_it_comes_back(
    no_lingering: None, run_job: JobStarter, segment_dir: Path
) -> None:
    stay = make_stay(segment_dir, lambda: jobs.enter(str(segment_dir)))
    assert not stay.is_over(None)
    asks = run_job(
        "import os\nfrom dlmon.agent.lock import find\nprint(find(os.environ['DLMON_DIR']))\n"
    )
    assert f"pid={os.getpid()}, address='{ADDRESS}'" in asks.finish()
    assert not stay.is_over(None)
    jobs.withdraw(str(segment_dir))
    assert stay.is_over(None)
    assert os.listdir(segment_dir) == []


def test_it_does_not_come_back_where_another_agent_has_come(
    no_lingering: None, run_job: JobStarter, segment_dir: Path
) -> None:
    def another_comes() -> None:
        jobs.enter(str(segment_dir))
        run_job(
            "import os\n"
            "from dlmon.agent.lock import AgentLock\n"
            "lock = AgentLock.take(os.environ['DLMON_DIR'])\n"
            "print('TAKEN', lock is not None, flush=True)\n"
            "input()\n"
        ).wait_for_output("TAKEN True")

    assert make_stay(segment_dir, another_comes).is_over(None)
    assert find(str(segment_dir)) is not None
    jobs.withdraw(str(segment_dir))


def test_a_daemon_ends_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        looks = 0
        closed = False

        def observe(self) -> Snapshot:
            self.looks += 1
            if self.looks == 2:
                raise ValueError("cannot")
            return make_snapshot()

        def close(self) -> None:
            self.closed = True

    caplog.set_level(logging.INFO, "dlmon")
    observer, seen = Failing(), list[bool]()

    def is_over(snapshot: Snapshot | None) -> bool:
        seen.append(snapshot is not None)
        return len(seen) == 3

    config = Config(interval_seconds=0.01, web=Web(listen_address="127.0.0.1:0"))
    Daemon(config, observer).run(is_over)
    assert seen == [True, False, True]
    assert observer.closed
    assert caplog.messages[-1] == "no job is left, stopping"


def test_its_log_begins_anew_when_it_has_grown(run_job: JobStarter, tmp_path: Path) -> None:
    log = tmp_path / "agent.log"
    run_job(
        "import logging, os\n"
        f"os.dup2(os.open({str(log)!r}, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), 2)\n"
        "from dlmon.agent import log\n"
        "log.configure(limit=2000)\n"
        "for number in range(1000):\n"
        "    logging.getLogger('dlmon').info('line %d', number)\n"
    ).finish()
    lines = log.read_text().splitlines()
    assert 1 < len(lines) < 100
    assert lines[-1].endswith(" INFO line 999")
    assert log.stat().st_size < 2100
