"""Hypothesis strategies for segments whose writer is broken, or wants to break its reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from dlmon.segment import layout
from dlmon.segment.layout import FIELDS, HEADER, Scope
from tests.segment import forge

WORKERS = 2
EXTREME = (0, 1, -1, 2, 6, 7, 8, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 1 - 2**63)

numbers = st.one_of(
    st.sampled_from(EXTREME),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 1000),
    st.integers(forge.NOW_NS - 10**13, forge.NOW_NS + 10**13),
)
texts = st.one_of(
    st.text(st.characters(), max_size=20),
    st.sampled_from(
        (
            "²",
            "٣",
            "9" * 4000,
            "9" * 5000,
            "-1",
            "1e5",
            "",
            "\0",
            "\x1b[2J",
            "\ud800",
            "a\nb",
            "x" * 5000,
        )
    ),
)
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(),
        texts,
        st.sampled_from((10**4200, -(10**4200))),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)

NAMES = tuple(forge.INFO)
CONFIG = ("dataset", "num_workers", "prefetch_factor", "in_order", "read_ahead")


@st.composite
def infos(draw: st.DrawFn) -> bytes:
    """Return an info text: mostly JSON, with anything for a value, names twice, deep nesting."""
    info: dict[str, Any] = {**forge.INFO, **draw(st.dictionaries(st.sampled_from(NAMES), values))}
    config = draw(st.one_of(values, st.dictionaries(st.sampled_from(CONFIG), values)))
    if draw(st.booleans()):
        info["config"] = config
    text = json.dumps(info)
    if draw(st.booleans()):  # every name a second time
        text = text[:-1] + ", " + json.dumps(info)[1:]
    deep = draw(st.sampled_from((0, 0, 0, 900, 960, 980, 990, 2000)))
    if deep:
        text = text[:-1] + f', "run": {"[" * deep}{"]" * deep}, "config": {{"dataset": '
        text += f"{'[' * deep}{']' * deep}}}}}"
    encoded = text.encode("utf-8", "surrogatepass")
    return draw(st.sampled_from((encoded, encoded, encoded, encoded[:-2], b"\xff" + encoded)))


@st.composite
def cells(draw: st.DrawFn) -> forge.CellValues:
    """Return some cells with any value, on top of those of a loader at work."""
    found: dict[tuple[int, str], int | Sequence[int]] = {}
    for slot in range(WORKERS + 1):
        fields = FIELDS[Scope.WORKER if slot else Scope.RANK]
        for name in draw(st.lists(st.sampled_from(tuple(fields)), max_size=8, unique=True)):
            value = draw(numbers)
            found[slot, name] = [value] * fields[name].count
    return {**(forge.busy() if draw(st.booleans()) else {}), **found}


@st.composite
def headers(draw: st.DrawFn) -> dict[str, Any]:
    """Return a few values that the header says instead of the truth."""
    said = {}
    for name in draw(st.lists(st.sampled_from(forge.HEADER_NAMES[1:]), max_size=3, unique=True)):
        small = st.integers(0, 70_000)
        most = {"major": 16, "minor": 16, "ready": 63}.get(name, 32)
        most = (
            64
            if name in ("size", "table", "info_offset", "info_size", "slots", "created")
            else most
        )
        said[name] = draw(st.one_of(small if most > 16 else st.integers(0, 65_535), _bits(most)))
    return said


def _bits(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most).map(lambda bits: (1 << bits) - 1)


rows = st.tuples(
    st.one_of(st.binary(max_size=40), st.sampled_from([row[0] for row in forge.rows()])),
    st.binary(max_size=12),
    st.integers(0, 3),
    st.one_of(st.integers(0, 200).map(lambda i: i * 8), st.integers(0, 2**32 - 1)),
    st.one_of(st.integers(0, 80), st.integers(0, 2**32 - 1)),
)

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Return something that happens to a file: bytes overwritten, cut off or added."""
    head = HEADER.size + layout.TABLE_ENTRIES * layout.ENTRY_SIZE
    places = st.one_of(st.integers(0, head), st.integers(0, layout.file_size(WORKERS)))
    patches = draw(st.lists(st.tuples(places, st.binary(min_size=1, max_size=9)), max_size=4))
    cut = draw(st.one_of(st.none(), st.none(), st.integers(0, layout.file_size(WORKERS))))
    more = draw(st.one_of(st.just(b""), st.just(b""), st.binary(max_size=100)))

    def damage(data: bytes) -> bytes:
        damaged = bytearray(data)
        for place, patch in patches:
            damaged[place : place + len(patch)] = patch
        return bytes(damaged[:cut]) + more

    return damage


@st.composite
def segments(draw: st.DrawFn) -> bytes:
    """Return the bytes of a file that is hostile in some way, or in none."""
    table = forge.rows()
    some_cells: forge.CellValues = {}
    if draw(st.booleans()):
        some_cells = draw(cells())
    else:
        at = draw(st.integers(0, len(table)))
        table[at : at + draw(st.integers(0, 3))] = draw(st.lists(rows, max_size=3))
    data = forge.forge(
        workers=WORKERS,
        info=draw(infos()),
        table=table,
        cells=some_cells,
        header=draw(st.one_of(st.just({}), headers())),
    )
    return draw(st.one_of(st.just(_leave), damages()))(data)


def _leave(data: bytes) -> bytes:
    return data
