"""The little Markdown that the generated documents need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

NOTICE = "<!-- Made by `dlmon gen` from {source}. Change that, not this. -->"


def head(title: str, source: str) -> list[str]:
    """Return the first lines of a document: what it is made from, and its title."""
    return [NOTICE.format(source=source), "", f"# {title}", ""]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, an empty one after it.

    Args:
        columns: Titles.
        rows: A text for each column; a line break, a bar and what looks like HTML are escaped.
    """
    lines = [_row(columns), _row(["---"] * len(columns))]
    lines += [_row([_cell(text) for text in row]) for row in rows]
    return [*lines, ""]


def code(text: str) -> str:
    """Return text as inline code, "" for nothing."""
    return f"`{text}`" if text else ""


def document(lines: Iterable[str]) -> str:
    """Return a whole file, with one line break at its end."""
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    parts = text.replace("\n", " ").replace("|", r"\|").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]  # the others are inline code
    return "`".join(parts)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
