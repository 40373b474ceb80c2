"""Jobs beside agents, which all are ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands.launching import FREE, ending_agents, launch
from tests.jobs import Job, JobStarter

WAITS = "print('READY', flush=True)\ninput()\nprint('END')\n"


@pytest.fixture
def no_agent_is_left(segment_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DLMON_DIR", str(segment_dir))
    with ending_agents(segment_dir):
        yield


@pytest.fixture
def waiting(run_job: JobStarter, tmp_path: Path) -> Callable[..., Job]:
    """Start a job that does nothing until it is told, beside an agent."""
    (tmp_path / "waits.py").write_text(WAITS)

    def start(*options: str, env: dict[str, str | None] | None = None) -> Job:
        job = launch(run_job, *(options or (FREE,)), "waits.py", env=env)
        job.wait_for_output("READY")
        return job

    return start
