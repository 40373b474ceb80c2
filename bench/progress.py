"""Tell on standard error what is being measured, and how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_ERASE = "\r\x1b[K"


class Progress:
    """One line for each measurement, which counts up on a terminal.

    Args:
        stream: Where to.
        process: Whose progress it is, if it is not the main one's.
    """

    def __init__(self, stream: TextIO, process: str = "") -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._process = f"{process}: " if process else ""

    def say(self, text: str) -> None:
        """Write a line."""
        print(f"bench: {self._process}{text}", file=self._stream, flush=True)

    @contextmanager
    def of(self, title: str, seconds: float) -> Iterator[Callable[[int, float], None]]:
        """Say what begins, and give what is to be told rounds and seconds spent."""
        text = f"{title}: about {seconds:.0f} s"
        if not self._live:
            self.say(text)
            yield lambda _rounds, _spent: None
            return
        self._write(text)
        counts = [0, 0.0]

        def told(rounds: int, spent: float) -> None:
            counts[:] = rounds, spent
            self._write(f"{title}: {spent:.0f} of about {seconds:.0f} s, {rounds} rounds")

        try:
            yield told
        finally:
            self._stream.write(_ERASE)
            self.say(f"{title}: {counts[0]} rounds in {counts[1]:.0f} s")

    def _write(self, text: str) -> None:
        self._stream.write(f"{_ERASE}bench: {self._process}{text}")
        self._stream.flush()
