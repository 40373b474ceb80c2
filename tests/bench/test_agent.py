"""The benchmark of the agent starts what it measures, measures it, and ends it."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.slow
def test_every_figure_is_printed_and_nothing_is_left() -> None:
    before = set(os.listdir("/dev/shm"))
    few = ("--seconds", "1", "--settle", "3", "--workers", "2", "--ranks", "2", "--megabytes", "50")
    done = subprocess.run(
        [sys.executable, "-m", "bench.agent", *few],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    cost = r"(?:without|with) PSS +[0-9.]+% +[0-9]+ MB +[0-9]+ MB"
    assert re.fullmatch(rf"2 workers of a real DataLoader +{cost}", lines[2])
    assert re.fullmatch(rf"4 workers of 2 ranks, simulated +{cost}", lines[5])
    rows = lines[-3:]
    assert [row.split("  ")[0] for row in rows] == [
        "no agent",
        "agent without PSS",
        "agent with PSS",
    ]
    for row in rows:
        p50, p99, p999, most = map(float, row.split()[-4:])
        assert 0 < p50 <= p99 <= p999 <= most
    assert not {name for name in set(os.listdir("/dev/shm")) - before if "bench" in name}
