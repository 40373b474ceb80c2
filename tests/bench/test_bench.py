"""The benchmark measures every variant, and only what was really recorded."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import ROOT

QUICK = ("--quick", "--minutes", "0")
OURS = ["bare", "null", "dlmon"]
NEXT = "dlmon, next() alone"
PEERS = ["prometheus_client", "torch.profiler", "cProfile"]
PLACES = ["main", "worker", "job"]
TRACEML = importlib.util.find_spec("traceml_ai") is not None


def bench(*arguments: str, before: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the benchmark in a process of its own, as users do: errors of the shim are swallowed."""
    script = f"""\
        import sys
        {before}
        from bench.cli import main
        sys.exit(main())
    """
    environment = {k: v for k, v in os.environ.items() if k != "DLMON_STRICT"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *QUICK, *arguments],
        cwd=ROOT,
        env=environment | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def names(table: str) -> list[str]:
    """Return what stands in the first column of a table, without its heading."""
    return [line.split("  ")[0] for line in table.splitlines()[1:]]


def test_every_variant_has_a_row_and_nothing_but_the_report_is_on_stdout() -> None:
    done = bench("--only", "fetch", "--only", "inline")
    assert done.returncode == 0, done.stderr
    fetch, inline = done.stdout.split(": CPU microseconds per batch\n\n")[1:]
    assert names(fetch.partition("\n\n")[0]) == OURS
    rows = names(inline.partition("\n\n")[0])
    assert rows[:7] == [*OURS, NEXT, *PEERS]
    theirs = ["bare, TraceML's", "null, TraceML's", "TraceML"]
    missing = ["TraceML: not installed: pip install traceml-ai"]
    assert rows[7:] == (theirs if TRACEML else missing)
    aims = done.stdout.partition("what dlmon adds to")[2]
    assert "\nnext() alone " in aims
    assert "\na fetch alone " in aims
    assert "\x1b" not in done.stdout + done.stderr, "colour in a pipe"
    assert "bench: (a) num_workers=0, trivial samples" in done.stderr


@pytest.mark.slow
def test_with_workers_the_main_process_the_worker_and_their_sum_are_measured() -> None:
    done = bench("--only", "workers", "--no-peers", "--json")
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)["measurements"]["workers"]
    assert [(row["where"], row["variant"]) for row in measured["rows"]] == [
        (where, variant) for where in PLACES for variant in OURS
    ]
    assert all(row["median"] > 0 and row["blocks"] >= 2 for row in measured["rows"])
    assert measured["traceml"] is None


@pytest.mark.slow
def test_all_loops_are_measured_with_all_variants() -> None:
    done = bench("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found["measurements"]) == ["fetch", "inline", "workers", "work"]
    for name in ("workers", "work"):
        rows = found["measurements"][name]["rows"]
        assert [(row["where"], row["variant"]) for row in rows] == [
            (where, variant) for where in PLACES for variant in (*OURS, *PEERS)
        ]
    assert len(found["aims"]) == 8


@pytest.mark.slow
def test_a_traceml_that_does_not_start_costs_nobody_else_a_row(tmp_path: Path) -> None:
    (tmp_path / "traceml_ai.py").write_text("def init(**_): raise RuntimeError('no telemetry')\n")
    done = bench("--only", "inline", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "RuntimeError: no telemetry" in done.stderr
    rows = names(done.stdout.split(": CPU microseconds per batch\n\n")[1].partition("\n\n")[0])
    assert rows[:7] == [*OURS, NEXT, *PEERS]
    assert rows[7].startswith("TraceML: not measured: its process ended with status 1")


def test_a_shim_that_is_switched_off_is_not_measured() -> None:
    done = bench("--only", "inline", DLMON_DISABLE="1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: dlmon does not observe the iterator" in done.stderr


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("_recorder.IteratorRecorder.delivered", "batches delivered"),
        ("_fetch.FetchRecorder.begin", "batches fetched"),
    ],
    ids=["next", "fetch"],
)
def test_a_shim_that_fails_silently_is_not_measured(place: str, message: str) -> None:
    broken = f"from dlmon.shim import _fetch, _recorder; {place} = None"
    done = bench("--only", "inline", "--no-peers", before=broken)
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{message}, the loop had" in done.stderr


def test_a_worker_that_records_nothing_is_not_measured() -> None:
    broken = "from dlmon.shim import _worker; _worker.attach = None"
    done = bench("--only", "workers", "--no-peers", before=broken)
    assert done.returncode == 1
    assert "recorded 0 batches fetched, the loop had" in done.stderr
