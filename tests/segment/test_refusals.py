"""What is no segment is refused in one sentence: what, its value, and what was expected."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlmon.errors import SegmentError
from dlmon.segment import layout, reader
from dlmon.segment.reader import SegmentFile
from dlmon.segment.writer import create
from tests.jobs import JobStarter
from tests.segment import forge
from tests.segment.forge import forge as forged

SIZE = layout.file_size(2)
INFO_OFFSET, SLOTS = layout.INFO_OFFSET, layout.SLOTS_OFFSET
RANK_SLOT = layout.RANK_SLOT_SIZE
TABLE_BYTES = layout.TABLE_ENTRIES * layout.ENTRY_SIZE

HEADERS: list[tuple[dict[str, Any], str, str]] = [
    ({"magic": b"DLMONSEX"}, "magic b'DLMONSEX', expected b'DLMONSEG'", "format"),
    ({"major": 2}, "layout 2.1, this release reads 1.x; upgrade the agent", "version"),
    (
        {"major": 0, "minor": 9},
        "layout 0.9, this release reads 1.x; upgrade dlmon in the job",
        "version",
    ),
    ({"ready": 0}, "ready is 0, expected 1", "not_ready"),
    ({"ready": -1}, "ready is -1, expected 1", "not_ready"),
    ({"header_size": 127}, f"header size is 127, expected 128 to {SIZE}", "bounds"),
    ({"header_size": SIZE + 1}, f"header size is {SIZE + 1}, expected 128 to {SIZE}", "bounds"),
    ({"size": SIZE - 1}, f"header says {SIZE - 1} bytes, the file has {SIZE}", "bounds"),
    ({"size": 2**64 - 1}, f"header says {2**64 - 1} bytes, the file has {SIZE}", "bounds"),
    ({"workers": 4097}, "workers is 4097, expected 0 to 4096", "bounds"),
    ({"entries": 0}, "table entries is 0, expected 1 to 1024", "bounds"),
    ({"entries": 1025}, "table entries is 1025, expected 1 to 1024", "bounds"),
    ({"entry_size": 63}, "table entry size is 63, expected 64 to 4096", "bounds"),
    ({"entry_size": 4097}, "table entry size is 4097, expected 64 to 4096", "bounds"),
    ({"table": 127}, f"table offset is 127, expected 128 to {SIZE - TABLE_BYTES}", "bounds"),
    (
        {"table": SIZE - TABLE_BYTES + 1},
        f"table offset is {SIZE - TABLE_BYTES + 1}, expected 128 to {SIZE - TABLE_BYTES}",
        "bounds",
    ),
    ({"entries": 1024}, f"table offset is 128, expected 128 to {SIZE - 65536}", "bounds"),
    ({"info_size": 1}, "info size is 1, expected 2 to 1048576", "bounds"),
    ({"info_size": 2**20 + 1}, "info size is 1048577, expected 2 to 1048576", "bounds"),
    ({"info_offset": 0}, f"info offset is 0, expected 128 to {SIZE - 8192}", "bounds"),
    (
        {"info_offset": SIZE - 8191},
        f"info offset is {SIZE - 8191}, expected 128 to {SIZE - 8192}",
        "bounds",
    ),
    ({"rank_slot_size": 0}, f"rank slot size is 0, expected 8 to {SIZE}", "bounds"),
    ({"rank_slot_size": 72}, "rank slot size is 72, expected a multiple of 64", "format"),
    (
        {"worker_slot_size": 2**32 - 1},
        f"worker slot size is {2**32 - 1}, expected 8 to {SIZE}",
        "bounds",
    ),
    ({"worker_slot_size": 8}, "worker slot size is 8, expected a multiple of 64", "format"),
    ({"slots": 127}, f"slots offset is 127, expected 128 to {SIZE}", "bounds"),
    ({"slots": SLOTS + 8}, f"slots offset is {SLOTS + 8}, expected a multiple of 64", "format"),
    ({"slots": SLOTS - 64}, f"slots end at {SIZE - 64}, the file at {SIZE}", "bounds"),
    (
        {"workers": 3},
        f"slots end at {SIZE + layout.WORKER_SLOT_SIZE}, the file at {SIZE}",
        "bounds",
    ),
]

FIELDS: list[tuple[forge.Row, str, str]] = [
    ((b"heat", b"count", 2, 0, 1), "field 'heat' has scope 2, expected 0 or 1", "format"),
    (
        (b"heat", b"count", 0, 4, 1),
        "offset of field 'heat' is 4, expected a multiple of 8",
        "format",
    ),
    (
        (b"heat", b"count", 1, 0, 0),
        f"cells of field 'heat' is 0, expected 1 to {layout.WORKER_SLOT_SIZE // 8}",
        "bounds",
    ),
    (
        (b"heat", b"count", 1, 0, 2**32 - 1),
        f"cells of field 'heat' is {2**32 - 1}, expected 1 to {layout.WORKER_SLOT_SIZE // 8}",
        "bounds",
    ),
    (
        (b"heat", b"count", 0, RANK_SLOT - 8, 2),
        f"offset of field 'heat' is {RANK_SLOT - 8}, expected 0 to {RANK_SLOT - 16}",
        "bounds",
    ),
    ((b"phase", b"state", 0, 0, 1), "field 'phase' stands twice in the table", "format"),
    ((b"ph\xe4se", b"state", 3, 0, 1), "field 'ph�se' has scope 3, expected 0 or 1", "format"),
]

INFOS = [
    (b"", "info is not JSON (Expecting value: line 1 column 1 (char 0))"),
    (b'{"a":1', "info is not JSON (Expecting ',' delimiter: line 1 column 7 (char 6))"),
    (b"[1]", "info is a list, expected an object"),
    (b'"run"', "info is a str, expected an object"),
    (b"null", "info is a NoneType, expected an object"),
]


def refusal(act: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(SegmentError) as caught:
        act()
    assert caught.value.reason in SegmentError.REASONS
    return str(caught.value), caught.value.reason


@pytest.mark.parametrize(("header", "sentence", "reason"), HEADERS, ids=lambda v: str(v)[:40])
def test_a_wrong_header_is_refused(header: dict[str, Any], sentence: str, reason: str) -> None:
    data = forged(header=header)
    assert refusal(lambda: reader.parse("a.seg", data, SIZE)) == (
        f"segment a.seg: {sentence}",
        reason,
    )


@pytest.mark.parametrize(("row", "sentence", "reason"), FIELDS, ids=lambda v: str(v)[:40])
def test_a_wrong_field_is_refused(row: forge.Row, sentence: str, reason: str) -> None:
    data = forged(table=[*forge.rows(), row])
    said = refusal(lambda: reader.parse("a.seg", data, len(data)))
    assert said == (f"segment a.seg: {sentence}", reason)


@pytest.mark.parametrize(("text", "sentence"), INFOS)
def test_a_wrong_info_is_refused(text: bytes, sentence: str) -> None:
    said = refusal(lambda: reader.parse_info("a.seg", text.ljust(64, b"\0")))
    assert said == (f"segment a.seg: {sentence}", "info")


@pytest.mark.parametrize(
    "text",
    [b"\xff\xfe\xff", b"{" + b'"a":{' * 100_000, b"[" * 500_000, b'{"a":' + b"9" * 5000 + b"}"],
)
def test_an_info_no_parser_takes_is_refused(text: bytes) -> None:
    sentence, reason = refusal(lambda: reader.parse_info("a.seg", text))
    assert sentence.startswith("segment a.seg: info is not JSON (")
    assert reason == "info"


def test_a_header_cut_short_is_refused() -> None:
    said = refusal(lambda: reader.parse("a.seg", forged()[:127], 127))
    assert said == ("segment a.seg: has 127 bytes, a header has 128", "bounds")


def test_a_file_cut_short_between_its_size_and_its_bytes_is_refused() -> None:
    said = refusal(lambda: reader.parse("a.seg", forged()[:200], SIZE))
    assert said == (f"segment a.seg: has 200 bytes, expected {SIZE}; it was cut short", "bounds")


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (127, 127), (200, 200), (SIZE - 1, SIZE - 1)])
def test_a_file_cut_short_while_open_is_refused(segment_dir: Path, size: int, kept: int) -> None:
    path = forge.put(segment_dir, forged())
    file = SegmentFile(str(path))
    os.truncate(path, size)
    said = refusal(lambda: file.read(0))
    assert said == (
        f"segment {path}: has {kept} bytes, expected {SIZE}; it was cut short",
        "bounds",
    )
    file.close()


def test_a_file_that_has_grown_while_open_is_read_as_far_as_it_was(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forged(cells=forge.busy()))
    file = SegmentFile(str(path))
    os.truncate(path, SIZE + 4096)
    assert file.read(0).rank["worker_starts"] == 4
    file.close()


def test_an_info_that_is_overwritten_while_open_is_refused(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forged())
    file = SegmentFile(str(path))
    with path.open("r+b") as same:
        same.seek(INFO_OFFSET)
        same.write(b"\xff" * 100)
    assert refusal(lambda: file.read(0))[1] == "info"
    file.close()


@pytest.mark.parametrize("size", [0, 1, 127])
def test_a_file_too_small_is_refused(segment_dir: Path, size: int) -> None:
    path = forge.put(segment_dir, forged()[:size])
    said = refusal(lambda: SegmentFile(str(path)))
    assert said == (f"segment {path}: has {size} bytes, expected 128 to 4194304", "bounds")


def test_a_file_too_large_is_refused_without_reading_it(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forged())
    os.truncate(path, 1 << 40)  # a hole: it takes no memory
    said = refusal(lambda: SegmentFile(str(path)))
    assert said == (f"segment {path}: has {1 << 40} bytes, expected 128 to 4194304", "bounds")


def test_a_missing_file_is_refused(segment_dir: Path) -> None:
    path = segment_dir / "none.seg"
    said = refusal(lambda: SegmentFile(str(path)))
    assert said == (f"segment {path}: No such file or directory", "io")


def test_a_symbolic_link_is_refused(segment_dir: Path) -> None:
    link = segment_dir / "link.seg"
    link.symlink_to(forge.put(segment_dir, forged()))
    said = refusal(lambda: SegmentFile(str(link)))
    assert said == (f"segment {link}: not a regular file", "owner")


def test_a_fifo_is_refused_without_waiting_for_its_writer(segment_dir: Path) -> None:
    path = segment_dir / "fifo.seg"
    os.mkfifo(path)
    assert refusal(lambda: SegmentFile(str(path))) == (
        f"segment {path}: not a regular file",
        "owner",
    )


def test_a_directory_is_refused(segment_dir: Path) -> None:
    said = refusal(lambda: SegmentFile(str(segment_dir)))
    assert said == (f"segment {segment_dir}: not a regular file", "owner")


def test_a_device_is_refused() -> None:
    assert refusal(lambda: SegmentFile("/dev/zero"))[0] == "segment /dev/zero: not a regular file"


def test_a_file_of_two_names_is_refused(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forged())
    os.link(path, segment_dir / "other.seg")
    said = refusal(lambda: SegmentFile(str(path)))
    assert said == (f"segment {path}: has 2 links, expected 1", "owner")


def test_a_file_of_another_owner_is_refused(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forged())
    mine = os.getuid()
    said = refusal(lambda: SegmentFile(str(path), owner=mine + 1))
    assert said == (f"segment {path}: belongs to uid {mine}, expected {mine + 1}", "owner")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_given_away_is_refused(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forged())
    os.chown(path, 65534, -1)
    said = refusal(lambda: SegmentFile(str(path), owner=0))
    assert said == (f"segment {path}: belongs to uid 65534, expected 0", "owner")


def test_a_segment_of_this_very_process_is_refused(segment_dir: Path, run_job: JobStarter) -> None:
    segment = create(str(segment_dir), forge.INFO, 1)
    sentence = (
        f"segment {segment.path}: is written by this very process, whose locks reading would drop; "
        "read it from another process"
    )
    assert refusal(lambda: SegmentFile(segment.path)) == (sentence, "owner")
    asks = f"""
        from dlmon.segment.reader import SegmentFile
        print(SegmentFile({segment.path!r}).read(0).rank_holder)
    """
    assert run_job(asks).finish() == f"{os.getpid()}\n"


def test_a_file_that_may_not_be_read_is_refused(segment_dir: Path, run_job: JobStarter) -> None:
    path = forge.put(segment_dir, forged())
    path.chmod(0o000)
    segment_dir.chmod(0o755)
    reads = f"""
        import os
        from dlmon.errors import SegmentError
        from dlmon.segment.reader import SegmentFile
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            SegmentFile({str(path)!r})
        except SegmentError as error:
            print(error)
    """
    assert run_job(reads).finish() == f"segment {path}: Permission denied\n"
