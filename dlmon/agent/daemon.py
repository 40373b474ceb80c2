"""The agent: looks at the node on a clock, on the main thread, and serves what it saw last."""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Protocol

from dlmon import __version__
from dlmon.agent.admission import Detail
from dlmon.agent.config import Config
from dlmon.agent.hangs import Hangs
from dlmon.agent.routes import Route, Router
from dlmon.agent.server import Server, listen
from dlmon.agent.state import Board
from dlmon.agent.watch import Watch, Watcher
from dlmon.observe.processes import capabilities
from dlmon.observe.snapshot import Snapshot

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_REPEAT_ERROR_SECONDS = 60.0

_CAP_DAC_OVERRIDE = 1 << 1
_CAP_DAC_READ_SEARCH = 1 << 2

logger = logging.getLogger(__name__)


class Observing(Protocol):
    """What makes snapshots: `dlmon.observe.observer.Observer`, or what a test puts there."""

    def observe(self) -> Snapshot:
        """Look once."""

    def close(self) -> None:
        """Let go of files."""


IsOver = Callable[[Snapshot | None], bool]


def _never(_: Snapshot | None) -> bool:
    return False


class _Stop(BaseException):
    """A signal asked the agent to end; no `except Exception` holds it up."""


class Daemon:
    """One agent."""

    def __init__(
        self,
        config: Config,
        observer: Observing,
        watchers: Iterable[Watcher] = (),
        hangs: Hangs | None = None,
        sights: Iterable[Callable[[], str]] = (),
        routes: Mapping[str, Route] | None = None,
    ) -> None:
        """Open the socket.

        Args:
            config: All settings.
            observer: Closed when the agent ends.
            watchers: Say what is wrong in what it sees.
            hangs: What they have kept of hangs.
            sights: Each says at start, in a few words, what else can be seen.
            routes: What further paths of its server answer.

        Raises:
            UsageError: It cannot listen at the address.
        """
        self._config = config
        self._observer = observer
        self._watch = Watch(watchers)
        self._sights = tuple(sights)
        self._board = Board(Detail(config.metrics.per_worker), config.limits.series)
        router = Router(self._board, config.interval_seconds, hangs, routes)
        self._server: Server = listen(config.web.listen_address, router.respond)
        self._stopping = False
        self._complaint = ("", -math.inf)

    @property
    def address(self) -> str:
        """Where it listens, the port it really has included."""
        return self._server.address

    def run(self, is_over: IsOver = _never) -> None:
        """Look and serve until SIGTERM, SIGINT or `is_over`. Call it on the main thread.

        The signals' handlers are as before when it returns.

        Args:
            is_over: Asked after each look, with what was seen, or None if that failed.
        """
        before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        wake_before = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        try:
            for number in _STOP_SIGNALS:
                signal.signal(number, self._stop)
            self._start_server()
            logger.info("%s", self._greeting())
            self._tick_until(is_over, wake)
            logger.info("no job is left, stopping")
        except _Stop:
            logger.info("stopping")
        finally:
            self._stopping = True  # from here on a further signal changes nothing
            self._server.close()
            self._observer.close()
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wake_before)
            os.close(wake)
            os.close(woken)

    def _start_server(self) -> None:
        """Start the server's threads with the signals blocked, which they inherit.

        So it is the main thread that a signal interrupts, whatever thread the kernel prefers.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            self._server.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _tick_until(self, is_over: IsOver, wake: int) -> None:
        start = time.monotonic()
        while not self._stopping:
            if is_over(self._tick()):
                return
            due = next_tick(start, self._config.interval_seconds, time.monotonic())
            # A signal just before a sleep would not end it; the byte it leaves here ends this.
            if select.select([wake], [], [], max(0.0, due - time.monotonic()))[0]:
                os.read(wake, 512)

    def _tick(self) -> Snapshot | None:
        seen = None
        try:
            seen = self._watch.look(self._observer.observe())
            self._board.publish(seen)
            if self._watch.failed:
                self._board.fail(self._watch.failed)
        except Exception as error:  # noqa: BLE001  # whatever it is, the agent goes on serving
            self._complain(error)
        else:
            if self._complaint[0]:
                logger.info("snapshots succeed again")
                self._complaint = ("", -math.inf)
        return seen

    def _complain(self, error: Exception) -> None:
        """Count a failure, and log it unless the same one was logged a moment ago."""
        what = " ".join(f"{type(error).__name__}: {error}".split())
        self._board.fail(what)
        said, when = self._complaint
        now = time.monotonic()
        if what != said or now - when >= _REPEAT_ERROR_SECONDS:
            logger.error("no snapshot (%d so far)", self._board.status.errors, exc_info=error)
            self._complaint = (what, now)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        # An exception raised inside a finalizer is swallowed by Python: then the flag is what
        # ends the loop, after the tick.
        if not self._stopping:
            self._stopping = True
            raise _Stop

    def _greeting(self) -> str:
        dirs = ", ".join(name + _trouble(name) for name in self._config.dirs)
        seen = "; ".join([sight(), *(say() for say in self._sights)])
        return f"dlmon {__version__} agent on http://{self.address}/, reading {dirs}, {seen}"


def next_tick(start: float, interval: float, now: float) -> float:
    """Return the next point in time after `now` of a clock that ticks every `interval` seconds.

    Points that have gone by meanwhile are skipped, so that slow ticks neither pile up nor shift the
    clock.

    Args:
        start: A point at which it ticked.
        interval: Seconds, above 0.
        now: `start` or later, on the same clock.
    """
    return start + (math.floor((now - start) / interval) + 1) * interval


def sight() -> str:
    """Say as whom this process runs and whose segments it can read."""
    uid = os.geteuid()
    if capabilities() & (_CAP_DAC_OVERRIDE | _CAP_DAC_READ_SEARCH):
        return f"as uid {uid}, able to read every user's segments"
    root = "root without CAP_DAC_READ_SEARCH" if uid == 0 else "not root"
    return (
        f"as uid {uid}, {root}: other users' segments are unreadable but where the directory's"
        " group allows it"
    )


def _trouble(directory: str) -> str:
    """Return what keeps a directory from being read now, in brackets; "" if nothing does."""
    if not os.path.isdir(directory):
        return " (not there yet)"
    return "" if os.access(directory, os.R_OK | os.X_OK) else " (unreadable)"
