"""The cells of a segment in the bytes of its file, found by name through the file's own table.

Runs in: agent and the commands. Whether the table can be trusted is for `dlmon.segment.reader`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlmon.segment import layout
from dlmon.segment.layout import CELL

Units = Mapping[str, str]
"""Field name to unit."""

Stamps = tuple[tuple[int, ...], ...]
"""Offsets in bytes within the slot, of each group of stamps that must be equal."""

_NO_CELLS = slice(0, 0)
_STAMPS = (("updating", "updated"), ("fetch_updating", "fetch_updated"))


@dataclass(frozen=True, slots=True)
class Places:
    """Where the fields of a slot are.

    Attributes:
        first: The first cell of each field, counted within the slot.
        runs: All cells of each field.
    """

    first: Mapping[str, int]
    runs: Mapping[str, slice]


class Cells:
    """The cells of one slot: the first of each field by its name, all of one as a `run`.

    A field the writer's release did not have reads as 0, or as no values. Nothing is unpacked that
    is not asked for: once a second the agent makes one of every worker's slot.
    """

    __slots__ = ("_cells", "_first", "_known", "_runs", "raw")

    def __init__(self, places: Places, raw: bytes) -> None:
        """Take the bytes of a slot."""
        self.raw = raw
        self._cells = memoryview(raw).cast("q")
        self._first = places.first
        self._runs = places.runs
        self._known: dict[str, tuple[tuple[int, ...], int]] = {}

    def __getitem__(self, name: str) -> int:
        """Return the first cell of the field `name`."""
        try:
            return self._cells[self._first[name]]
        except KeyError:
            return 0

    def get(self, name: str, default: int) -> int:
        """Return the first cell of the field `name`, `default` if there is no such field."""
        first = self._first.get(name)
        return default if first is None else self._cells[first]

    def below_zero(self, name: str) -> bool:
        """Return whether any cell of the field `name` is; the last byte of each has its sign."""
        run = self._runs.get(name, _NO_CELLS)
        return not self.raw[(run.start + 1) * CELL - 1 : run.stop * CELL : CELL].isascii()

    def run(self, name: str) -> tuple[int, ...]:
        """Return all cells of the field `name`."""
        return self._unpacked(name)[0]

    def total(self, name: str) -> int:
        """Return the sum of all cells of the field `name`."""
        return self._unpacked(name)[1]

    def state(self, name: str) -> tuple[int, int]:
        """Return a state cell as (state, since in nanoseconds)."""
        value = self[name]
        return value & layout.STATE_MASK, value >> layout.STATE_BITS

    def _unpacked(self, name: str) -> tuple[tuple[int, ...], int]:
        """Return a field's cells and their sum."""
        known = self._known.get(name)
        if known is None:
            cells = tuple(self._cells[self._runs.get(name, _NO_CELLS)].tolist())
            known = self._known[name] = (cells, sum(cells))
        return known


@dataclass(frozen=True, slots=True)
class Layout:
    """What the header and table of one file say, checked against its size.

    Attributes:
        places: Per scope, where each field is.
        units: Per scope, each field's unit, in the order of the table.
        stamps: Per scope, where those are that must be equal.
        minor: The writer's minor version.
        created_ns: CLOCK_REALTIME nanoseconds.
    """

    size: int
    workers: int
    minor: int
    info: tuple[int, int]
    slots_offset: int
    slot_sizes: tuple[int, int]
    places: tuple[Places, Places]
    units: tuple[Units, Units]
    stamps: tuple[Stamps, Stamps]
    created_ns: int

    def slot_offset(self, slot: int) -> int:
        """Return the offset in bytes of slot `slot`."""
        if slot == 0:
            return self.slots_offset
        return self.slots_offset + self.slot_sizes[0] + (slot - 1) * self.slot_sizes[1]

    def raw(self, data: bytes, slot: int) -> bytes:
        """Return the bytes of slot `slot` in the file's bytes `data`."""
        start = self.slot_offset(slot)
        return data[start : start + self.slot_sizes[min(slot, 1)]]

    def cells(self, data: bytes, slot: int) -> Cells:
        """Return the cells of slot `slot` in the file's bytes `data`."""
        return self.made_of(self.raw(data, slot), slot)

    def made_of(self, raw: bytes, slot: int) -> Cells:
        """Return the cells of slot `slot` in its bytes `raw`."""
        return Cells(self.places[min(slot, 1)], raw)

    def settled(self, reads: Sequence[bytes], slot: int) -> bool:
        """Return whether nothing of a slot changed while the second of three reads of it was made.

        The read before tells that an update had ended, the one after that no other had begun. The
        read itself cannot: the kernel copies in whichever order it likes. Of reads that are equal
        as a whole one is enough.
        """
        for group in self.stamps[min(slot, 1)]:
            stamp = reads[0][group[0] : group[0] + CELL]
            for read in reads:
                for at in group:
                    if read[at : at + CELL] != stamp:
                        return False
        return True


def stamps(places: Places) -> Stamps:
    """Return where the stamps of a slot are; a release that lacks one is not held to it."""
    first = places.first
    groups = (tuple(first[name] * CELL for name in pair if name in first) for pair in _STAMPS)
    return tuple(group for group in groups if group)
