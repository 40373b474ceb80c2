"""A reader beside a writer that never rests: no value is torn, and what must agree agrees."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dlmon.segment import meaning
from dlmon.segment.reader import Reading, SegmentFile
from tests.jobs import Job, JobStarter

READS = 30_000
ALL_BYTES = 0x0101010101010101
"""Times n, n < 128: each byte of the cell is n, so that half a store would show."""

WRITER = """
    import os, sys
    from time import monotonic_ns
    from dlmon.segment import layout
    from dlmon.segment.writer import create

    segment = create(os.environ["DLMON_DIR"], {}, 1)
    cells = segment.cells
    at = lambda name, slot=0: layout.cell_index(slot, name)
    updating, updated, alone = at("updating"), at("updated"), at("shim_errors")
    a, b, c = at("startup_ns"), at("iterations"), at("step_histogram") + 63
    fetch_updating, fetch_updated = at("fetch_updating", 1), at("fetch_updated", 1)
    d, e = at("fetch_ns", 1), at("fetch_histogram", 1) + 63
    n = 0
    while True:
        n += 1
        value = n % 127 * 0x0101010101010101
        cells[updating] = now = monotonic_ns()
        cells[a] = value
        cells[b] = value
        cells[c] = value
        cells[updated] = now
        cells[alone] = n
        cells[fetch_updating] = now
        cells[d] = n
        cells[e] = n
        cells[fetch_updated] = now
        for _ in range(n % 1000):  # from no rest at all to that of a quick loop
            pass
"""

LOOP = """
    import dlmon
    dlmon.instrument()
    from torch.utils.data import DataLoader, Dataset

    class Numbers(Dataset):
        def __len__(self):
            return 10**12

        def __getitem__(self, i):
            if i % 21 == 20:  # the last of every seventh batch
                raise ValueError(i)
            return i

    iterator = iter(DataLoader(Numbers(), batch_size=3, collate_fn=len))
    while True:
        try:
            next(iterator)
        except ValueError:
            pass
"""


def readings(job: Job, segment_dir: Path) -> Iterator[Reading]:
    """Yield READS readings of the one segment of a job that is writing it."""
    (path,) = job.wait_for(lambda: list(segment_dir.glob("[!.]*.seg")), "segment")
    file = SegmentFile(str(path))
    try:
        job.wait_for(lambda: file.read(0).stale == 0, "first settled reading")
        for _ in range(READS):
            yield file.read(0)
        assert not job.ended(), job.output()
    finally:
        file.close()


def test_cells_that_must_agree_always_do(run_job: JobStarter, segment_dir: Path) -> None:
    seen: set[int] = set()
    settled = before = 0
    for reading in readings(run_job(WRITER), segment_dir):
        rank, worker = reading.rank, reading.workers[0]
        value = rank["startup_ns"]
        assert (value, value) == (rank["iterations"], rank.run("step_histogram")[63])
        assert value == value % 256 * ALL_BYTES
        assert worker["fetch_ns"] == meaning.fetched(worker)
        assert rank["shim_errors"] >= before, "a counter written with single stores went down"
        assert reading.rank_holder is not None
        before = rank["shim_errors"]
        seen.add(worker["fetch_ns"])
        settled += reading.stale == 0
    assert settled > READS // 10, "the reader hardly ever caught the writer at rest"
    assert len(seen) > READS // 100, "the writer hardly moved: this proves nothing"


def test_what_a_real_loop_records_always_agrees(run_job: JobStarter, segment_dir: Path) -> None:
    seen: set[int] = set()
    for reading in readings(run_job(LOOP), segment_dir):
        rank = reading.rank
        fetched, delivered = meaning.fetched(rank), meaning.batches(rank)
        assert meaning.samples(rank) == 3 * fetched
        assert 0 <= fetched - 6 * rank["fetch_failed"] <= 6
        assert 0 <= delivered - 6 * sum(rank.run("errors")) <= 6
        assert delivered <= fetched <= delivered + 1
        for nanoseconds, histogram in (("fetch_ns", "fetch"), ("step_ns", "step")):
            counts = rank.run(f"{histogram}_histogram")
            assert sum((1 << i >> 1) * n for i, n in enumerate(counts)) <= rank[nanoseconds]
        seen.add(fetched)
    assert len(seen) > READS // 100, "the loop hardly moved: this proves nothing"
