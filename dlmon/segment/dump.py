"""A segment decoded for a human or as JSON, fields by name and unit from its own table.

Runs in: the commands. On failure: nothing raises; what is odd is shown as it is.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dlmon.segment import layout, meaning
from dlmon.segment.cells import Cells
from dlmon.segment.layout import ERRORS, EXIT_REASONS, HOOKS, LOOP, Phase, Scope
from dlmon.segment.reader import Reading

Paint = Callable[[str, str], str]
"""Returns a text in a style: `bold`, `good`, `bad` or `faint`."""

_SECOND = 1_000_000_000
_LONGER = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_UNKNOWN = "unit not known to this release"
_NAMES = {"errors": ERRORS, "worker_exits": EXIT_REASONS}
_MOMENTS = ("updating", "updated", "fetch_updating", "fetch_updated", "fetch_begun", "entered_ns")
_MOST_CELLS = 32
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Liveness:
    """What the kernel and the cells say together of the writer of one slot.

    Attributes:
        alive: Its byte is held.
        pid: In this pid namespace; None if not visible or not alive.
        text: In words.
        bad: It died, or lives without its rank.
    """

    alive: bool
    pid: int | None
    text: str
    bad: bool


def liveness(reading: Reading, slot: int) -> Liveness:
    """Return who writes slot `slot`: 0 is the rank's, i + 1 worker i's."""
    holder = reading.worker_holders[slot - 1] if slot else reading.rank_holder
    if holder is not None:
        orphan = slot > 0 and reading.rank_holder is None
        where = f"pid {holder}" if holder else "in a pid namespace not visible from here"
        return Liveness(True, holder or None, f"alive, {where}" + ", orphan" * orphan, orphan)
    said = _goodbye(reading, slot)
    return Liveness(False, None, said, said == "dead")


def _goodbye(reading: Reading, slot: int) -> str:
    if slot == 0:
        return "ended in order" if reading.rank["goodbye"] else "dead"
    worker = reading.workers[slot - 1]
    attested = worker["attested_generation"]
    if attested == 0 or attested != reading.rank["generation"]:
        return "not started" if reading.rank_holder is None else "starting"
    return "ended in order" if worker["goodbye_generation"] == attested else "dead"


def as_json(reading: Reading, unix: float) -> dict[str, object]:
    """Return everything as JSON values: raw cells with their units, and what was derived.

    Args:
        reading: The segment.
        unix: Unix time at `reading.now_ns`.
    """
    plan = reading.layout
    return {
        "path": reading.path,
        "layout": {
            "major": layout.MAJOR,
            "minor": plan.minor,
            "bytes": plan.size,
            "workers": plan.workers,
            "created": plan.created_ns / _SECOND,
        },
        "time": unix,
        "monotonic_ns": reading.now_ns,
        "slots_being_written": reading.stale,
        "info": _plain(reading.info, _DEEPEST),
        "slots": [_slot_json(reading, slot) for slot in range(plan.workers + 1)],
    }


def _slot_json(reading: Reading, slot: int) -> dict[str, object]:
    cells, state = _cells(reading, slot), liveness(reading, slot)
    fields = {}
    for name, unit in reading.layout.units[min(slot, 1)].items():
        values = cells.run(name)
        fields[name] = {"unit": unit, "value": values[0] if len(values) == 1 else list(values)}
    scope = Scope.WORKER if slot else Scope.RANK
    return {
        "slot": slot,
        "of": scope.name.lower(),
        "worker": slot - 1 if slot else None,
        "alive": state.alive,
        "pid": state.pid,
        "status": state.text,
        "derived": _derived(reading, slot),
        "fields": fields,
    }


def _derived(reading: Reading, slot: int) -> dict[str, int]:
    """Return what the cells say together and no field says alone."""
    cells = _cells(reading, slot)
    found = {} if slot else {"batches": meaning.batches(cells)}
    if slot or not reading.workers:  # who fetches
        found |= {"fetched": meaning.fetched(cells), "samples": meaning.samples(cells)}
    return found


def lines(reading: Reading, unix: float, paint: Paint) -> Iterator[str]:
    """Yield the lines of the text form.

    Args:
        reading: The segment.
        unix: Unix time at `reading.now_ns`.
        paint: For headings and for who is alive or dead.
    """
    plan = reading.layout
    made = plan.created_ns / _SECOND
    yield paint(f"segment {printable(reading.path)}", "bold")
    yield f"  layout {layout.MAJOR}.{plan.minor}, {plan.size:,} bytes, {plan.workers} workers"
    yield f"  made {_date(made)} ({_ago(round((unix - made) * _SECOND))})"
    if reading.stale:
        yield f"  {reading.stale} slots were being written: their values may not agree"
    yield ""
    yield paint("info", "bold")
    yield from _info(_plain(reading.info, _DEEPEST), "  ")
    for slot in range(plan.workers + 1):
        state = liveness(reading, slot)
        name = paint(f"worker {slot - 1}" if slot else "rank", "bold")
        style = "bad" if state.bad else "good" if state.alive else "faint"
        yield ""
        counted = [f"{count:,} {what}" for what, count in _derived(reading, slot).items()]
        yield ", ".join([f"{name}: {paint(state.text, style)}", *counted])
        yield from _fields(reading, slot)


def _fields(reading: Reading, slot: int) -> Iterator[str]:
    cells = _cells(reading, slot)
    units = reading.layout.units[min(slot, 1)]
    width = max(map(len, units), default=0)
    for name, unit in units.items():
        if name != "lock":  # its value means nothing
            value = _value(cells, name, unit, reading.now_ns)
            yield f"  {printable(name):{width}}  {value}"


def _value(cells: Cells, name: str, unit: str, now_ns: int) -> str:
    values = cells.run(name)
    if name.endswith("_histogram"):
        return _histogram(values)
    if len(values) != 1:
        return _run(values, _NAMES.get(name))
    value = values[0]
    if name == "phase":
        return _phase(cells, now_ns)
    if unit == "ns" and (name in _MOMENTS or name.startswith("last_")):
        return _ago(now_ns - value) if value else "never"
    if unit == "ns":
        return duration(value)
    if name == "hooks":
        missing = [hook for i, hook in enumerate(HOOKS) if not value >> i & 1]
        return f"all but {', '.join(missing)}" if missing else "all"
    if unit == "count":
        return f"{value:,}"
    known = unit in ("id", "state", "bits", "ticks")
    return str(value) if known else f"{value} ({printable(unit) or _UNKNOWN})"


def _phase(cells: Cells, now_ns: int) -> str:
    state = cells.state("phase")[0]
    phase, since = meaning.phase(cells)
    if state != LOOP and state not in Phase._value2member_map_:
        return f"state {state}, not known to this release"
    return phase.name.lower() + (f" since {_ago(now_ns - since)}" if since else "")


def _run(values: tuple[int, ...], names: tuple[str, ...] | None) -> str:
    if names is None:
        more = len(values) - _MOST_CELLS
        shown = " ".join(map(str, values[:_MOST_CELLS]))
        return shown + (f" and {more} more" if more > 0 else "")
    labels = [*names, *(f"#{i}" for i in range(len(names), len(values)))]
    counted = [f"{label} {value:,}" for label, value in zip(labels, values, strict=False) if value]
    return ", ".join(counted) or "none"


def _histogram(counts: tuple[int, ...]) -> str:
    """Return the total, and how many were below each power of two and not below the one before."""
    filled = [f"<{duration(1 << i)}: {count:,}" for i, count in enumerate(counts) if count]
    return "  ".join([f"{sum(counts):,}", *filled])


def duration(nanoseconds: int) -> str:
    """Return a duration with three significant digits, or in its two largest units above 100 s."""
    if nanoseconds < 0:
        return f"-{duration(-nanoseconds)}"
    for size, unit in ((1, "ns"), (1_000, "us"), (1_000_000, "ms")):
        if nanoseconds < 999.5 * size:
            return f"{nanoseconds / size:.3g} {unit}"
    if nanoseconds < 99.95 * _SECOND:
        return f"{nanoseconds / _SECOND:.3g} s"
    seconds = round(nanoseconds / _SECOND)
    shown: list[str] = []
    for size, unit in _LONGER:
        count, seconds = divmod(seconds, size)
        if count or shown:
            shown.append(f"{count:,} {unit}")
    return " ".join(shown[:2])


def _ago(nanoseconds: int) -> str:
    return f"{duration(nanoseconds)} ago" if nanoseconds >= 0 else f"in {duration(-nanoseconds)}"


def _date(unix: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix))
    except (OverflowError, OSError, ValueError):
        return f"at {unix:.0f} s after 1970"


def _info(value: object, indent: str) -> Iterator[str]:
    """Yield one line per value, nested ones indented."""
    entries = value.items() if isinstance(value, dict) else enumerate(_items(value))
    named = [(printable(str(name)), entry) for name, entry in entries]
    width = max((len(name) for name, _ in named), default=0)
    for name, entry in named:
        if isinstance(entry, (dict, list)):
            yield f"{indent}{name}"
            yield from _info(entry, indent + "  ")
        else:
            yield f"{indent}{name:{min(width, 24)}}  {printable(_text(entry))}".rstrip()


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _plain(value: object, depth: int) -> object:
    """Return a value as strict JSON that is nested at most `depth` levels."""
    if isinstance(value, (dict, list)) and depth == 0:
        return "..."
    if isinstance(value, dict):
        return {str(key): _plain(entry, depth - 1) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry, depth - 1) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def printable(text: str) -> str:
    """Return `text` without anything that would move a terminal's cursor or break an encoding."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cells(reading: Reading, slot: int) -> Cells:
    return reading.workers[slot - 1] if slot else reading.rank
