"""Whatever bytes a file has, reading it succeeds or raises SegmentError: nothing else, ever."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dlmon.errors import SegmentError
from dlmon.segment import dump, layout, reader
from tests.segment import forge, hostile

some = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(error: SegmentError) -> None:
    assert error.reason in SegmentError.REASONS
    assert str(error).startswith("segment ")
    assert "\n" not in str(error)


def read_and_dump(data: bytes) -> bool:
    """Say if `data` is a readable segment; all that a reader does with one is done."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dlt-") as directory:
        path = forge.put(Path(directory), data)
        try:
            reading = forge.read(path)
        except SegmentError as error:
            check(error)
            return False
    text = "\n".join(dump.lines(reading, 1.75e9, lambda text, _: text))
    assert text.replace("\n", "").isprintable()
    json.dumps(dump.as_json(reading, 1.75e9), allow_nan=False)
    return True


@some
@given(st.one_of(st.binary(max_size=400), st.binary(max_size=400).map(layout.MAGIC.__add__)))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    assert not read_and_dump(data)


@some
@given(hostile.segments())
@example(forge.future_minor())
def test_a_hostile_segment_is_read_or_refused(data: bytes) -> None:
    read_and_dump(data)


@some
@given(hostile.damages())
def test_a_damaged_segment_is_read_or_refused(damage: hostile.Damage) -> None:
    read_and_dump(damage(forge.forge(cells=forge.busy())))


@some
@given(hostile.headers(), st.binary(max_size=200))
def test_a_header_is_taken_or_refused_whatever_the_bytes_after_it(
    header: dict[str, int], tail: bytes
) -> None:
    data = forge.forge(header=header)[: layout.HEADER_SIZE] + tail
    try:
        plan = reader.parse("a.seg", data, len(data))
    except SegmentError as error:
        check(error)
    else:
        assert plan.slot_offset(plan.workers) + plan.slot_sizes[plan.workers > 0] == len(data)


@some
@given(hostile.infos())
def test_an_info_is_an_object_or_refused(text: bytes) -> None:
    try:
        assert isinstance(reader.parse_info("a.seg", text), dict)
    except SegmentError as error:
        check(error)


def test_a_forged_segment_is_readable_so_that_the_above_proves_something() -> None:
    assert read_and_dump(forge.forge(cells=forge.busy()))
    assert read_and_dump(forge.future_minor())
