"""What all tests share: a strict shim, a clean environment, real tools, segments and jobs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gpus import FakeGpus, build
from tests.jobs import JobStarter

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "bin"

LAUNCHERS = ("DLMON_", "SLURM_", "TORCHELASTIC_")
OWN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")

# Before anything imports the shim, and for every process the tests start: what a launcher or a
# user has set is no part of a test, and an error inside the shim is raised instead of swallowed.
for _variable in list(os.environ):
    if _variable.startswith(LAUNCHERS) or _variable in OWN:
        del os.environ[_variable]
os.environ["DLMON_STRICT"] = "1"

# A shell that runs the tests in the background, or nohup, has these ignored, also in every job.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _ignored in (signal.SIGQUIT, signal.SIGHUP):
    signal.signal(_ignored, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def strict_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the shim raise its own errors, also where the test before wanted them swallowed."""
    monkeypatch.setenv("DLMON_STRICT", "1")
    if guard := sys.modules.get("dlmon.shim._guard"):
        monkeypatch.setattr(guard, "strict", True)


def require_tool(name: str) -> Path:
    """Return the path of a program; skip the test where there is none, or fail it in CI."""
    places = (TOOLS, Path(sys.executable).parent)  # from a package of Debian's, from a wheel
    own = [place / name for place in places if (place / name).exists()]
    found = own[0] if own else shutil.which(name)
    if found is not None:
        return Path(found)
    reason = f"{name} is not installed: `make tools` says why"
    if os.environ.get("CI", "").lower() not in ("", "0", "false"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Prometheus's own checker of metrics, rules and configuration."""
    return require_tool("promtool")


@pytest.fixture(scope="session")
def prometheus() -> Path:
    """A real Prometheus server."""
    return require_tool("prometheus")


@pytest.fixture(scope="session")
def chromium() -> Path:
    """A real browser."""
    return require_tool("chromium")


@pytest.fixture
def segment_dir() -> Iterator[Path]:
    """A fresh private directory for segments in shared memory.

    Its name is none that an agent looks for, so that what else runs on the machine leaves it alone.
    """
    directory = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))  # mode 0700
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def run_job(tmp_path: Path, segment_dir: Path) -> Iterator[JobStarter]:
    """Start Python scripts as jobs whose segments are in `segment_dir`; see `tests.jobs`."""
    starter = JobStarter(tmp_path, segment_dir)
    yield starter
    starter.close()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that does as it is told; see `tests.gpus`."""
    folder = tmp_path_factory.mktemp("nvml")
    build(require_tool("gcc"), folder)
    return folder


@pytest.fixture
def fake_gpus(nvml_library: Path, tmp_path: Path) -> FakeGpus:
    """The GPUs of processes that are started with its environment: none at first."""
    return FakeGpus(nvml_library, tmp_path)
