"""Who this process is: the run it belongs to, its rank, and what the info text says of it.

Runs in: rank. On failure: an unknown fact is an empty string.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from contextlib import suppress

MAX_LENGTH = 256
"""Of each fact, in characters: all of them fit the info text."""

_LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_RANK = ("DLMON_RANK", "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WORLD_SIZE = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def rank(env: Mapping[str, str]) -> str:
    """Return the global rank the launcher gave, "0" without one."""
    return _first(env, _RANK) or "0"


def run(env: Mapping[str, str]) -> str:
    """Return what names this launch: the launcher's own id, else script, pid and start time.

    Two jobs never share it by accident; all ranks that one launcher started on a node do.
    """
    if env.get("DLMON_RUN"):
        return env["DLMON_RUN"]
    if env.get("SLURM_JOB_ID"):
        step = env.get("SLURM_STEP_ID", "")
        return f"slurm-{env['SLURM_JOB_ID']}" + (f".{step}" if step else "")
    elastic = env.get("TORCHELASTIC_RUN_ID", "")
    if elastic not in ("", "none"):  # `none` is torchrun's default, the same for every launch
        return elastic
    launched = bool(elastic or _first(env, _RANK[1:]))
    launcher = os.getppid() if launched else os.getpid()
    return f"{_base(script())}-{launcher}-{start_ticks(launcher)}"


def script() -> str:
    """Return the script or module this process runs, as its user would name it."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        name: str = spec.name
        return name.removesuffix(".__main__")
    return getattr(main, "__file__", None) or "python"


def start_ticks(pid: int) -> int:
    """Return when a process began, field 22 of /proc/<pid>/stat, in clock ticks; 0 if gone."""
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])
    return 0


def identity(
    env: Mapping[str, str], chosen: Mapping[str, str], torch_version: str
) -> dict[str, str | None]:
    """Return who this process is, for its segments and its workers.

    Args:
        env: The environment.
        chosen: run, rank, dir as the user gave them to `instrument()`; they win.
        torch_version: "" if not known.

    Returns:
        run, rank, dir (None for the default), root ("pid-start", which tells apart two processes
        that claim one rank) and the labels of `dlmon_rank_info` that only the process itself knows.
    """
    from dlmon import __version__

    pid = os.getpid()
    user = str(os.getuid())
    with suppress(KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
    facts = {
        "run": chosen.get("run") or run(env),
        "rank": chosen.get("rank") or rank(env),
        "root": f"{pid}-{start_ticks(pid)}",
        "user": user,
        "script": script(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch_version,
        "dlmon": __version__,
        "local_rank": _first(env, _LOCAL_RANK),
        "world_size": _first(env, _WORLD_SIZE),
    }
    short: dict[str, str | None] = {key: value[:MAX_LENGTH] for key, value in facts.items()}
    return {**short, "dir": chosen.get("dir") or env.get("DLMON_DIR")}


def _first(env: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((env[name] for name in names if env.get(name)), "")


def _base(path: str) -> str:
    return os.path.basename(path).removesuffix(".py") or "python"
