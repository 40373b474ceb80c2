"""What the tests of real frameworks share; they run in an environment of their own."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ecosystem.watching import Watch
from tests.jobs import JobStarter

TIMEOUT_SECONDS = 600
"""A test runs up to three jobs, and a framework takes seconds to import, on a quiet machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.ecosystem)
            item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.fixture(autouse=True, scope="module")
def framework(request: pytest.FixtureRequest) -> None:
    """Skip a module whose `FRAMEWORK` is not installed, or fail it in CI."""
    name: str = getattr(request.module, "FRAMEWORK", "torch")
    if importlib.util.find_spec(name) is None:
        reason = f"{name} is not installed: `make ecosystem` installs it"
        if os.environ.get("CI", "").lower() not in ("", "0", "false"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def watch(run_job: JobStarter, segment_dir: Path, tmp_path: Path) -> Iterator[Watch]:
    """Run a job with and without dlmon; see `tests.ecosystem.watching`."""
    watch = Watch(run_job, segment_dir, tmp_path)
    yield watch
    watch.close()
