"""Tables for a terminal: columns as wide as what is in them, narrower where the terminal is."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

GAP = "  "
UNKNOWN = "\N{EN DASH}"
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_STYLES = {"bold": "\x1b[1m", "dim": "\x1b[2m", "red": "\x1b[31m", "yellow": "\x1b[33m"}
_RESET = "\x1b[0m"


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and how it looks: a key of `_STYLES`, or "" for plain."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column's heading, and whether it is one of numbers, which align on the right."""

    title: str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Squeeze:
    """One way to gain room: cut a column down to `width`, or with 0 leave it out."""

    title: str
    width: int = 0


def terminal_width(stream: TextIO) -> int | None:
    """Return how many characters fit on a line of `stream`, None if it is no terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def has_colour(stream: TextIO, environment: Mapping[str, str]) -> bool:
    """Return whether `stream` is a terminal that shows colours and may (https://no-color.org)."""
    wanted = not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    return wanted and stream.isatty()


def render(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell]],
    *,
    width: int | None = None,
    squeezes: Sequence[Squeeze] = (),
    colour: bool = False,
) -> list[str]:
    """Return a table's lines, the heading first.

    Args:
        columns: From left to right.
        rows: One cell per column each.
        width: Characters that fit on a line; None for no limit.
        squeezes: How to become narrower, tried in order until all fits.
        colour: Whether cells have their style.
    """
    clean = [[Cell(printable(cell.text), cell.style) for cell in row] for row in rows]
    widths = {
        column.title: max([_width(column.title), *(_width(row[i].text) for row in clean)])
        for i, column in enumerate(columns)
    }
    if width is not None:
        _fit(widths, width, squeezes)
    heading = [Cell(column.title, "bold") for column in columns]
    return [_line(columns, widths, row, colour) for row in (heading, *clean)]


def printable(text: str) -> str:
    """Return `text` without what could move the cursor or end the line: U+FFFD instead."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _fit(widths: dict[str, int], width: int, squeezes: Sequence[Squeeze]) -> None:
    """Squeeze until all fits, then give what room is left back to what was cut, last cut first."""

    def room() -> int:
        return width - sum(widths.values()) - len(GAP) * (len(widths) - 1)

    natural = dict(widths)
    for squeeze in squeezes:
        if room() >= 0:
            break
        if squeeze.width == 0:
            widths.pop(squeeze.title, None)
        elif squeeze.title in widths:
            widths[squeeze.title] = min(widths[squeeze.title], squeeze.width)
    for squeeze in reversed(squeezes):
        if squeeze.title in widths:
            wanted = natural[squeeze.title] - widths[squeeze.title]
            widths[squeeze.title] += max(0, min(wanted, room()))


def _line(
    columns: Sequence[Column], widths: Mapping[str, int], row: Sequence[Cell], colour: bool
) -> str:
    parts = []
    for column, cell in zip(columns, row, strict=True):
        if column.title not in widths:
            continue
        text = _cut(cell.text, widths[column.title])
        blank = " " * (widths[column.title] - _width(text))
        if colour and cell.style:
            text = _STYLES[cell.style] + text + _RESET
        parts.append(blank + text if column.right else text + blank)
    return GAP.join(parts).rstrip()


def _cut(text: str, width: int) -> str:
    """Shorten `text` in the middle: names that differ do so at their beginning or at their end."""
    if _width(text) <= width:
        return text
    head, tail = "", ""
    while True:
        more = text[len(head)] if _width(head) <= _width(tail) else text[-len(tail) - 1]
        if _width(head) + _width(tail) + _width(more) + 1 > width:
            return head + _ELLIPSIS + tail
        if _width(head) <= _width(tail):
            head += more
        else:
            tail = more + tail


def _width(text: str) -> int:
    """Return how many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def counted(number: int) -> str:
    """Return a count, its thousands apart: 12,345."""
    return f"{number:,}"


def percent(ratio: float | None) -> str:
    """Return a ratio of 0 to 1 as a percentage: 73 %."""
    return UNKNOWN if ratio is None else f"{100 * ratio:.0f} %"


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it, in at most three digits: 120 ms, 2.1 s, 3 min."""
    if seconds is None:
        return UNKNOWN
    seconds = max(0.0, seconds)
    for limit, unit, digits, name in (
        (0.9995, 1e-3, 0, "ms"),
        (9.95, 1, 1, "s"),
        (99.5, 1, 0, "s"),
        (3570, 60, 0, "min"),
        (9.95 * 3600, 3600, 1, "h"),
        (47.5 * 3600, 3600, 0, "h"),
    ):
        if seconds < limit:
            return f"{seconds / unit:.{digits}f} {name}"
    return f"{counted(round(seconds / 86400))} d"
