"""`dlmon dump` shows a segment as text or JSON, whoever wrote it and whatever became of it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlmon.segment import dump
from dlmon.segment.layout import FIELDS, Scope
from tests.jobs import Job, JobStarter, wait_for
from tests.segment import forge
from tests.segment.golden import write

JOB = """
    import dlmon
    dlmon.instrument(run="try-1")
    from torch.utils.data import DataLoader

    if __name__ == "__main__":
        train = DataLoader(range(40), batch_size=4, num_workers=2)
        iterator = iter(train)
        next(iterator)
        next(iterator)
        print("iterating", flush=True)
        input()
        list(iterator)
        del iterator
        print("idle", flush=True)
        input()
"""


def dumped(
    *arguments: str | Path, status: int = 0, env: dict[str, str] | None = None
) -> tuple[str, str]:
    ran = subprocess.run(
        [sys.executable, "-m", "dlmon", "dump", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )
    assert ran.returncode == status, ran.stderr
    return ran.stdout, ran.stderr


def as_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dumped(path, "--json")[0])
    return found


def statuses(path: Path) -> list[str]:
    return [slot["status"] for slot in as_json(path)["slots"]]


def segment(job: Job, directory: Path) -> Path:
    job.wait_for_output("iterating")
    (path,) = directory.glob("*.seg")
    return path


def test_of_a_living_job_every_writer_is_named_alive(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    path = segment(job, segment_dir)
    text, said = dumped(path)
    assert said == ""
    assert "\x1b" not in text, "no colour in a pipe"
    assert f"segment {path}" in text
    assert f"rank: alive, pid {job.pid}, 2 batches\n" in text
    workers = r"^worker \d: alive, pid \d+, \d fetched, \d+ samples$"
    assert len(re.findall(workers, text, flags=re.MULTILINE)) == 2
    assert re.search(r"^  run +try-1$", text, flags=re.MULTILINE)
    assert re.search(r"^  phase +step since [\d.]+ m?s ago$", text, flags=re.MULTILINE)
    assert re.search(r"^  hooks +all$", text, flags=re.MULTILINE)
    assert re.search(r"^  wait_histogram +1  <[\d.]+ \ws: 1$", text, flags=re.MULTILINE)
    job.tell()
    job.wait_for_output("idle")
    wait_for(lambda: statuses(path)[1:] == ["ended in order"] * 2, "end of the workers")
    text, _ = dumped(path)
    assert re.search(r"^  phase +idle since ", text, flags=re.MULTILINE)
    assert "worker 1: ended in order, 5 fetched, 20 samples" in text


def test_of_a_killed_job_the_dead_and_the_orphans_are_told_apart(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB)
    path = segment(job, segment_dir)
    first, second = (slot["pid"] for slot in as_json(path)["slots"][1:])
    os.kill(second, signal.SIGSTOP)  # else its watchdog ends it when the rank is gone
    os.kill(first, signal.SIGKILL)
    job.kill()
    job.finish(status=-signal.SIGKILL)
    orphan = f"alive, pid {second}, orphan"
    wait_for(lambda: statuses(path) == ["dead", "dead", orphan], "death of the first")
    text, _ = dumped(path)
    assert "rank: dead" in text
    assert "worker 0: dead" in text
    assert f"worker 1: {orphan}" in text


def test_of_a_loop_without_workers_the_rank_has_fetched(segment_dir: Path) -> None:
    cells: forge.CellValues = {
        (0, "fetch_histogram"): [0, 5],
        (0, "samples_each"): 3,
        (0, "startups"): 2,
    }
    path = forge.put(segment_dir, forge.forge(workers=0, cells=cells))
    assert "rank: dead, 2 batches, 5 fetched, 15 samples\n" in dumped(path)[0]


def test_json_has_every_field_with_its_unit_and_raw_cells(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forge.forge(cells=forge.busy()))
    found = as_json(path)
    assert found["path"] == str(path)
    assert found["layout"]["created"] == forge.CREATED / 1e9
    assert found["info"] == forge.INFO
    assert [slot["of"] for slot in found["slots"]] == ["rank", "worker", "worker"]
    assert [slot["worker"] for slot in found["slots"]] == [None, 0, 1]
    for slot in found["slots"]:
        fields = FIELDS[Scope.WORKER if slot["slot"] else Scope.RANK]
        assert {name: field["unit"] for name, field in slot["fields"].items()} == {
            name: field.unit for name, field in fields.items()
        }
    for (number, name), value in forge.busy().items():
        shown = found["slots"][number]["fields"][name]["value"]
        assert shown == value if isinstance(value, int) else shown[: len(value)] == list(value)


def test_a_segment_of_a_later_minor_version_shows_the_fields_it_has() -> None:
    text, _ = dumped(write.HERE / f"{write.FUTURE}.seg")
    assert re.search(r"^  gpu_copy_ns +1\.5 ms$", text, flags=re.MULTILINE)
    assert re.search(r"^  temperature +310 \(kelvin\)$", text, flags=re.MULTILINE)
    fields = as_json(write.HERE / f"{write.FUTURE}.seg")["slots"][2]["fields"]
    assert fields["pages"] == {"unit": "count", "value": [4, 5, 6]}


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_what_is_no_segment_is_one_line_and_status_2(segment_dir: Path, option: list[str]) -> None:
    wrong = {
        segment_dir / "none.seg": "No such file or directory",
        segment_dir: "not a regular file",
        forge.put(segment_dir, b"#!/bin/sh\n" * 20): ("magic b'#!/bin/s', expected b'DLMONSEG'"),
        forge.put(segment_dir, forge.forge(header={"major": 2}), "two.seg"): (
            "layout 2.1, this release reads 1.x; upgrade the agent"
        ),
        forge.put(segment_dir, forge.forge(info=b"?"), "info.seg"): (
            "info is not JSON (Expecting value: line 1 column 1 (char 0))"
        ),
    }
    for path, sentence in wrong.items():
        shown, said = dumped(path, *option, status=2)
        assert shown == ""
        assert said == f"dlmon dump: segment {path}: {sentence}\n"


def test_what_an_info_holds_cannot_move_the_cursor_nor_break_a_narrow_encoding(
    segment_dir: Path,
) -> None:
    info = {**forge.INFO, "script": "\x1b[2Jtrain\n.py", "user": "Zoë \ud800", "rank": float("nan")}
    path = forge.put(segment_dir, forge.forge(info=info))
    text, _ = dumped(path, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert "script       \\x1b[2Jtrain\\n.py" in text
    assert "user         Zo\\xeb \\ud800" in text
    assert as_json(path)["info"]["rank"] == "nan"


def terminal(path: Path, env: dict[str, str]) -> str:
    """Return what `dlmon dump` writes to a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "dlmon", "dump", str(path)],
        stdout=slave,
        env={**os.environ, **env},
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 65536):
            shown += chunk
    except OSError:  # EIO: the other end is closed
        pass
    os.close(master)
    assert process.wait() == 0
    return shown.decode()


def test_colours_are_for_terminals_that_want_them(segment_dir: Path) -> None:
    path = forge.put(segment_dir, forge.forge(cells=forge.busy()))
    assert "\x1b[31mdead\x1b[0m" in terminal(path, {"NO_COLOR": ""})
    assert "\x1b" not in terminal(path, {"NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (1000, "1 us"),
        (999_499, "999 us"),
        (999_500, "1 ms"),
        (1_234_567, "1.23 ms"),
        (59_900_000_000, "59.9 s"),
        (99_940_000_000, "99.9 s"),
        (99_960_000_000, "1 min 40 s"),
        (3_600_000_000_000, "1 h 0 min"),
        (90_061_000_000_000, "1 d 1 h"),
        (2**63, "106,751 d 23 h"),
        (-1_500_000, "-1.5 ms"),
    ],
)
def test_durations_have_three_digits_or_two_units(nanoseconds: int, text: str) -> None:
    assert dump.duration(nanoseconds) == text
