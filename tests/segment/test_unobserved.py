"""A real job whose segments have no place runs to its end, and says so once."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

from tests.jobs import JobStarter
from tests.segment.places import FULL

TRAIN = textwrap.dedent(
    """
    import os, sys
    import torch
    from torch.utils.data import DataLoader

    def train():
        return sum(int(batch.sum()) for batch in DataLoader(range(40), batch_size=4, num_workers=2))

    if __name__ == "__main__":
        train()  # whoever the job becomes below may not be able to import what torch imports late
        import dlmon
        directory = os.environ["DLMON_DIR"]
        {first}
        dlmon.instrument()
        {then}
        print("sums", train(), train(), len(list(DataLoader(range(4)))), flush=True)
        print("left", os.listdir(directory) if os.path.isdir(directory) else None, flush=True)
    """
)


def unobserved(output: str) -> str:
    """Return the one warning of a job that ran to its end."""
    if output.startswith("SKIP"):
        pytest.skip(output)
    *warnings, sums, left = output.splitlines()
    assert sums == "sums 780 780 4"
    assert left in ("left None", "left []", "left ['filler']")
    assert len(warnings) == 1, output
    prefix = "dlmon: DataLoaders are not observed: directory "
    assert warnings[0].startswith(prefix)
    return warnings[0].removeprefix(prefix)


def test_with_its_directory_full(run_job: JobStarter, segment_dir: Path) -> None:
    job = run_job(FULL + TRAIN.format(first="full(directory)", then=""))
    assert unobserved(job.finish()).startswith(
        f"{segment_dir}: no segment can be made (No space left on device); "
    )


def test_with_a_directory_that_cannot_be_made(run_job: JobStarter, segment_dir: Path) -> None:
    missing = str(segment_dir / "not" / "there")
    job = run_job(TRAIN.format(first="", then=""), env={"DLMON_DIR": missing})
    assert unobserved(job.finish()).startswith(
        f"{missing}: cannot be made (No such file or directory); "
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_with_a_directory_it_may_not_write(run_job: JobStarter, segment_dir: Path) -> None:
    segment_dir.chmod(0o755)
    job = run_job(TRAIN.format(first="", then="os.setuid(65534)"))
    assert unobserved(job.finish()).startswith(f"{segment_dir}: not writable for uid 65534; ")


def test_with_a_directory_that_vanishes_between_two_epochs(
    run_job: JobStarter, segment_dir: Path
) -> None:
    then = "train(); import shutil; shutil.rmtree(directory)"
    job = run_job(TRAIN.format(first="", then=then))
    output = job.finish()
    # The segment it has is mapped and goes on; the other loader's cannot be made.
    assert unobserved(output).startswith(
        f"{segment_dir}: no segment can be made (No such file or directory); "
    )
