"""The cells of a segment in the bytes of its file, found by name through the file's own table.

Runs in: agent and the commands. Whether the table can be trusted is for `dlmon.segment.reader`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlmon.segment import layout
from dlmon.segment.layout import CELL

Places = Mapping[str, tuple[int, int]]
"""Field name to (first cell within the slot, number of cells)."""

Units = Mapping[str, str]
"""Field name to unit."""

Stamps = tuple[tuple[int, ...], ...]
"""Offsets in bytes within the slot, of each group of stamps that must be equal."""

_STAMPS = (("updating", "updated"), ("fetch_updating", "fetch_updated"))


class Cells(dict[str, int]):
    """The cells of one slot: the first of each field by its name, all of one as a `run`.

    A field the writer's release did not have reads as 0, or as no values. A dictionary, because
    the agent asks for dozens of cells of every worker once a second.
    """

    __slots__ = ("_places", "_sums", "_values", "raw")

    def __init__(self, places: Places, raw: bytes) -> None:
        """Take the bytes of a slot."""
        values = struct.unpack(f"<{len(raw) // CELL}q", raw)
        super().__init__({name: values[first] for name, (first, _) in places.items()})
        self.raw = raw
        self._values = values
        self._places = places
        self._sums: dict[str, int] = {}

    def __missing__(self, name: str) -> int:
        return 0

    def below_zero(self, name: str) -> bool:
        """Return whether any cell of the field `name` is; the last byte of each has its sign."""
        first, count = self._places.get(name, (0, 0))
        return not self.raw[(first + 1) * CELL - 1 : (first + count) * CELL : CELL].isascii()

    def run(self, name: str) -> tuple[int, ...]:
        """Return all cells of the field `name`."""
        first, count = self._places.get(name, (0, 0))
        return self._values[first : first + count]

    def total(self, name: str) -> int:
        """Return the sum of all cells of the field `name`."""
        if name not in self._sums:
            self._sums[name] = sum(self.run(name))
        return self._sums[name]

    def state(self, name: str) -> tuple[int, int]:
        """Return a state cell as (state, since in nanoseconds)."""
        value = self[name]
        return value & layout.STATE_MASK, value >> layout.STATE_BITS


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
            if len({read[at : at + CELL] for read in reads for at in group}) > 1:
                return False
        return True


def stamps(places: Places) -> Stamps:
    """Return where the stamps of a slot are; a release that lacks one is not held to it."""
    return tuple(
        tuple(places[name][0] * CELL for name in pair if name in places) for pair in _STAMPS
    )
