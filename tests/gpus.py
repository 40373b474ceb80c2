"""A stand-in for NVIDIA's NVML, for machines without a GPU: the real pynvml runs over it."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).parent / "observe" / "nvml" / "fake_nvml.c"
GIB = 1 << 30


def build(compiler: Path, folder: Path) -> None:
    """Make a libnvidia-ml.so.1 there that does as its file says."""
    options = ["-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, *options, "-o", library, SOURCE], check=True, timeout=60)


def gpu_line(
    kind: str = "gpu",
    *,
    status: int = 0,
    hang: int = 0,
    util: int = 37,
    processes: str = "-",
    mig: int = 0,
    uuid: str = "GPU-a",
) -> str:
    return f"{kind} {status} {hang} {util} {3 * GIB} {8 * GIB} {processes} {mig} {uuid}\n"


class FakeGpus:
    """A machine with such GPUs as were said last."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._file = folder / "gpus"
        self.environment = {"LD_LIBRARY_PATH": str(library), "FAKE_NVML": str(self._file)}
        self.has()

    def has(self, *lines: str) -> None:
        """Replace what there is, in one step."""
        new = self._file.with_suffix(".new")
        new.write_text("".join(lines))
        new.replace(self._file)
