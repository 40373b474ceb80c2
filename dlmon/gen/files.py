"""Puts generated documents where they belong, or says which are out of date."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dlmon.errors import UsageError

_MARKS = ("pyproject.toml", "docs", "dlmon/__init__.py")


def source_root(start: Path) -> Path:
    """Return the root of the source checkout that a folder of the package is in.

    Args:
        start: A folder in `dlmon`, such as `dlmon/commands`.

    Raises:
        UsageError: The package is installed, not checked out: there is nothing to generate into.
    """
    root = start.resolve().parent.parent
    missing = [mark for mark in _MARKS if not (root / mark).exists()]
    if missing:
        raise UsageError(
            f"{root} is no source checkout of dlmon (no {', '.join(missing)} there); clone the"
            " repository, `pip install -e .`, and run this in it"
        )
    return root


def differing(root: Path, documents: Mapping[str, str]) -> list[str]:
    """Return the paths, below `root`, whose file is missing or has other text."""
    return [path for path, text in documents.items() if _read(root / path) != text]


def write(root: Path, documents: Mapping[str, str]) -> list[str]:
    """Write the documents that differ, and return their paths."""
    changed = differing(root, documents)
    for path in changed:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(documents[path], encoding="utf-8")
    return changed


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
