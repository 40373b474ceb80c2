"""Look at what may make its observer wait, in a thread of its own.

Runs in: agent. On failure: the last answer stays; whoever asks never waits.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class Aside:
    """Takes a turn again and again, in a thread that neither signals nor an exit wait for."""

    def __init__(self, name: str, turn: Callable[[], float]) -> None:
        """Prepare; nothing happens before `start`.

        Args:
            name: The thread's.
            turn: Looks once, keeps what it saw and returns after how many seconds to look again,
                inf for not before `wake`. It must not raise.
        """
        self._turn = turn
        self._first = threading.Event()
        self._due = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def begun(self) -> bool:
        """Whether the first turn is over."""
        return self._first.is_set()

    def start(self, wait_seconds: float = 0.0) -> None:
        """Begin, and wait up to `wait_seconds` for the end of the first turn.

        The thread inherits a mask that blocks every signal: they are the main thread's to handle.
        """
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._first.wait(wait_seconds)

    def wake(self) -> None:
        """Have the next turn taken now, or as soon as the one under way is over."""
        self._due.set()

    def close(self) -> None:
        """Take no further turn. One that hangs is left to hang."""
        self._over = True
        self._due.set()

    def _run(self) -> None:
        while True:
            self._due.clear()
            if self._over:
                return
            pause = self._turn()
            self._first.set()
            self._due.wait(min(pause, threading.TIMEOUT_MAX))
