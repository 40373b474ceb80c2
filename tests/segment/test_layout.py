"""That the layout is what the golden segments say: a change without a new version fails here."""

from __future__ import annotations

import itertools

import pytest

from dlmon.segment import layout
from dlmon.segment.layout import CELL, FIELDS, LINE, Scope
from dlmon.segment.reader import Reading
from tests.segment import forge
from tests.segment.golden import write

GOLDEN = sorted(path.stem for path in write.HERE.glob("*.seg"))
RELEASED = [name for name in GOLDEN if name != write.FUTURE]

WHAT_TO_DO = (
    "The layout has changed. A field appended: raise MINOR. Anything else: raise MAJOR. Then run "
    "`python -m tests.segment.golden.write` and commit the new golden file; keep the others. (Was "
    "this version never released? Then remove its golden file, and run it.)"
)


def test_todays_writer_makes_the_golden_segment_of_todays_version() -> None:
    path = write.HERE / f"{write.CURRENT}.seg"
    assert path.exists(), WHAT_TO_DO
    assert write.today() == path.read_bytes(), WHAT_TO_DO


@pytest.mark.parametrize("name", RELEASED)
def test_no_field_has_moved_since_a_release_of_this_major_version(name: str) -> None:
    golden = _read(name).layout
    for scope in Scope:
        places, units = golden.places[scope], golden.units[scope]
        then = [(f, places.first[f], run, units[f]) for f, run in places.runs.items()]
        now = []
        for field in FIELDS[scope].values():
            first = field.offset // CELL
            now.append((field.name, first, slice(first, first + field.count), field.unit))
        assert now[: len(then)] == then, WHAT_TO_DO


@pytest.mark.parametrize("name", GOLDEN)
def test_dump_says_of_a_golden_segment_what_it_always_said(name: str) -> None:
    assert write.text(name) == (write.HERE / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_segment_holds_the_values_it_was_written_with(name: str) -> None:
    reading = _read(name)
    assert {key: reading.info.get(key) for key in forge.INFO} == forge.INFO
    assert reading.layout.created_ns == forge.CREATED
    for (slot, field), values in forge.busy().items():
        cells = reading.workers[slot - 1] if slot else reading.rank
        run = [values] if isinstance(values, int) else list(values)
        assert list(cells.run(field)[: len(run)]) == run, (slot, field)


def test_the_future_segment_is_of_a_later_minor_version_and_has_grown() -> None:
    plan = _read(write.FUTURE).layout
    assert plan.minor > layout.MINOR
    assert plan.slot_sizes > (layout.RANK_SLOT_SIZE, layout.WORKER_SLOT_SIZE)
    assert {"gpu_copy_ns", "temperature"} <= {*plan.places[0].first, *plan.places[1].first} - {
        name for fields in FIELDS.values() for name in fields
    }


def test_a_field_of_a_later_minor_version_reads_by_name() -> None:
    reading = _read(write.FUTURE)
    assert reading.rank["gpu_copy_ns"] == 1_500_000
    assert reading.workers[1].run("pages") == (4, 5, 6)


def test_a_field_the_writer_did_not_have_reads_as_nothing() -> None:
    rank = _read(write.CURRENT).rank
    assert rank["gpu_copy_ns"] == 0
    assert rank.run("gpu_copy_ns") == ()


def test_cells_are_aligned_in_a_slot_without_gap_or_overlap() -> None:
    for scope in Scope:
        fields = list(FIELDS[scope].values())
        assert fields[0].offset == 0
        for one, following in itertools.pairwise(fields):
            assert one.offset + one.count * CELL == following.offset
            assert following.offset % CELL == 0


def test_slots_begin_on_cache_lines_of_their_own() -> None:
    offsets = [layout.slot_offset(slot) for slot in range(4)]
    assert [offset % LINE for offset in offsets] == [0] * 4
    assert offsets[1] - offsets[0] == layout.RANK_SLOT_SIZE
    assert layout.file_size(2) == layout.slot_offset(3)


def test_the_largest_segment_is_within_what_a_reader_takes() -> None:
    assert layout.file_size(layout.MAX_WORKERS) <= layout.MAX_FILE_SIZE


def test_the_fetch_group_is_the_same_in_either_kind_of_slot() -> None:
    groups = []
    for scope in Scope:
        first = FIELDS[scope]["fetch_updating"].offset
        groups.append(
            [
                (f.name, f.offset - first, f.count)
                for f in FIELDS[scope].values()
                if f.offset >= first
            ]
        )
    assert groups[0] == groups[1]


def test_names_and_units_fit_their_place_in_the_table() -> None:
    for name, unit, *_ in forge.rows():
        assert len(name) <= 40
        assert len(unit) <= 12


def _read(name: str) -> Reading:
    return forge.read(write.HERE / f"{name}.seg")
