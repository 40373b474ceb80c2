"""The clock: no drift, no pile-up, and no failure that ends the agent."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlmon.agent import seldom
from dlmon.agent.config import Config, Web
from dlmon.agent.daemon import Daemon, next_tick, sight
from dlmon.agent.log import configure
from dlmon.observe.snapshot import Finding, Snapshot
from tests.agent.samples import make_finding, make_snapshot

CONFIG = Config(interval_seconds=0.01, web=Web(listen_address="127.0.0.1:0"))


class Scripted:
    """An observer that does at each look what the next line of its script says."""

    def __init__(self, *script: Callable[[], Snapshot]) -> None:
        self._script = list(script)
        self.closed = 0

    def observe(self) -> Snapshot:
        return self._script.pop(0)()

    def close(self) -> None:
        self.closed += 1


def good() -> Snapshot:
    return make_snapshot()


def bad() -> Snapshot:
    raise ValueError("no such\nthing")


def stop() -> Snapshot:
    os.kill(os.getpid(), signal.SIGTERM)
    return make_snapshot()


def interrupt() -> Snapshot:
    os.kill(os.getpid(), signal.SIGINT)
    return make_snapshot()


@given(st.floats(0, 1e9), st.floats(0.1, 60), st.floats(0, 1e5))
def test_the_next_tick_is_the_next_multiple_of_the_interval(
    start: float, interval: float, elapsed: float
) -> None:
    now = start + elapsed
    due = next_tick(start, interval, now)
    assert now <= due <= now + interval * 1.001 + 1e-6
    periods = (due - start) / interval
    assert abs(periods - round(periods)) < 1e-4


def test_a_slow_tick_skips_what_it_missed() -> None:
    assert next_tick(100.0, 1.0, 100.2) == 101.0
    assert next_tick(100.0, 1.0, 103.7) == 104.0
    assert next_tick(100.0, 1.0, 104.0) == 105.0


@pytest.mark.parametrize("last", [stop, interrupt])
def test_a_signal_ends_it_and_the_handlers_are_as_before(last: Callable[[], Snapshot]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    observer = Scripted(good, good, last)
    Daemon(CONFIG, observer).run()
    assert observer.closed == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_signal_interrupts_a_look_that_takes_for_ever() -> None:
    looking = threading.Event()

    def hang() -> Snapshot:
        looking.set()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            time.sleep(0.01)
        return pytest.fail("nobody interrupted it")

    def signal_it() -> None:
        looking.wait()
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGTERM)

    thread = threading.Thread(target=signal_it)
    thread.start()
    Daemon(CONFIG, Scripted(good, hang)).run()
    thread.join()


def test_a_failed_look_is_logged_once_counted_and_the_last_snapshot_is_served_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dlmon")
    pages: list[str] = []

    def scrape() -> Snapshot:
        with urllib.request.urlopen(f"http://{daemon.address}/metrics", timeout=60) as answer:
            pages.append(answer.read().decode())
        raise ValueError("another")

    daemon = Daemon(CONFIG, Scripted(good, bad, bad, scrape, good, stop))
    daemon.run()
    (page,) = pages
    assert "dlmon_agent_snapshot_errors_total 2.0" in page
    assert "dlmon_rank_up{" in page
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("dlmon ")
    assert messages[1:] == [
        "no snapshot (1 so far)",
        "no snapshot (3 so far)",  # another one; the second was the first's repetition
        "snapshots succeed again",
        "stopping",
    ]


class Broken:
    """A watcher that always fails."""

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        raise ValueError(f"no such\nthing at {snapshot.time}")


class Finds:
    """A watcher that always finds something."""

    def look(self, snapshot: Snapshot) -> tuple[Snapshot, Sequence[Finding]]:
        return snapshot, (make_finding(),)


def test_a_watcher_that_always_fails_is_counted_logged_each_minute_and_costs_its_own(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[str] = []

    def scrape() -> Snapshot:
        with urllib.request.urlopen(f"http://{daemon.address}/metrics", timeout=60) as answer:
            pages.append(answer.read().decode())
        monkeypatch.setattr(seldom, "SECONDS", 0.0)  # as if a minute were over
        return make_snapshot()

    daemon = Daemon(CONFIG, Scripted(good, good, good, scrape, stop), (Broken(), Finds()))
    daemon.run()
    (page,) = pages
    assert "dlmon_agent_snapshot_errors_total 3.0" in page
    assert "dlmon_finding{" in page
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    expected = "Broken failed: what it finds is missing"
    assert [record.getMessage() for record in failures] == [expected] * 2
    assert all(record.exc_info for record in failures)


def test_it_greets_with_version_address_directories_and_what_it_can_see(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "dlmon")
    config = Config(dirs=("/dev/shm", "/nowhere"), web=Web(listen_address="127.0.0.1:0"))
    daemon = Daemon(config, Scripted(stop))
    daemon.run()
    greeting = caplog.records[0].getMessage()
    assert f"http://{daemon.address}/" in greeting
    assert "/dev/shm, /nowhere (not there yet)" in greeting
    assert sight() in greeting
    assert f"as uid {os.geteuid()}" in sight()


def test_a_log_message_is_one_line_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("dlmon")
    before = (logger.handlers, logger.level, logger.propagate)
    try:
        configure()
        try:
            bad()
        except ValueError:
            logging.getLogger("dlmon.agent.test").exception("look failed")
    finally:
        logger.handlers, logger.level, logger.propagate = before
    (line,) = capsys.readouterr().err.splitlines()
    assert "ERROR look failed | Traceback" in line
    assert "ValueError: no such | thing" in line
