"""`tools/compare_outcomes` tells which tests of a suite end otherwise under `dlmon run`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SUITE = """
    import sys

    import pytest
    from torch.utils.data import DataLoader


    @pytest.fixture
    def breaks_down():
        yield
        raise OSError


    def test_passes():
        assert len(list(DataLoader([1, 2, 3]))) == 3


    def test_fails_anyway():
        assert len(list(DataLoader([1, 2, 3]))) == 4


    @pytest.mark.skip
    def test_is_skipped():
        pass


    def test_ends_in_an_error(breaks_down):
        pass


    def test_knows_dlmon():
        assert "dlmon.shim" not in sys.modules
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A file of tests, outside of this repository's configuration."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\n")
    lines = [line.removeprefix("    ") for line in SUITE.splitlines()]
    (tmp_path / "test_suite.py").write_text("\n".join(lines))
    return tmp_path


def compared(*words: str, cwd: Path, status: int) -> str:
    """Compare, and return what is reported on standard output, or else on standard error."""
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "compare_outcomes", *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert run.returncode == status, run.stdout + run.stderr
    return run.stderr if status == 2 else run.stdout


def pytest_words(*words: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", "test_suite.py", *words]


def test_a_test_that_ends_otherwise_is_named(suite: Path) -> None:
    report = compared(*pytest_words(), cwd=suite, status=1).splitlines()
    assert report[-2:] == [
        "test_suite::test_knows_dlmon: bare passed; dlmon failed",
        "5 tests (1 error, 1 failed, 2 passed, 1 skipped); 1 differ, 0 flaky",
    ]


def test_suites_that_end_alike_are_no_difference(suite: Path) -> None:
    words = pytest_words("-k", "not knows_dlmon")
    report = compared("--lenient", *words, cwd=suite, status=0).splitlines()
    assert report[-1] == "4 tests (1 error, 1 failed, 1 passed, 1 skipped); 0 differ, 0 flaky"


def test_a_comparison_without_dlmon_says_nothing(suite: Path) -> None:
    told = compared(*pytest_words("-k", "skipped"), cwd=suite, status=2)
    assert "dlmon observed no DataLoader in these tests" in told


def test_a_command_that_cannot_be_run_is_no_difference(tmp_path: Path) -> None:
    assert "no results: false" in compared("false", cwd=tmp_path, status=2)
    assert "No such file" in compared("no-such-command", cwd=tmp_path, status=2)
