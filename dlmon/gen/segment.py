"""docs/segment.md, from the layout: where every byte of a segment is, for who writes a reader."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import struct

from dlmon.errors import DlmonError
from dlmon.gen.markdown import code, document, head, table
from dlmon.segment import layout
from dlmon.segment.layout import FIELDS, Scope
from dlmon.segment.reader import ATTEMPTS

_TYPES = {
    "s": "bytes",
    "B": "u8",
    "H": "u16",
    "I": "u32",
    "Q": "u64",
    "b": "i8",
    "h": "i16",
    "i": "i32",
    "q": "i64",
}

_READING = """\
## How to read one

1. Open it with `O_NOFOLLOW`, once, and ask for a regular file with one link and the right owner.
   Read with `pread`, never through a mapping: a file cut short under a mapping kills its reader.
   A process that writes a segment must not open it again, for closing it drops the lock.
2. Check magic, major version, `ready` and every count and offset against the file's size. Refuse
   another major version. Find fields by name in the table; ignore those you do not know, do without
   those that are missing.
3. Ask who is alive with `F_GETLK` and type `F_RDLCK` for the first byte of each slot. The answer is
   that nobody holds it, or the holder's pid in your pid namespace, 0 if it is in one you cannot
   see. Ask for a read lock: a stranger who can read the file can hold one, and must not pass for a
   writer.

   | a worker's byte | `attested_generation` | `goodbye_generation` | the worker |
   | --- | --- | --- | --- |
   | held | any | any | lives |
   | free | not the rank's `generation` | any | is starting |
   | free | the rank's `generation` | the same | ended in order |
   | free | the rank's `generation` | another | is dead |

4. Read the file three times and take the second: a slot is good if `updating` and `updated` are the
   same in all three. Two are not enough, for the kernel copies in whichever order it likes. Else
   read again, {attempts} times, then go on with the last good one. Read workers before the rank, so
   that no batch seems to be delivered before it was fetched.
"""


def render() -> str:
    """Return the document.

    Raises:
        DlmonError: The header's struct and the names beside it do not agree.
    """
    lines = head("Segment", "dlmon/segment/layout.py")
    lines += [
        f"Version {layout.MAJOR}.{layout.MINOR}. {_picture()}",
        "",
        "## Header",
        "",
        *table(("offset", "bytes", "type", "field"), _header_rows()),
        f"The magic is {code(layout.MAGIC.decode())}. The header takes {layout.HEADER_SIZE} bytes.",
        "`ready` is set to 1 last: a file without it is not read.",
        "",
        *_table_section(),
    ]
    for scope in Scope:
        lines += _fields(scope)
    lines += _values()
    return document([*lines, _READING.format(attempts=ATTEMPTS)])


def _picture() -> str:
    """Return the layout module's own description, its drawing as an indented block."""
    text = inspect.getdoc(layout) or ""
    return text.partition("\n")[2].replace("::\n", ":\n").strip()


def _header_rows() -> list[tuple[str, str, str, str]]:
    names = _documented("HEADER")
    rows = []
    offset = 0
    for count, kind in re.findall(r"(\d*)([a-zA-Z])", layout.HEADER.format):
        size = struct.calcsize(f"<{count}{kind}")
        rows.append((str(offset), str(size), _TYPES[kind]))
        offset += size
    if len(rows) != len(names):
        raise DlmonError(
            f"layout.HEADER has {len(rows)} fields, its docstring names {len(names)}: {names}"
        )
    return [(*row, name) for row, name in zip(rows, names, strict=True)]


def _documented(constant: str) -> list[str]:
    """Return the names listed in the docstring of a constant of the layout."""
    text = _constants()[constant].removesuffix(".")
    return re.split(r", (?![^(]*\))", text)


def _constants() -> dict[str, str]:
    """Return the docstrings of the layout's constants: the strings that follow them."""
    found = {}
    body = ast.parse(inspect.getsource(layout)).body
    for statement, following in itertools.pairwise(body):
        if isinstance(statement, ast.Assign) and isinstance(following, ast.Expr):
            text = " ".join(str(ast.literal_eval(following.value)).split())
            found[ast.unparse(statement.targets[0])] = text
    return found


def _table_section() -> list[str]:
    names = _documented("ENTRY")
    sizes = re.findall(r"(\d*)([a-zA-Z])", layout.ENTRY.format)
    entry = ", ".join(
        f"{name} ({f'{count} bytes' if count else _TYPES[kind]})"
        for name, (count, kind) in zip(names, sizes, strict=True)
    )
    rank, worker = layout.RANK_SLOT_SIZE, layout.WORKER_SLOT_SIZE
    return [
        "## Table, info, slots",
        "",
        f"- Table: {layout.TABLE_ENTRIES} entries of {layout.ENTRY_SIZE} bytes from byte",
        f"  {layout.TABLE_OFFSET}, one a field: {entry}.",
        "  Strings are ASCII, padded with zeros.",
        f"  Scope {Scope.RANK.value} is the rank's slot, {Scope.WORKER.value} a worker's.",
        f"- Info: JSON in UTF-8, {layout.INFO_SIZE} bytes from byte {layout.INFO_OFFSET},",
        "  padded with zeros.",
        f"- Slots: from byte {layout.SLOTS_OFFSET}, {rank} bytes for the rank, then {worker} for",
        "  each worker.",
        f"- At most {layout.MAX_WORKERS:,} workers, {layout.MAX_ENTRIES:,} entries and",
        f"  {layout.MAX_FILE_SIZE:,} bytes; a reader refuses more.",
        "",
    ]


def _fields(scope: Scope) -> list[str]:
    title = "The rank's slot" if scope is Scope.RANK else "A worker's slot"
    rows = [
        (str(field.offset), str(field.count), field.unit, code(field.name), field.meaning)
        for field in FIELDS[scope].values()
    ]
    return [f"## {title}", "", *table(("offset", "cells", "unit", "field", "meaning"), rows)]


def _values() -> list[str]:
    """Return what the numbers in cells stand for, and further constants."""
    phases = ", ".join(f"{phase.value} {phase.name}" for phase in layout.Phase)
    lines = ["## Values", "", f"- `Phase`: {phases}. {inspect.getdoc(layout.Phase)}"]
    for name, text in _constants().items():
        value = getattr(layout, name)
        if isinstance(value, tuple):
            lines.append(f"- {code(name)}: {', '.join(value)}. {text}")
        elif isinstance(value, int):
            lines.append(f"- {code(name)} = {value}. {text}")
    return [*lines, ""]
