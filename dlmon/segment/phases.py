"""How a loader's time is split into phases, for who closes intervals and who looks at open ones.

Counters include the open interval and never go down, yet what an interval *was* is sometimes known
only when it ends: a `next()` that turns out to end the iteration is teardown, not wait, and a gap
after a delivery may turn out to have held a `break`. Both sides therefore use the rules below: the
reader shows of an open interval only what no later event can take back, and the writer closes it to
at least that.
"""

from __future__ import annotations

WAIT_CERTAIN_NS = 1_000_000_000
"""An open `next()` longer than this counts as wait, even if it then ends the iteration."""

PAUSE_FLOOR_NS = 10_000_000_000
PAUSE_STEPS = 20
"""A gap is step up to max(PAUSE_FLOOR_NS, PAUSE_STEPS x the usual step), and pause after."""


def usual_step(step_ns: int, steps: int) -> int | None:
    """Return the mean closed step in nanoseconds, or None before the first."""
    return step_ns // steps if steps > 0 else None


def pause_threshold(usual: int | None) -> int:
    """Return from which length in nanoseconds on a gap becomes a pause."""
    return max(PAUSE_FLOOR_NS, PAUSE_STEPS * (usual or 0))


def split_gap(gap_ns: int, usual: int | None) -> tuple[int, int]:
    """Split a gap that ended in a further `next()` into (step, pause) nanoseconds."""
    step = min(gap_ns, pause_threshold(usual))
    return step, gap_ns - step


def split_broken_gap(gap_ns: int, usual: int | None) -> tuple[int, int]:
    """Split a gap that ended the iteration (a `break`) into (step, pause) nanoseconds.

    How long the loop worked before its `break` cannot be seen: up to two usual steps pass for the
    step, of a longer gap one usual step does and the rest is what followed the `break`. Past the
    pause threshold the step has been shown already and stays.
    """
    if usual is None or gap_ns <= 2 * usual or gap_ns > pause_threshold(usual):
        return split_gap(gap_ns, usual)
    return usual, gap_ns - usual


def open_gap(gap_ns: int, usual: int | None) -> tuple[int, int]:
    """Return the (step, pause) nanoseconds of a gap still open that are certain already."""
    threshold = pause_threshold(usual)
    if gap_ns > threshold:
        return threshold, gap_ns - threshold
    return (gap_ns if usual is None else min(gap_ns, usual)), 0


def open_wait(wait_ns: int) -> int:
    """Return the nanoseconds of a `next()` still open that are certain to be wait."""
    return wait_ns if wait_ns > WAIT_CERTAIN_NS else 0
