"""What the cells of a slot say together: values that are derived instead of stored."""

from __future__ import annotations

from dlmon.segment.cells import Cells
from dlmon.segment.layout import LOOP, NO_INDEX, Phase


def batches(rank: Cells) -> int:
    """Return the batches delivered: the first of each iteration, and those waited for."""
    return rank["startups"] + rank.total("wait_histogram")


def steps(rank: Cells) -> int:
    """Return the steps that a further `next()` followed."""
    return rank.total("step_histogram")


def last_delivery(rank: Cells) -> int:
    """Return when the last batch was delivered, in nanoseconds; 0 before the first."""
    looping = rank.state("phase")[0] == LOOP
    return rank["updated"] if looping else rank["last_delivery_ns"]


def phase(rank: Cells) -> tuple[Phase, int]:
    """Return what the loader does and since when, in nanoseconds; IDLE for an unknown state."""
    state, since = rank.state("phase")
    if state == LOOP:
        entered, delivered = rank["entered_ns"], rank["updated"]
        return (Phase.WAIT, entered) if entered > delivered else (Phase.STEP, delivered)
    return (Phase(state) if state in Phase._value2member_map_ else Phase.IDLE), since


def fetched(slot: Cells) -> int:
    """Return the batches fetched and collated."""
    return slot.total("fetch_histogram")


def fetched_in(slot: Cells, iteration: int) -> int:
    """Return how many tasks of an iteration a worker has done, those that raised included."""
    if slot["fetch_iteration"] != iteration:
        return 0
    done = fetched(slot) + slot["fetch_failed"]
    return max(0, done - slot["fetched_before"] - slot["failed_before"])


def samples(slot: Cells) -> int:
    """Return the samples in all batches fetched."""
    return slot["samples_base"] + slot["samples_each"] * fetched(slot)


def fetching_since(slot: Cells) -> int | None:
    """Return since when a fetch is open, in nanoseconds; None while none is."""
    begun = slot["fetch_begun"]
    return begun if begun > slot["fetch_updated"] else None


def fetch_index(slot: Cells) -> int | None:
    """Return the first sample index of the last fetch begun, None if it has no integer one."""
    held = slot.get("fetch_index", NO_INDEX)  # not there before layout 1.1
    return None if held == NO_INDEX else held


def last_progress(slot: Cells) -> int:
    """Return when a fetch last began or ended, in nanoseconds; 0 before the first."""
    return max(slot["fetch_begun"], slot["fetch_updated"])
