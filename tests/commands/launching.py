"""Starting things through `dlmon run`, as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.jobs import Job, JobStarter

LOADER = """
import sys
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __len__(self):
        return 400

    def __getitem__(self, index):
        return torch.tensor(index)

if __name__ == "__main__":
    context = sys.argv[1] if len(sys.argv) > 1 else "fork"
    val = DataLoader(Numbers(), batch_size=200)
    list(val)
    train = DataLoader(Numbers(), batch_size=2, num_workers=2, multiprocessing_context=context)
    for number, batch in enumerate(train, 1):
        if number == 3:
            print("READY", flush=True)
            input()
            break
    print("END")
"""
"""A job that is in its third batch of `train`, with two workers, from READY until it is told."""


def dlmon(
    *words: str,
    cwd: Path,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    status: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must be with `status`."""
    result = subprocess.run(
        [sys.executable, "-m", "dlmon", *words],
        cwd=cwd,
        input=stdin,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def launch(run_job: JobStarter, *words: str, env: Mapping[str, str | None] | None = None) -> Job:
    """Start `dlmon run` with these words: the process becomes the job."""
    return run_job(
        f"import sys\nfrom dlmon.cli import main\nsys.exit(main(['run', *{list(words)!r}]))\n",
        env=env,
    )
