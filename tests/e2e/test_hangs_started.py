"""Hangs of workers that spawn and forkserver start: named, with their line, and over, as forked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.e2e.hanging import Scene, happening

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # many interpreters import torch

JOB = """
    import sys

    sys.path.insert(0, ROOT)

    from tests.e2e.hanging_workers import main

    if __name__ == "__main__":
        main(FOLDER, NAMES)
"""


@pytest.fixture(scope="module", params=["spawn", "forkserver"])
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("started")
    names = [f"{kind}-{request.param}" for kind in ("stopped", "deadlock", "endless_read")]
    job = JOB.replace("ROOT", repr(str(ROOT))).replace("FOLDER", repr(str(folder)))
    file = ROOT / "tests" / "e2e" / "hanging_workers.py"
    with happening(folder, file, names, job.replace("NAMES", repr(names))) as scene:
        yield scene


def test_each_is_noticed_soon_after_its_threshold(scene: Scene) -> None:
    scene.check_noticed()


def test_each_has_one_cause(scene: Scene) -> None:
    scene.check_one_cause()


def test_stacks_have_the_guilty_line(scene: Scene) -> None:
    scene.check_stacks()


def test_nobody_is_stopped_traced_or_started_by_being_looked_at(scene: Scene) -> None:
    scene.check_untouched()


def test_each_is_over_soon_after_it_goes_on(scene: Scene) -> None:
    scene.check_over()
