"""Photographs and demos for the tests of the demo."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dlmon.demo import photos
from tests.demo.running import Demo

PER_PHOTOGRAPH = 8


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of PER_PHOTOGRAPH files for each photograph; a test does not change it."""
    folder = tmp_path_factory.mktemp("photographs")
    list(photos.write(folder, PER_PHOTOGRAPH))
    return folder


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """A directory for TMPDIR, with a path short enough for sockets in it."""
    directory = Path(tempfile.mkdtemp(prefix="dlt-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def start_demo(tmp_path: Path, short_tmp: Path, segment_dir: Path) -> Iterator[Callable[..., Demo]]:
    """Start `dlmon demo` with arguments, once in a test."""
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path / "log", short_tmp, segment_dir, *arguments))
        return started[-1]

    yield start
    for demo in started:
        demo.close()
