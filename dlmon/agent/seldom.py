"""How often the agent says in its log what goes wrong again and again."""

from __future__ import annotations

import math
import time

SECONDS = 60.0
"""From one such line to the next, at least."""


class Seldom:
    """Knows when one thing was said last."""

    def __init__(self) -> None:
        self._said = -math.inf

    def due(self) -> bool:
        """Return whether it is to be said now, which counts as said."""
        now = time.monotonic()
        if now - self._said < SECONDS:
            return False
        self._said = now
        return True
