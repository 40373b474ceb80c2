"""Signals that ask to end, kept until it suits, so that nothing half done is left behind."""

from __future__ import annotations

import select
import signal
import socket
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class InterruptionError(Exception):
    """Say that the user, or whoever sent a signal, wants it to end.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.signal = number


class Interruptions:
    """Holds back SIGINT, SIGTERM and SIGHUP until closed; they surface where they are asked for.

    A handler that raises could strike between the start of a process and the note that it was
    started. For the main thread only.
    """

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self._awake, self._waker = socket.socketpair()
        for end in (self._awake, self._waker):
            end.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._note) for number in (*_ENDING, signal.SIGCHLD)
        }

    def close(self) -> None:
        """Put back the handlers that there were before."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._awake.close()
        self._waker.close()

    def check(self) -> None:
        """Do nothing unless a signal has come.

        Raises:
            InterruptionError: One has.
        """
        if self._first is not None:
            raise InterruptionError(self._first)

    def wait(self, seconds: float) -> None:
        """Wait until a child process ends or a signal comes, at most `seconds`.

        Raises:
            InterruptionError: A signal has come, now or before.
        """
        self.check()
        if select.select([self._awake], [], [], seconds)[0]:
            self._awake.recv(4096)
        self.check()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCHLD and self._first is None:
            self._first = signal.Signals(number)
